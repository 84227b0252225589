"""KLASS (arXiv 2511.05664): how far each row's distribution moved since the denoising step before."""

from collections.abc import Sequence

import numpy as np
import torch

from vllm_infogain.sampling.metadata import SamplingMetadata
from vllm_infogain.sampling.slices import slices
from vllm_infogain.sampling.transfer import to_device
from vllm_infogain.sampling.whole_rows import WholeLogits


def compare_with_previous(
    whole: WholeLogits, batch_metadata: Sequence[SamplingMetadata], row_starts: np.ndarray
) -> tuple[dict[int, torch.Tensor], dict[int, torch.Tensor]]:
    """By request of KLASS: its log-probabilities [rows, columns] and, where it has earlier ones, the divergence [rows].

    `row_starts`: where each request's rows begin. The memory of the earlier log-probabilities is used for the new ones.
    """
    logits = whole.logits
    now, divergence = {}, {}
    for index, metadata in enumerate(batch_metadata):
        if metadata.params.sampler != "klass":
            continue
        start, count, before = row_starts[index], metadata.canvas_offsets.size, metadata.previous
        if before is None:
            now[index] = logits.new_empty(count, logits.shape[1])
        else:
            # Rows only ever drop out: none moves to where one lies that is still to be read.
            now[index] = before[:count]
            divergence[index] = logits.new_empty(count)
            still = np.arange(count) if metadata.previous_rows is None else metadata.previous_rows
            (still_rows,) = to_device([still], logits.device)
        for part in slices(count, logits.shape[1]):
            found = whole.log_probabilities(slice(start + part.start, start + part.stop))
            if before is not None:
                divergence[index][part] = _divergence(found, before[still_rows[part]])
            now[index][part] = found
    return now, divergence


def _divergence(now: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
    """KL(now || before) [rows], nats, of log-probabilities [rows, columns]."""
    # A token forbidden at both steps has -inf - -inf; it weighs nothing.
    return (now.exp() * torch.where(now == -torch.inf, 0.0, now - before)).sum(-1)
