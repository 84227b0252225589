"""From a grammar over bytes to the same grammar over a model's tokens, each of which spells some bytes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vllm_infogain.grammar.automaton import NEVER, TokenAutomaton, pack, sources, targets

NOWHERE = -1
MAX_MOVES = 1 << 22  # of all beginnings, 8 bytes each, with one more for each byte that may follow
MAX_READ = 1 << 25  # moves gone through, half a second
AT_ONCE = 1 << 20  # moves gone through at once


@dataclass(frozen=True)
class Spelling:
    """The bytes of every token that spells any, the longest first."""

    ids: np.ndarray  # [tokens] int64
    bytes_at: list[np.ndarray]  # by place: [tokens longer than it] uint8
    vocab: int

    @classmethod
    def of(cls, texts: Mapping[bytes, Sequence[int]], vocab: int, without: Collection[int] = ()) -> Spelling:
        """Of the token ids that spell each text; `without` those that are no text, such as the mask token."""
        spelled = [(text, token) for text, tokens in texts.items() for token in tokens if text and token not in without]
        spelled.sort(key=lambda pair: -len(pair[0]))
        ids = np.array([token for _, token in spelled], dtype=np.int64)
        lengths = np.array([len(text) for text, _ in spelled], dtype=np.int64)
        starts, joined = lengths.cumsum() - lengths, np.frombuffer(b"".join(text for text, _ in spelled), np.uint8)
        longer = [int((lengths > place).sum()) for place in range(int(lengths.max(initial=0)))]
        return cls(ids, [joined[starts[:count] + place] for place, count in enumerate(longer)], vocab)


def over_tokens(of_bytes: TokenAutomaton, spelling: Spelling, end_ids: Collection[int]) -> TokenAutomaton:
    """The automaton over tokens of one over bytes (a vocabulary of 256, without end tokens).

    Byte by byte, for all tokens at once. Where two beginnings lead alike from every state, so do all their
    continuations: only as much is computed as there are different beginnings, of 150,000 tokens some thousand at most.

    Raises:
        ValueError: there are too many moves, however few there may be of whole tokens.
    """
    states, classes = np.arange(len(of_bytes.final)), of_bytes.classes
    step = np.full((classes, len(states)), NOWHERE, dtype=np.int64)
    for symbol in range(classes):
        moves = of_bytes.moves_of(symbol)
        step[symbol, sources(moves)] = targets(moves)
    columns = [np.empty(0, dtype=np.int64), pack(states, states)]  # the moves of each beginning: none; all stay
    number = {column.tobytes(): index for index, column in enumerate(columns)}
    beginning = np.ones(len(spelling.ids), dtype=np.int64)  # [tokens] the column of what was read of each
    read, kept = 0, len(states)
    for letters in spelling.bytes_at:
        longer = slice(len(letters))
        extended = beginning[longer] * classes + of_bytes.class_of[letters]  # a beginning and one more byte
        is_new = np.zeros(len(columns) * classes, dtype=bool)
        is_new[extended] = True
        leads_to = np.zeros(len(is_new), dtype=np.int64)
        different = np.flatnonzero(is_new)
        sizes = np.array([len(column) for column in columns])[different // classes].cumsum()
        read += int(sizes[-1])
        for part in np.split(different, np.flatnonzero(np.diff(sizes // AT_ONCE)) + 1):
            _bound(MAX_READ, read)
            for index, column in zip(part.tolist(), _extend(columns, step, part), strict=True):
                leads_to[index] = number.setdefault(column.tobytes(), len(columns))
                if leads_to[index] == len(columns):
                    columns.append(column)
                    kept += len(column) + classes
            _bound(MAX_MOVES, kept)
        beginning[longer] = leads_to[extended]
    class_of = np.full(spelling.vocab, NEVER, dtype=np.int64)
    class_of[spelling.ids] = beginning
    used, class_of = np.unique(class_of, return_inverse=True)
    by = np.repeat(np.arange(len(used)), [len(columns[index]) for index in used])
    moves = np.concatenate([columns[index] for index in used])
    return TokenAutomaton.from_moves(moves, by, class_of, of_bytes.start, of_bytes.final, end_ids)


def _bound(most: int, moves: int) -> None:
    if moves > most:
        raise ValueError(f"its automaton over tokens takes more than {most} moves to make; give a simpler one")


def _extend(columns: list[np.ndarray], step: np.ndarray, extended: np.ndarray) -> list[np.ndarray]:
    """The moves of beginnings that are one byte longer."""
    shorter = [columns[index] for index in (extended // len(step)).tolist()]
    sizes = [len(column) for column in shorter]
    moves = np.concatenate(shorter)
    to = step[np.repeat(extended % len(step), sizes), targets(moves)]
    goes_on = to != NOWHERE
    ends = np.append(0, goes_on.cumsum())[np.cumsum(sizes)]
    return np.split(pack(sources(moves[goes_on]), to[goes_on]), ends[:-1])
