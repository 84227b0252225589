"""What decoders learn from logits: one pass on the device over the masked rows of all requests, one transfer.

    logits -> statistics of all rows -> J of the candidates, the best ones -> draws for the rows that are read -> numpy

The decisions are the host's: entropies, a few probabilities and the drawn tokens are all they need. J of the
candidates and the best of them are found on the device, so that only the winner's rows come over. No logits outlive
the call.
"""

from collections.abc import Callable, Sequence
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch

from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.logits import adjust_logits, adjustment, forbid, keep_likely, narrows
from vllm_infogain.sampling.logprobs import Alternatives, alternatives
from vllm_infogain.sampling.metadata import NOTHING, PositionStatistics, SamplerOutput, SamplingMetadata
from vllm_infogain.sampling.objective import settled_objective
from vllm_infogain.sampling.rows import draw_tokens, row_statistics
from vllm_infogain.sampling.slices import slices
from vllm_infogain.sampling.transfer import to_device, to_host
from vllm_infogain.sampling.whole_rows import fold_in, set_aside


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


def read(
    logits: torch.Tensor, batch_metadata: Sequence[SamplingMetadata], mask_id: int, vocab: int | None = None
) -> list[SamplerOutput]:
    """What the rows of all requests tell their samplers.

    What a row tells depends on nothing but the row and its request's metadata. The host waits for the device once.

    Args:
        logits: [rows, columns] fp32, altered in place.
        batch_metadata: of whose rows they are, in this order. Their `previous` is altered too.
        mask_id: the mask token: part of every distribution, never written.
        vocab: columns from this one on are padding of the model's table, like the mask token; None: there is none.
    """
    vocab = logits.shape[1] if vocab is None else vocab
    layout = _Layout(batch_metadata)
    first = 0
    for _, group in groupby(batch_metadata, lambda metadata: adjustment(metadata.params)):
        alike = list(group)
        last = first + sum(metadata.canvas_offsets.size for metadata in alike)
        adjust_logits(logits[first:last], alike[0].params)
        first = last
    for metadata, start in zip(batch_metadata, layout.row_starts, strict=True):
        forbid(logits[start : start + metadata.canvas_offsets.size], metadata, mask_id)
    writable, aside = set_aside(logits, mask_id, vocab)
    statistics = fold_in(row_statistics(writable), aside)

    def log_probabilities_of(own: Any) -> torch.Tensor:
        """[some rows, columns] of whole rows, by a slice or an index."""
        log_normalizer = statistics.log_normalizer[own]
        found = logits[own] - log_normalizer[:, None]
        found[:, mask_id] = aside[own, 0] - log_normalizer
        return found

    log_probabilities, divergence = _klass(log_probabilities_of, logits, batch_metadata, layout)
    objective, best, rows = _compare(statistics.entropy, batch_metadata, layout)
    drawn, drawn_p = _draw(writable, statistics.log_normalizer, rows, batch_metadata, layout)
    columns = [statistics.entropy, statistics.top_token, statistics.top_probability, statistics.margin]
    if rows is not None:
        columns = [column[rows] for column in columns]
    beside = {
        index: _alternatives(
            log_probabilities_of, rows, layout.read_starts[index], tokens, metadata.params, (logits.shape[1], vocab)
        )
        for index, metadata in enumerate(batch_metadata)
        if metadata.params.logprobs is not None
        for tokens in [_tokens_of(index, drawn, columns[1], batch_metadata, layout)]
    }
    host = to_host([*columns, drawn, drawn_p, objective, best, *divergence.values(), *chain(*beside.values())])
    entropy, top_token, top, margin, tokens, probabilities, objectives, winners, *rest = host
    divergence_of = dict(zip(divergence, rest, strict=False))
    del rest[: len(divergence)]
    alternatives_of = {index: Alternatives(*rest[4 * nth : 4 * nth + 4]) for nth, index in enumerate(beside)}

    def statistics_of(index: int, sequence: int) -> PositionStatistics:
        """Of the `index`-th request, the `sequence`-th of its sequences that are read."""
        masked, draws = batch_metadata[index].canvas_offsets.shape[1], _draws(batch_metadata[index].params)
        within = slice(sequence * masked, (sequence + 1) * masked)
        start = int(layout.read_starts[index]) + within.start
        at = slice(start, start + masked)
        if layout.drawn[index]:
            start = int(layout.drawn_starts[index]) + within.start
            own = (slice(start, start + masked), slice(draws))
            own_tokens, own_probabilities = tokens[own].T, probabilities[own].T
        else:
            own_tokens, own_probabilities = (np.broadcast_to(row[at], (draws, masked)) for row in (top_token, top))
        return PositionStatistics(
            entropy[at],
            top_token[at],
            top[at],
            margin[at],
            own_tokens,
            own_probabilities,
            vocab,
            divergence_of[index][within] if index in divergence_of else None,
            log_probabilities[index][within] if index in log_probabilities else None,
            alternatives_of[index].rows(within) if index in alternatives_of else None,
        )

    outputs = []
    winner_of = dict(zip(np.flatnonzero(layout.is_compared).tolist(), winners.tolist(), strict=True))
    for index, metadata in enumerate(batch_metadata):
        count = len(metadata.canvas_offsets)
        if index in winner_of:
            winner, start = winner_of[index], layout.sequence_starts[index]
            outputs.append(SamplerOutput({winner: statistics_of(index, 0)}, objectives[start : start + count], winner))
        else:
            outputs.append(
                SamplerOutput({sequence: statistics_of(index, sequence) for sequence in range(count)}, NOTHING, 0)
            )
    return outputs


def _draws(params: DecodingParams) -> int:
    """Tokens drawn for each row: one per candidate."""
    return params.num_candidates if params.looks_ahead else 1


def _alternatives(
    log_probabilities_of: Callable[[Any], torch.Tensor],
    rows: torch.Tensor | None,
    start: int,
    tokens: torch.Tensor,
    params: DecodingParams,
    widths: tuple[int, int],
) -> list[torch.Tensor]:
    """The columns of `Alternatives` of a request's read rows, from the `start`-th on, whose tokens [rows, draws] are
    given. Widths are those of a row of logits and of the vocabulary."""
    columns, vocab = widths
    found = []
    for part in slices(len(tokens), columns):
        own: Any = slice(start + part.start, start + part.stop)
        own = own if rows is None else rows[own]
        found.append(alternatives(log_probabilities_of(own), tokens[part], params, vocab))
    return [torch.cat(parts) for parts in zip(*found, strict=True)]


def _tokens_of(
    index: int,
    drawn: torch.Tensor,
    top_token: torch.Tensor,
    batch_metadata: Sequence[SamplingMetadata],
    layout: _Layout,
) -> torch.Tensor:
    """Tokens [read rows, draws] of a request; at temperature 0 one draw, the most likely token."""
    count = layout.read[index]
    if layout.drawn[index]:
        start = layout.drawn_starts[index]
        return drawn[start : start + count, : _draws(batch_metadata[index].params)]
    start = layout.read_starts[index]
    return top_token[start : start + count, None]


def _klass(
    log_probabilities_of: Callable[[Any], torch.Tensor],
    logits: torch.Tensor,
    batch_metadata: Sequence[SamplingMetadata],
    layout: _Layout,
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """By request of KLASS: log-probabilities [rows, columns]; and, where it has earlier ones, the divergence [rows]."""
    now, divergence = {}, {}
    for index, metadata in enumerate(batch_metadata):
        if metadata.params.sampler != "klass":
            continue
        start, count, before = layout.row_starts[index], metadata.canvas_offsets.size, metadata.previous
        if before is None:
            now[index] = logits.new_empty(count, logits.shape[1])
        else:
            # Rows only ever drop out: none moves to where one lies that is still to be read.
            now[index] = before[:count]
            divergence[index] = logits.new_empty(count)
            still = np.arange(count) if metadata.previous_rows is None else metadata.previous_rows
            (still_rows,) = to_device([still], logits.device)
        for part in slices(count, logits.shape[1]):
            found = log_probabilities_of(slice(start + part.start, start + part.stop))
            if before is not None:
                divergence[index][part] = _divergence(found, before[still_rows[part]])
            now[index][part] = found
    return now, divergence


def _divergence(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """KL(now || before) [rows], nats, of log-probabilities [rows, columns]."""
    # A token forbidden at both steps has -inf - -inf; it weighs nothing.
    return (now.exp() * torch.where(now == -torch.inf, 0.0, now - before)).sum(-1)


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
