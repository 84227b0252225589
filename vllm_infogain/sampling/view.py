"""What a track shows to its sampler."""

from dataclasses import dataclass

import torch

from vllm_infogain.sampling.statistics import RowStatistics


@dataclass(frozen=True)
class View:
    """What a sampler sees of the state at one step: the active block's masked positions, in canvas order."""

    logits: torch.Tensor  # [masked, vocab] fp32
    statistics: RowStatistics  # [masked]
    offsets: torch.Tensor  # [masked] int64: places in the canvas
    previous: torch.Tensor | None = None  # [masked, vocab] log-probabilities one step earlier, for KLASS
    log_frequencies: torch.Tensor | None = None  # [vocab] of a background text, for PC
    masked_elsewhere: bool = False  # positions outside the block count for H(z) too
