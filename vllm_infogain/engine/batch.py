"""Turns the planned sequences of all requests into one batch of model rows. Plain numpy on the host."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class SequenceGroup:
    """Sequences of one request that share a length: one state, or its candidates."""

    request_id: str
    tokens: torch.Tensor  # [sequences, length] int64, host
    masked: torch.Tensor  # [sequences, masked] int64, host: positions whose logits are needed
    pages: Sequence[Sequence[int]]  # KV pages of each sequence


@dataclass(frozen=True)
class Batch:
    """Input tensors of one forward, on the device. Rows are the sequences' positions, back to back."""

    input_ids: torch.Tensor  # [rows] int64
    positions: torch.Tensor  # [rows] int64
    slot_mapping: torch.Tensor  # [rows] int64: where each row's K and V go
    query_start: torch.Tensor  # [sequences + 1] int32
    query_start_host: torch.Tensor  # [sequences + 1] int32, host
    lengths: torch.Tensor  # [sequences] int32
    lengths_host: torch.Tensor  # [sequences] int32, host
    page_table: torch.Tensor  # [sequences, pages] int32, padded with page 0
    logit_rows: torch.Tensor  # [masked rows] int64: rows whose logits are needed, group by group

    @property
    def max_length(self) -> int:
        return int(self.lengths_host.max())


def build_batch(groups: Sequence[SequenceGroup], page_size: int, device: torch.device) -> Batch:
    """Lay the groups' sequences out back to back, in order.

    Args:
        groups: at least one.
        page_size: tokens per KV page.
        device: where the model runs.
    """
    lengths = np.concatenate([np.full(len(group.tokens), group.tokens.shape[1]) for group in groups])
    query_start = np.concatenate([[0], np.cumsum(lengths)])
    pages = [table for group in groups for table in group.pages]
    page_table = np.zeros((len(pages), max(map(len, pages))), dtype=np.int32)
    for row, table in zip(page_table, pages, strict=True):
        row[: len(table)] = table

    positions = np.arange(query_start[-1]) - np.repeat(query_start[:-1], lengths)
    sequence_of_row = np.repeat(np.arange(len(lengths)), lengths)
    slots = page_table[sequence_of_row, positions // page_size].astype(np.int64) * page_size + positions % page_size

    logit_rows, first = [], 0
    for group in groups:
        count = len(group.tokens)
        logit_rows.append((group.masked.numpy() + query_start[first : first + count, None]).ravel())
        first += count

    def to_device(array: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        return torch.from_numpy(array).to(dtype).to(device, non_blocking=True)

    query_start_host = torch.from_numpy(query_start).to(torch.int32)
    lengths_host = torch.from_numpy(lengths).to(torch.int32)
    return Batch(
        input_ids=torch.cat([group.tokens.flatten() for group in groups]).to(device, non_blocking=True),
        positions=to_device(positions, torch.int64),
        slot_mapping=to_device(slots, torch.int64),
        query_start=query_start_host.to(device, non_blocking=True),
        query_start_host=query_start_host,
        lengths=lengths_host.to(device, non_blocking=True),
        lengths_host=lengths_host,
        page_table=to_device(page_table, torch.int32),
        logit_rows=to_device(np.concatenate(logit_rows), torch.int64),
    )
