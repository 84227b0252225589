"""What decoders learn from logits: one pass on the device over the masked rows of all requests, one transfer.

    logits -> statistics of all rows -> J of the candidates, the best ones -> draws for the rows that are read -> numpy

The decisions are the host's: entropies, a few probabilities and the drawn tokens are all they need. J of the
candidates and the best of them are found on the device, so that only the winner's rows come over. No logits outlive
the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.logits import adjust_logits, keep_likely
from vllm_infogain.sampling.objective import settled_objective
from vllm_infogain.sampling.rows import draw_tokens, row_statistics
from vllm_infogain.sampling.transfer import to_device, to_host


@dataclass(frozen=True)
class Comparison:
    """What J needs of the state z whose candidates are compared; nats."""

    now: float  # H(z)
    cost: np.ndarray  # [sequences] float64: C(a, z)


@dataclass(frozen=True)
class Question:
    """What a decoder asks of the logits of some of its sequences, rows sequence by sequence."""

    params: DecodingParams
    offsets: np.ndarray  # [sequences, masked] int64: the rows' places in the canvas
    keys: np.ndarray  # [sequences] int64: what the draws of each sequence depend on, beside its rows' offsets
    comparison: Comparison | None = None  # None: every sequence is a state of its own
    previous: torch.Tensor | None = None  # [sequences * masked, vocab] log-probabilities one step earlier, for KLASS


@dataclass(frozen=True)
class Reading:
    """One sequence's masked rows, on the host. Probabilities at temperature 1 and of all tokens, whatever is drawn."""

    entropy: np.ndarray  # [masked] fp32, nats
    top_token: np.ndarray  # [masked] int64: the most likely token, the lowest id of equals
    top_probability: np.ndarray  # [masked] fp32
    second_probability: np.ndarray  # [masked] fp32
    tokens: np.ndarray  # [draws, masked] int64: independent draws; at temperature 0 the most likely token
    probabilities: np.ndarray  # [draws, masked] fp32, of `tokens`
    vocab: int  # columns of the logits
    divergence: np.ndarray | None = None  # [masked] fp32: KL(now || previous), nats; KLASS, where there was a previous
    log_probabilities: torch.Tensor | None = None  # [masked, vocab], on the device; KLASS only

    def head(self, count: int) -> "Reading":
        """The first `count` positions alone."""
        if count == len(self.entropy):
            return self
        return Reading(
            self.entropy[:count],
            self.top_token[:count],
            self.top_probability[:count],
            self.second_probability[:count],
            self.tokens[:, :count],
            self.probabilities[:, :count],
            self.vocab,
            None if self.divergence is None else self.divergence[:count],
            None if self.log_probabilities is None else self.log_probabilities[:count],
        )


@dataclass(frozen=True)
class Answer:
    readings: dict[int, Reading]  # by sequence of the question; of compared ones only the best one's
    objective: np.ndarray  # [sequences] fp32: J; empty where nothing was compared
    best: int  # the sequence with the largest J, the first of equals; 0 where nothing was compared


NOTHING = np.empty(0, dtype=np.float32)


class _Layout:
    """Where the questions' rows lie and which of them are read. Host arrays with an entry per question, but for
    `reads` and `draws`: rows that are read, and those of them that tokens are drawn for."""

    def __init__(self, questions: Sequence[Question]) -> None:
        self.sequences = np.array([len(question.offsets) for question in questions])
        self.masked = np.array([question.offsets.shape[1] for question in questions])
        self.is_compared = np.array([question.comparison is not None for question in questions])
        self.temperature = np.array([question.params.temperature for question in questions], dtype=np.float64)
        rows = self.sequences * self.masked
        # Of compared sequences the best one's rows are read, of others all.
        self.read = np.where(self.is_compared, self.masked, rows)
        self.drawn = np.where(self.temperature > 0, self.read, 0)
        self.sequence_starts = self.sequences.cumsum() - self.sequences
        self.row_starts = rows.cumsum() - rows
        self.read_starts = self.read.cumsum() - self.read
        self.drawn_starts = self.drawn.cumsum() - self.drawn
        self.reads, self.draws = int(self.read.sum()), int(self.drawn.sum())


def read(logits: torch.Tensor, questions: Sequence[Question], mask_id: int) -> list[Answer]:
    """Answer the questions of all requests from their logits [rows, vocab] fp32, which are altered in place.

    What a row tells depends on nothing but the row and its question. The host waits for the device once.
    """
    layout = _Layout(questions)
    first = 0
    for (eos_ids, penalty), alike in groupby(questions, lambda q: (q.params.eos_ids, q.params.eos_penalty)):
        last = first + sum(question.offsets.size for question in alike)
        adjust_logits(logits[first:last], mask_id, eos_ids, penalty)
        first = last
    statistics = row_statistics(logits)
    log_probabilities, divergence = _klass(logits, statistics.log_normalizer, questions, layout)
    objective, best, rows = _compare(statistics.entropy, questions, layout)
    drawn, drawn_p = _draw(logits, statistics.log_normalizer, rows, questions, layout)
    columns = [statistics.entropy, statistics.top_token, statistics.top_probability, statistics.second_probability]
    if rows is not None:
        columns = [column[rows] for column in columns]
    host = to_host([*columns, drawn, drawn_p, objective, best, *divergence.values()])
    entropy, top_token, top, second, tokens, probabilities, scores, winners, *divergences = host
    divergence_of = dict(zip(divergence, divergences, strict=True))

    def reading(index: int, sequence: int) -> Reading:
        """Of question `index`, the `sequence`-th of its sequences that are read."""
        masked, draws = questions[index].offsets.shape[1], _draws(questions[index].params)
        within = slice(sequence * masked, (sequence + 1) * masked)
        start = int(layout.read_starts[index]) + within.start
        at = slice(start, start + masked)
        if layout.drawn[index]:
            start = int(layout.drawn_starts[index]) + within.start
            own = (slice(start, start + masked), slice(draws))
            own_tokens, own_probabilities = tokens[own].T, probabilities[own].T
        else:
            own_tokens, own_probabilities = (np.broadcast_to(row[at], (draws, masked)) for row in (top_token, top))
        return Reading(
            entropy[at],
            top_token[at],
            top[at],
            second[at],
            own_tokens,
            own_probabilities,
            logits.shape[-1],
            divergence_of[index][within] if index in divergence_of else None,
            log_probabilities[index][within] if index in log_probabilities else None,
        )

    answers = []
    winner_of = dict(zip(np.flatnonzero(layout.is_compared).tolist(), winners.tolist(), strict=True))
    for index, question in enumerate(questions):
        count = len(question.offsets)
        if index in winner_of:
            winner, start = winner_of[index], layout.sequence_starts[index]
            answers.append(Answer({winner: reading(index, 0)}, scores[start : start + count], winner))
        else:
            answers.append(Answer({sequence: reading(index, sequence) for sequence in range(count)}, NOTHING, 0))
    return answers


def _draws(params: DecodingParams) -> int:
    return params.num_candidates if params.looks_ahead else 1


def _klass(
    logits: torch.Tensor, log_normalizer: torch.Tensor, questions: Sequence[Question], layout: _Layout
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """By KLASS question: its log-probabilities [rows, vocab]; and, where it has earlier ones, the divergence [rows]."""
    now, divergence = {}, {}
    for index, question in enumerate(questions):
        if question.params.sampler != "klass":
            continue
        start = layout.row_starts[index]
        own = slice(start, start + question.offsets.size)
        now[index] = logits[own] - log_normalizer[own, None]
        if question.previous is not None:
            # A token forbidden at both steps has -inf - -inf; it weighs nothing.
            difference = torch.where(now[index] == -torch.inf, 0.0, now[index] - question.previous)
            divergence[index] = (now[index].exp() * difference).sum(-1)
    return now, divergence


def _compare(
    entropy: torch.Tensor, questions: Sequence[Question], layout: _Layout
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """J [sequences] fp32, best candidates [compared questions] and the rows to be read; without comparisons None: all.

    The entropies are summed in float64, where sums of so few fp32 numbers are exact: their order cannot matter.
    """
    compared = np.flatnonzero(layout.is_compared)
    if not len(compared):
        return entropy.new_empty(0), entropy.new_empty(0, dtype=torch.int64), None
    settled_j = np.zeros(layout.sequences.sum())
    for index in compared.tolist():
        comparison, start = questions[index].comparison, layout.sequence_starts[index]
        settled_j[start : start + len(comparison.cost)] = settled_objective(
            questions[index].params, comparison.now, comparison.cost
        )
    is_mean = np.array([question.params.state_uncertainty == "mean" for question in questions])
    divisor = np.where(is_mean, np.maximum(layout.masked, 1), 1).astype(np.float64)
    # [compared, most candidates]: sequences, padded with one past the last, whose J is -inf.
    counts, nth = layout.sequences[compared, None], np.arange(layout.sequences[compared].max())
    candidates = np.where(nth < counts, layout.sequence_starts[compared, None] + nth, len(settled_j))
    # [reads]: where each row to be read would be if the first candidate were the best, by how many rows the next one
    # lies behind it, and which comparison decides.
    first = np.arange(layout.reads) + np.repeat(layout.row_starts - layout.read_starts, layout.read)
    stride = np.repeat(np.where(layout.is_compared, layout.masked, 0), layout.read)
    group = np.repeat(np.maximum(layout.is_compared.cumsum() - 1, 0), layout.read)

    on_device = [np.repeat(layout.masked, layout.sequences), np.repeat(divisor, layout.sequences), settled_j]
    masked, divisors, settled, among, base, step, whose = to_device(
        [*on_device, candidates, first, stride, group], entropy.device
    )
    # `unsafe` spares a check of the lengths, for which the host would wait.
    total = torch.segment_reduce(entropy.double(), "sum", lengths=masked, unsafe=True, initial=0)
    objective = (settled - total / divisors).float()
    best = torch.cat([objective, objective.new_full((1,), -torch.inf)])[among].argmax(-1)
    return objective, best, base + best[whose] * step


def _draw(
    logits: torch.Tensor,
    log_normalizer: torch.Tensor,
    rows: torch.Tensor | None,
    questions: Sequence[Question],
    layout: _Layout,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [drawn rows, draws] and their probabilities, for the rows that are read at a temperature above 0.

    All get as many draws as the question that wants most: a draw does not depend on how many follow it.
    """
    drawing = [question for question in questions if question.params.temperature > 0]
    if not layout.draws:
        return logits.new_empty((0, 1), dtype=torch.int64), logits.new_empty((0, 1))
    # Compared sequences are one request's at one step: they share a key.
    keys = [
        np.repeat(question.keys[:1] if question.comparison is not None else question.keys, question.offsets.shape[1])
        for question in drawing
    ]
    key, offset, temperature, drawn = to_device(
        [
            np.concatenate(keys),
            np.concatenate([question.offsets.ravel() for question in questions]),
            np.repeat(layout.temperature, layout.drawn),
            np.flatnonzero(np.repeat(layout.temperature > 0, layout.read)),
        ],
        logits.device,
    )
    if rows is not None or layout.draws < len(logits):
        rows = drawn if rows is None else rows[drawn]
        logits, log_normalizer, offset = logits[rows], log_normalizer[rows], offset[rows]
    for question, start, count in zip(questions, layout.drawn_starts, layout.drawn, strict=True):
        if count and (question.params.top_k or question.params.top_p < 1):
            # In place: all else that these logits tell has been read.
            logits[start : start + count] = keep_likely(logits[start : start + count], question.params)
    tokens = draw_tokens(logits, temperature.float(), key, offset, max(_draws(question.params) for question in drawing))
    return tokens, (logits.gather(1, tokens) - log_normalizer[:, None]).exp()
