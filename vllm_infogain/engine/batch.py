"""Turns the planned sequences of all requests into one batch of model rows. Plain numpy on the host."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch

from vllm_infogain.engine.kv_layout import layout
from vllm_infogain.engine.records import GroupPlan
from vllm_infogain.sampling.forward_window import ForwardWindow
from vllm_infogain.sampling.transfer import to_device


@dataclass(frozen=True)
class SequenceGroup:
    """Sequences of one request that one forward computes the same rows of: a state, or its candidates."""

    tokens: np.ndarray  # [sequences, length] int64
    masked: np.ndarray  # [sequences, masked] int64: positions whose logits are needed; none for cached states
    window: ForwardWindow
    cached_indices: np.ndarray  # [sequences]: the cached state that each extends, or, in a refresh, becomes
    pages: GroupPlan
    block: int  # positions per block of a block-causal model; 0: attention in both directions
    shift: int = 0  # rows by which the logits of a position lie before it
    guidance_scale: float = 0.0  # above 0: these are the guides of the sequences of the group before


@dataclass(frozen=True)
class Batch:
    """Input of one forward, on the device. Rows are the sequences' positions, back to back.

    A segment is what the attention kernel calls a sequence: consecutive rows that attend to the same keys.
    """

    input_ids: torch.Tensor  # [rows] int64
    positions: torch.Tensor  # [rows] int64
    slot_mapping: torch.Tensor  # [rows] int64: where each row's K and V go
    query_start: torch.Tensor  # [segments + 1] int32
    keys: torch.Tensor  # [segments] int32: keys each attends to
    query_start_host: torch.Tensor  # the same on the host, where vLLM reads them too
    keys_host: torch.Tensor
    page_table: torch.Tensor  # [segments, pages] int32, padded with page 0
    logit_rows: torch.Tensor  # [masked rows] int64: rows whose logits are needed, group by group; not of guides
    guided_rows: torch.Tensor  # [guided] int64: those among them that have a guide
    guide_rows: torch.Tensor  # [guided] int64: their guides' rows
    guidance_scale: torch.Tensor  # [guided, 1] fp32
    copied_pages: torch.Tensor  # [2, pages] int64: from, to; before the forward
    longest: int  # rows of the longest segment
    most_keys: int


def build_batch(groups: Sequence[SequenceGroup], page_size: int, device: torch.device) -> Batch:
    """Lay the groups' sequences out back to back, in order.

    Args:
        groups: at least one.
        page_size: positions per KV page.
        device: where the model runs.
    """
    ids, positions, slots, tables = [], [], [], []
    nothing = np.empty(0, dtype=np.int64)
    logit_rows, guided_rows, guide_rows, scales = [nothing], [nothing], [nothing], [np.empty((0, 1), dtype=np.float32)]
    lengths: list[int] = []
    keys: list[int] = []
    copies: list[tuple[int, int]] = []
    first_row = 0
    for group in groups:
        count, rows = len(group.tokens), group.window.rows
        place = layout(group.window, page_size, in_order=group.block > 0)
        table, copied = _page_tables(group, place.own, place.is_copied)
        copies += copied
        here = place.slots[rows.start : rows.stop]
        ids.append(group.tokens[:, rows.start : rows.stop].ravel())
        positions.append(np.tile(np.arange(rows.start, rows.stop), count))
        slots.append((table[:, here // page_size] * page_size + here % page_size).ravel())
        first_rows = first_row + len(rows) * np.arange(count)
        read = (group.masked - group.shift - rows.start + first_rows[:, None]).ravel()
        if group.guidance_scale:
            guided_rows.append(logit_rows[-1])
            guide_rows.append(read)
            scales.append(np.full((len(read), 1), group.guidance_scale, dtype=np.float32))
        else:
            logit_rows.append(read)
        segment_lengths, segment_keys = _segments(group)
        lengths += segment_lengths * count
        keys += segment_keys * count
        tables.append(table if len(segment_keys) == 1 else table.repeat(len(segment_keys), axis=0))
        first_row += count * len(rows)

    page_table = np.zeros((sum(map(len, tables)), max(table.shape[1] for table in tables)), dtype=np.int32)
    first = 0
    for table in tables:
        page_table[first : first + len(table), : table.shape[1]] = table
        first += len(table)

    per_row = [
        np.concatenate(arrays) for arrays in (ids, positions, slots, logit_rows, guided_rows, guide_rows, scales)
    ]
    copied_pages = np.array(copies, dtype=np.int64).reshape(-1, 2).T
    query_start = np.array([0, *accumulate(lengths)], dtype=np.int32)
    keys_of = np.array(keys, dtype=np.int32)
    on_device = to_device([*per_row, page_table, copied_pages, query_start, keys_of], device)
    return Batch(
        input_ids=on_device[0],
        positions=on_device[1],
        slot_mapping=on_device[2],
        logit_rows=on_device[3],
        guided_rows=on_device[4],
        guide_rows=on_device[5],
        guidance_scale=on_device[6],
        page_table=on_device[7],
        copied_pages=on_device[8],
        query_start=on_device[9],
        keys=on_device[10],
        query_start_host=torch.from_numpy(query_start),
        keys_host=torch.from_numpy(keys_of),
        longest=max(lengths),
        most_keys=max(keys),
    )


def _page_tables(group: SequenceGroup, own: range, is_copied: bool) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """[sequences, pages] int64, and the pages to copy from and to.

    The first sequence, or in a refresh every one, lies in the pages of its cached state. The others have scratch pages
    in place of those that may differ.
    """
    table = np.array(group.pages.cached_pages)[group.cached_indices]
    others = range(0) if group.window.refresh else range(1, len(table))
    if not others:
        return table, []
    scratch = np.array(group.pages.scratch[: len(others) * len(own)]).reshape(len(others), len(own))
    copies = list(zip(table[1:, own.start].tolist(), scratch[:, 0].tolist(), strict=True)) if is_copied else []
    table[1:, own.start : own.stop] = scratch
    return table, copies


def _segments(group: SequenceGroup) -> tuple[list[int], list[int]]:
    """Rows and keys of each segment of a sequence: blocks of a block-causal model attend to no later one.

    So a prompt of P positions in blocks of b is P / b segments, and its first forward reads P^2 / 2b keys per layer; in
    one segment a kernel reads them once for every tile of rows, 64 or 128 of them. Fewer segments would not be exact:
    rows of one segment attend to the same keys, or, causal, each to one key more than the row before it. No back end
    takes a mask over blocks but two: FLEX_ATTENTION, which is refused, and TRITON_ATTN, as a list of ranges, all of
    which every tile goes through. Later blocks are one or two segments.
    """
    rows = group.window.rows
    if not group.block:
        return [len(rows)], [group.window.keys]
    starts = [rows.start, *range((rows.start // group.block + 1) * group.block, rows.stop, group.block)]
    ends = [*starts[1:], rows.stop]
    return [end - start for start, end in zip(starts, ends, strict=True)], ends
