"""A grammar over token ids, and what it still allows at the masked positions of a canvas that is filled in any order.

A canvas fits if it holds a string of the grammar, then end tokens up to its end; or the string alone, ending with it.
A token may be written at a masked position if some way to fill the other masks makes the canvas fit. That is what
forward-backward reachability says: states that the positions before it can lead to, and states from which those behind
it can still lead to a final one.

    transitions (a DFA) -> TokenAutomaton: tokens that lead alike are one class -> allowed(canvases) -> classes
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from weakref import WeakValueDictionary

import numpy as np

NEVER = 0  # the class of tokens that may be written nowhere


def pack(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Pairs of states [moves] as one int64 each, which sort by source, then by target."""
    return source.astype(np.int64) << 32 | target


def sources(pairs: np.ndarray) -> np.ndarray:
    return pairs >> 32


def targets(pairs: np.ndarray) -> np.ndarray:
    return pairs & 0xFFFFFFFF


@dataclass(frozen=True)
class TokenAutomaton:
    """A deterministic automaton all of whose moves are of use: on the way from its start to a final state."""

    moves: np.ndarray  # [moves] int64 pairs of states, see `pack`; class by class, ascending in each
    first: np.ndarray  # [classes + 1] int64: where each class's moves begin
    class_of: np.ndarray  # [vocab] int32
    start: int
    final: np.ndarray  # [states] bool: the canvas may end here

    def __reduce__(self):
        # Without what is derived.
        return _restored, (self.moves, self.first, self.class_of, self.start, self.final)

    @property
    def classes(self) -> int:
        return len(self.first) - 1

    def moves_of(self, symbol: int) -> np.ndarray:
        """[moves] of one class."""
        return self.moves[self.first[symbol] : self.first[symbol + 1]]

    @classmethod
    def from_transitions(
        cls,
        transitions: Mapping[int, Mapping[int, int]],
        start: int,
        finals: Collection[int],
        vocab: int,
        end_ids: Collection[int] = (),
    ) -> TokenAutomaton:
        """Of a DFA over token ids: state -> token -> next state.

        Args:
            vocab: token ids go from 0 to below it.
            end_ids: tokens that may follow a whole string, and one another; they are no part of a string.
        """
        states = sorted({start, *transitions, *finals, *(to for row in transitions.values() for to in row.values())})
        number = {state: index for index, state in enumerate(states)}
        sizes = [len(row) for row in transitions.values()]
        total = sum(sizes)
        tokens = np.fromiter((token for row in transitions.values() for token in row), np.int64, total)
        to = np.fromiter((number[to] for row in transitions.values() for to in row.values()), np.int64, total)
        pairs = pack(np.repeat([number[state] for state in transitions], sizes).astype(np.int64), to)
        text = ~np.isin(tokens, list(end_ids))
        final = np.zeros(len(states), dtype=bool)
        final[[number[state] for state in finals]] = True
        return cls.from_moves(pairs[text], tokens[text], np.arange(vocab), number[start], final, end_ids)

    @classmethod
    def from_moves(
        cls,
        pairs: np.ndarray,
        by: np.ndarray,
        class_of: np.ndarray,
        start: int,
        final: np.ndarray,
        end_ids: Collection[int] = (),
    ) -> TokenAutomaton:
        """Of the moves of a DFA: pairs [moves] by class `by` [moves]; class_of [vocab], final [states].

        Drops moves and states that are of no use, and merges classes that then lead alike. `end_ids` become a class of
        their own, which leads from final states to one more, and from there to itself.
        """
        useful = _useful(np.unique(pairs), start, final)
        number = np.cumsum(useful) - 1
        kept = useful[sources(pairs)] & useful[targets(pairs)]
        pairs, by = pack(number[sources(pairs[kept])], number[targets(pairs[kept])]), by[kept]
        order = np.lexsort((pairs, by))
        pairs, bounds = pairs[order], np.searchsorted(by[order], np.arange(class_of.max(initial=-1) + 2))
        merged = {b"": NEVER}  # moves of each class
        new = [
            merged.setdefault(pairs[low:high].tobytes(), len(merged))
            for low, high in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
        ]
        class_of, final = np.array(new, dtype=np.int32)[class_of], final[useful]
        columns = [np.frombuffer(moves, np.int64) for moves in merged]
        if len(end_ids):
            ended = len(final)
            leave = np.append(np.flatnonzero(final), ended)
            columns.append(pack(leave, np.full(len(leave), ended)))
            final = np.append(final, True)
            class_of[list(end_ids)] = len(columns) - 1
        first = np.cumsum([0, *map(len, columns)])
        return cls(np.concatenate(columns), first, class_of, int(number[start]), final)

    @cached_property
    def reach(self) -> Reach:
        return Reach(self)

    @cached_property
    def shortest(self) -> int | None:
        """The least number of tokens that spell a string of the grammar; None: no tokens spell any."""
        bounds = np.searchsorted(self.reach.source, np.arange(len(self.final) + 1))
        seen = np.zeros(len(self.final), dtype=bool)
        newest, length = np.array([self.start]), 0
        while len(newest):
            if self.final[newest].any():
                return length
            seen[newest] = True
            ahead = np.concatenate([self.reach.target[bounds[state] : bounds[state + 1]] for state in newest.tolist()])
            newest, length = np.unique(ahead[~seen[ahead]]), length + 1
        return None


_restored_ones: WeakValueDictionary[bytes, TokenAutomaton] = WeakValueDictionary()


def _restored(*fields) -> TokenAutomaton:
    """Another process's automaton; one object, with what is derived from it, for all requests with the same grammar."""
    digest = blake2b()
    for field in map(np.asarray, fields):
        digest.update(f"{field.shape}{field.dtype}".encode() + field.tobytes())
    return _restored_ones.setdefault(digest.digest(), TokenAutomaton(*fields))


def _useful(pairs: np.ndarray, start: int, final: np.ndarray) -> np.ndarray:
    """[states] bool: `start`, and what it leads to that leads to a final state."""
    ahead: list[list[int]] = [[] for _ in final]
    behind: list[list[int]] = [[] for _ in final]
    for source, target in zip(sources(pairs).tolist(), targets(pairs).tolist(), strict=True):
        ahead[source].append(target)
        behind[target].append(source)
    useful = np.zeros(len(final), dtype=bool)
    useful[list(_closure([start], ahead) & _closure(np.flatnonzero(final).tolist(), behind))] = True
    useful[start] = True
    return useful


def _closure(states: list[int], neighbours: list[list[int]]) -> set[int]:
    found, waiting = set(states), list(states)
    while waiting:
        new = set(neighbours[waiting.pop()]) - found
        found |= new
        waiting += new
    return found


class Reach:
    """Reachability over one automaton. Sets of states are kept for up to 64 sequences at once: a word for each state,
    whose bit i is sequence i's."""

    def __init__(self, automaton: TokenAutomaton) -> None:
        self.automaton = automaton
        # Edges: pairs of states that some class joins.
        edges, self.edge_of = np.unique(automaton.moves, return_inverse=True)
        self.source, self.target = sources(edges), targets(edges)
        by_target = np.argsort(self.target, kind="stable")
        self._source_by_target = self.source[by_target]
        self._targets, self._target_starts = np.unique(self.target[by_target], return_index=True)
        self._sources, self._source_starts = np.unique(self.source, return_index=True)
        # What classes join each edge: bit c of its words, or where edges are many and classes few on each, a list.
        by = np.repeat(np.arange(automaton.classes), np.diff(automaton.first))
        words = -(-automaton.classes // 64)
        self._bits: np.ndarray | None = None  # [edges, words] uint64
        if len(edges) * words <= 2 * len(by):
            self._bits = np.zeros((len(edges), words), dtype="<u8")
            np.bitwise_or.at(self._bits, (self.edge_of, by // 64), np.uint64(1) << (by % 64).astype(np.uint64))
        self._by = by

    def classes(self, live: np.ndarray) -> np.ndarray:
        """[classes] bool: those that join any of the edges `live` [edges] bool."""
        found = np.zeros(self.automaton.classes, dtype=bool)
        if self._bits is None:
            found[self._by[live[self.edge_of]]] = True
        else:
            words = np.bitwise_or.reduce(self._bits[live], axis=0)
            found[:] = np.unpackbits(words.view(np.uint8), count=len(found), bitorder="little")
        return found

    def forward(self, canvases: np.ndarray, mask_id: int) -> np.ndarray:
        """[length + 1, states] uint64: where the tokens before each position of canvases [n, length] can lead to."""
        sets = self._empty(canvases)
        sets[0, self.automaton.start] = ~np.uint64(0)
        for place, column in enumerate(canvases.T):
            now, then = sets[place], sets[place + 1]
            for symbol, bits in self._symbols(column, mask_id):
                if symbol is not None:
                    moves = self.automaton.moves_of(symbol)
                    np.bitwise_or.at(then, targets(moves), now[sources(moves)] & bits)
                elif len(self.source):
                    then[self._targets] |= (
                        np.bitwise_or.reduceat(now[self._source_by_target], self._target_starts) & bits
                    )
        return sets

    def backward(self, canvases: np.ndarray, mask_id: int) -> np.ndarray:
        """[length + 1, states] uint64: from where the tokens from each position on can lead to a final state."""
        sets = self._empty(canvases)
        sets[-1, self.automaton.final] = ~np.uint64(0)
        for place in reversed(range(canvases.shape[1])):
            now, then = sets[place], sets[place + 1]
            for symbol, bits in self._symbols(canvases[:, place], mask_id):
                if symbol is not None:
                    moves = self.automaton.moves_of(symbol)
                    now[sources(moves)] |= then[targets(moves)] & bits  # a class leads from a state to one only
                elif len(self.source):
                    now[self._sources] |= np.bitwise_or.reduceat(then[self.target], self._source_starts) & bits
        return sets

    def _empty(self, canvases: np.ndarray) -> np.ndarray:
        return np.zeros((canvases.shape[1] + 1, len(self.automaton.final)), dtype=np.uint64)

    def _symbols(self, column: np.ndarray, mask_id: int) -> Iterator[tuple[int | None, np.uint64]]:
        """What stands at one position [n]: each class, or None for a mask, with the sequences it stands in."""
        bits = np.uint64(1) << np.arange(len(column), dtype=np.uint64)
        masked = column == mask_id
        if masked.any():
            yield None, np.bitwise_or.reduce(bits[masked])
        classes = self.automaton.class_of[column[~masked]]
        for symbol in set(classes.tolist()):
            yield symbol, np.bitwise_or.reduce(bits[~masked][classes == symbol])


def allowed(automaton: TokenAutomaton, canvases: np.ndarray, mask_id: int, offsets: np.ndarray) -> np.ndarray:
    """Which classes of tokens may be written, one token at a time.

    Args:
        canvases: [n, length] int64 token ids, with masks.
        offsets: [n, m] int64: masked places of each.

    Returns:
        [n, m, classes] bool; all False in a canvas that cannot be made to fit.
    """
    found = np.zeros((*offsets.shape, automaton.classes), dtype=bool)
    for first in range(0, len(canvases), 64):
        own = slice(first, first + 64)
        _allow(automaton.reach, canvases[own], mask_id, offsets[own], found[own])
    return found


def _allow(reach: Reach, canvases: np.ndarray, mask_id: int, offsets: np.ndarray, found: np.ndarray) -> None:
    forward, backward = reach.forward(canvases, mask_id), reach.backward(canvases, mask_id)
    known: dict[bytes, np.ndarray] = {}  # classes of a set of edges: many places of a canvas have the same
    for place in np.unique(offsets).tolist():
        passable = forward[place][reach.source] & backward[place + 1][reach.target]
        for sequence, nth in np.argwhere(offsets == place).tolist():
            live = (passable & np.uint64(1 << sequence)) != 0
            key = np.packbits(live).tobytes()
            if key not in known:
                known[key] = reach.classes(live)
            found[sequence, nth] = known[key]


def is_completable(automaton: TokenAutomaton, canvas: np.ndarray, mask_id: int) -> bool:
    """Whether the masks of a canvas [length] can be filled so that it fits."""
    reached = automaton.reach.forward(canvas[None], mask_id)[-1] != 0
    return bool((reached & automaton.final).any())
