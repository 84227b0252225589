"""What a canvas shows to its sampler."""

from dataclasses import dataclass

import numpy as np

from vllm_infogain.sampling.metadata import PositionStatistics


@dataclass(frozen=True)
class BlockView:
    """What a sampler sees of the state at one step: the active block's masked positions, in canvas order."""

    statistics: PositionStatistics  # of these positions alone
    canvas_offsets: np.ndarray  # [masked] int64: of these positions
    log_frequencies: np.ndarray | None = None  # [vocab] of a background text, for PC
    annealing: float = 1.0  # of the position temperature, by this step
    masked_elsewhere: bool = False  # positions outside the block count for H(z) too
