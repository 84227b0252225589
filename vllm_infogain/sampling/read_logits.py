"""What decoders learn from logits: one pass on the device over the masked rows of all requests, one transfer.

    logits -> statistics of all rows -> J of the candidates, the best ones -> draws for the rows that are read -> numpy

The decisions are the host's: entropies, a few probabilities and the drawn tokens are all they need. J of the
candidates and the best of them are found on the device, so that only the winner's rows come over. No logits outlive
the call.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby, islice
from typing import Any, NamedTuple

import numpy as np
import torch

from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.klass import compare_with_previous
from vllm_infogain.sampling.logits import adjust_logits, adjustment, forbid, keep_likely, narrows
from vllm_infogain.sampling.logprobs import Alternatives, alternatives
from vllm_infogain.sampling.metadata import NOTHING, PositionStatistics, SamplerOutput, SamplingMetadata
from vllm_infogain.sampling.objective import settled_objective
from vllm_infogain.sampling.rows import draw_tokens, row_statistics
from vllm_infogain.sampling.slices import slices
from vllm_infogain.sampling.transfer import to_device, to_host
from vllm_infogain.sampling.whole_rows import WholeLogits, fold_in, set_aside


class _Layout:
    """Where the requests' rows lie and which of them are read. Host arrays with an entry per request, but for
    `rows_read` and `rows_drawn`: all rows that are read, and those of them that tokens are drawn for."""

    def __init__(self, batch_metadata: Sequence[SamplingMetadata]) -> None:
        self.sequences = np.array([len(metadata.canvas_offsets) for metadata in batch_metadata])
        self.masked = np.array([metadata.canvas_offsets.shape[1] for metadata in batch_metadata])
        self.is_compared = np.array([metadata.comparison is not None for metadata in batch_metadata])
        self.temperature = np.array([metadata.params.temperature for metadata in batch_metadata], dtype=np.float64)
        rows = self.sequences * self.masked
        # Of compared sequences the best one's rows are read, of others all.
        self.read = np.where(self.is_compared, self.masked, rows)
        self.drawn = np.where(self.temperature > 0, self.read, 0)
        self.sequence_starts = self.sequences.cumsum() - self.sequences
        self.row_starts = rows.cumsum() - rows
        self.read_starts = self.read.cumsum() - self.read
        self.drawn_starts = self.drawn.cumsum() - self.drawn
        self.rows_read, self.rows_drawn = int(self.read.sum()), int(self.drawn.sum())


class _Columns(NamedTuple):
    """What comes over to the host: tensors before, arrays after."""

    entropy: Any  # [rows read], like the next three
    top_token: Any
    top_probability: Any
    margin: Any
    drawn_tokens: Any  # [rows drawn, draws]
    drawn_probabilities: Any
    objective: Any  # [sequences]
    best: Any  # [compared requests]


@dataclass(frozen=True)
class _Batch:
    """What was found for the requests of a batch, on the host but for KLASS's log-probabilities."""

    metadata: Sequence[SamplingMetadata]
    layout: _Layout
    vocab: int
    columns: _Columns
    divergence: dict[int, np.ndarray]  # [rows] by request of KLASS that has earlier log-probabilities
    log_probabilities: dict[int, torch.Tensor]  # [rows, columns] by request of KLASS, on the device
    alternatives: dict[int, Alternatives]  # by request that asks for log-probabilities

    def outputs(self) -> list[SamplerOutput]:
        """In the requests' order."""
        compared = np.flatnonzero(self.layout.is_compared).tolist()
        winners = dict(zip(compared, self.columns.best.tolist(), strict=True))
        outputs = []
        for index, count in enumerate(self.layout.sequences.tolist()):
            if index in winners:
                start = self.layout.sequence_starts[index]
                objective, winner = self.columns.objective[start : start + count], winners[index]
                outputs.append(SamplerOutput({winner: self.statistics(index, 0)}, objective, winner))
            else:
                everyone = {sequence: self.statistics(index, sequence) for sequence in range(count)}
                outputs.append(SamplerOutput(everyone, NOTHING, 0))
        return outputs

    def statistics(self, index: int, sequence: int) -> PositionStatistics:
        """Of the `index`-th request, the `sequence`-th of its sequences that are read."""
        masked, draws = int(self.layout.masked[index]), _draws(self.metadata[index].params)
        within = slice(sequence * masked, (sequence + 1) * masked)
        start = int(self.layout.read_starts[index]) + within.start
        rows = slice(start, start + masked)
        entropy, top_token, top_probability, margin = (column[rows] for column in self.columns[:4])
        if self.layout.drawn[index]:
            start = int(self.layout.drawn_starts[index]) + within.start
            drawn = (slice(start, start + masked), slice(draws))
            tokens, probabilities = self.columns.drawn_tokens[drawn].T, self.columns.drawn_probabilities[drawn].T
        else:
            tokens, probabilities = (np.broadcast_to(row, (draws, masked)) for row in (top_token, top_probability))
        return PositionStatistics(
            entropy,
            top_token,
            top_probability,
            margin,
            tokens,
            probabilities,
            self.vocab,
            self.divergence[index][within] if index in self.divergence else None,
            self.log_probabilities[index][within] if index in self.log_probabilities else None,
            self.alternatives[index].rows(within) if index in self.alternatives else None,
        )


def read(
    logits: torch.Tensor, batch_metadata: Sequence[SamplingMetadata], mask_id: int, vocab: int | None = None
) -> list[SamplerOutput]:
    """What the rows of all requests tell their samplers.

    What a row tells depends on nothing but the row and its request's metadata. The host waits for the device once.

    Args:
        logits: [rows, columns] fp32, altered in place; only those columns that the requests read.
        batch_metadata: of whose rows they are, in this order; all read the same columns. Their `previous` is altered.
        mask_id: the mask token: part of every distribution, never written.
        vocab: tokens from this one on are never written, like the mask token: padding of the model's table, or in a
            text the codes of pictures. None: there are none. Of no account where only some columns are read.
    """
    columns_read, width = batch_metadata[0].params.columns, logits.shape[1]
    assert all(metadata.params.columns == columns_read for metadata in batch_metadata)
    first = columns_read[0] if columns_read else 0  # the first column's token
    vocab = width if vocab is None or columns_read else vocab
    mask_column = mask_id - first if 0 <= mask_id - first < width else None
    layout = _Layout(batch_metadata)
    _constrain(logits, batch_metadata, layout, mask_id)
    writable, aside = set_aside(logits, mask_column, vocab)
    statistics = fold_in(row_statistics(writable), aside)
    whole = WholeLogits(logits, aside[:, 0], statistics.log_normalizer, mask_column)
    log_probabilities, divergence = compare_with_previous(whole, batch_metadata, layout.row_starts)
    objective, best, rows = _compare(statistics.entropy, batch_metadata, layout)
    drawn_tokens, drawn_probabilities = _draw(writable, statistics.log_normalizer, rows, batch_metadata, layout)

    def of_read(column: torch.Tensor) -> torch.Tensor:
        return column if rows is None else column[rows]

    columns = _Columns(
        entropy=of_read(statistics.entropy),
        top_token=of_read(statistics.top_token),
        top_probability=of_read(statistics.top_probability),
        margin=of_read(statistics.margin),
        drawn_tokens=drawn_tokens,
        drawn_probabilities=drawn_probabilities,
        objective=objective,
        best=best,
    )
    alternatives = {
        index: _alternatives(whole, rows, index, columns, metadata.params, layout, vocab)
        for index, metadata in enumerate(batch_metadata)
        if metadata.params.logprobs is not None
    }
    if first:
        columns = columns._replace(top_token=columns.top_token + first, drawn_tokens=drawn_tokens + first)
        for tokens, *_ in alternatives.values():
            tokens += first
    arrays = iter(to_host([*columns, *divergence.values(), *chain(*alternatives.values())]))
    found = _Batch(
        batch_metadata,
        layout,
        vocab,
        _Columns._make(islice(arrays, len(columns))),
        {index: next(arrays) for index in divergence},
        log_probabilities,
        {index: Alternatives(*islice(arrays, len(of_request))) for index, of_request in alternatives.items()},
    )
    return found.outputs()


def _constrain(logits: torch.Tensor, batch_metadata: Sequence[SamplingMetadata], layout: _Layout, mask_id: int) -> None:
    """What requests ask of their logits, in place: penalties and biases, and -inf for what may not be written."""
    first = 0
    for _, group in groupby(batch_metadata, lambda metadata: adjustment(metadata.params)):
        alike = list(group)
        last = first + sum(metadata.canvas_offsets.size for metadata in alike)
        adjust_logits(logits[first:last], alike[0].params)
        first = last
    for metadata, start in zip(batch_metadata, layout.row_starts, strict=True):
        forbid(logits[start : start + metadata.canvas_offsets.size], metadata, mask_id)


def _draws(params: DecodingParams) -> int:
    """Tokens drawn for each row: one per candidate."""
    return params.num_candidates if params.looks_ahead else 1


def _alternatives(
    whole: WholeLogits,
    rows: torch.Tensor | None,
    index: int,
    columns: _Columns,
    params: DecodingParams,
    layout: _Layout,
    vocab: int,
) -> list[torch.Tensor]:
    """The columns of `Alternatives`, for the rows of the `index`-th request that are read: of `rows`; None: of all."""
    start, count = layout.read_starts[index], layout.read[index]
    if layout.drawn[index]:
        drawn = layout.drawn_starts[index]
        tokens = columns.drawn_tokens[drawn : drawn + count, : _draws(params)]
    else:  # at temperature 0 one draw, the most likely token
        tokens = columns.top_token[start : start + count, None]
    found = []
    for part in slices(len(tokens), whole.logits.shape[1]):
        here: Any = slice(start + part.start, start + part.stop)
        here = here if rows is None else rows[here]
        found.append(alternatives(whole.log_probabilities(here), tokens[part], params, vocab))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _compare(
    entropy: torch.Tensor, batch_metadata: Sequence[SamplingMetadata], layout: _Layout
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """J [sequences] fp32, best candidates [compared requests] and the rows to be read; without comparisons None: all.

    The entropies are summed in float64, where sums of so few fp32 numbers are exact: their order cannot matter.
    """
    compared = np.flatnonzero(layout.is_compared)
    if not len(compared):
        return entropy.new_empty(0), entropy.new_empty(0, dtype=torch.int64), None
    settled_j = np.zeros(layout.sequences.sum())
    for index in compared.tolist():
        comparison, start = batch_metadata[index].comparison, layout.sequence_starts[index]
        settled_j[start : start + len(comparison.cost)] = settled_objective(
            batch_metadata[index].params, comparison.now, comparison.cost
        )
    is_mean = np.array([metadata.params.state_uncertainty == "mean" for metadata in batch_metadata])
    divisor = np.where(is_mean, np.maximum(layout.masked, 1), 1).astype(np.float64)
    # [compared, most candidates]: sequences, padded with one past the last, whose J is -inf.
    counts, nth = layout.sequences[compared, None], np.arange(layout.sequences[compared].max())
    candidates = np.where(nth < counts, layout.sequence_starts[compared, None] + nth, len(settled_j))
    # [rows read]: where each row to be read would be if the first candidate were the best, by how many rows the next
    # one lies behind it, and which comparison decides.
    first = np.arange(layout.rows_read) + np.repeat(layout.row_starts - layout.read_starts, layout.read)
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
    batch_metadata: Sequence[SamplingMetadata],
    layout: _Layout,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens [drawn rows, draws] and their probabilities, for the rows that are read at a temperature above 0.

    All get as many draws as the request that wants most: a draw does not depend on how many follow it.
    """
    drawing = [metadata for metadata in batch_metadata if metadata.params.temperature > 0]
    if not layout.rows_drawn:
        return logits.new_empty((0, 1), dtype=torch.int64), logits.new_empty((0, 1))
    # Compared sequences are one request's at one step: they share a key.
    rng_keys = [
        np.repeat(
            metadata.rng_keys[:1] if metadata.comparison is not None else metadata.rng_keys,
            metadata.canvas_offsets.shape[1],
        )
        for metadata in drawing
    ]
    rng_key, canvas_offset, temperature, drawn = to_device(
        [
            np.concatenate(rng_keys),
            np.concatenate([metadata.canvas_offsets.ravel() for metadata in batch_metadata]),
            np.repeat(layout.temperature, layout.drawn),
            np.flatnonzero(np.repeat(layout.temperature > 0, layout.read)),
        ],
        logits.device,
    )
    draws, temperature = max(_draws(metadata.params) for metadata in drawing), temperature.float()
    narrowed = [
        (start, start + count, metadata.params)
        for metadata, start, count in zip(
            batch_metadata, layout.drawn_starts.tolist(), layout.drawn.tolist(), strict=True
        )
        if count and narrows(metadata.params)
    ]
    if rows is None and layout.rows_drawn == len(logits) and not narrowed:
        tokens = draw_tokens(logits, temperature, rng_key, canvas_offset, draws)
        return tokens, (logits.gather(1, tokens) - log_normalizer[:, None]).exp()
    rows = drawn if rows is None else rows[drawn]
    canvas_offset, log_normalizer = canvas_offset[rows], log_normalizer[rows]
    tokens, log_p = rows.new_empty(len(rows), draws), logits.new_empty(len(rows), draws)
    for part in slices(len(rows), logits.shape[1]):
        own = logits[rows[part]]
        for start, stop, params in narrowed:
            within = slice(max(start - part.start, 0), max(min(stop, part.stop) - part.start, 0))
            if within.start < within.stop:
                own[within] = keep_likely(own[within], params)
        tokens[part] = draw_tokens(own, temperature[part], rng_key[part], canvas_offset[part], draws)
        log_p[part] = own.gather(1, tokens[part])
    return tokens, (log_p - log_normalizer[:, None]).exp()
