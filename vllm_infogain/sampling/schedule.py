"""How many positions a step writes. Always recomputed from the masks that remain, so that none is ever stranded."""

import math
from functools import lru_cache

import numpy as np
import torch

from vllm_infogain.params import DecodingParams


def block_steps(params: DecodingParams, start: int, end: int) -> int:
    """The steps that the block of canvas offsets [start, end) gets of the canvas's `steps`: its share, at least 1."""
    assert params.steps is not None
    share = params.steps / params.canvas_length
    return max(1, math.ceil(end * share - 1e-9) - math.ceil(start * share - 1e-9))


def tokens_to_write(params: DecodingParams, masked: int, step: int, start: int, end: int) -> int:
    """Positions to write in the `step`-th step (from 0) of the block [start, end), of which `masked` are left.

    fixed: K. linear: an equal share of the masks for each step left. cosine: the share of masks that remains after
    step i of S is cos(pi/2 x i/S), so that early steps write few (MaskGIT). dream: time falls from 1 to 0.001 in S
    equal steps; a step from t to s writes the share 1 - s/t of the masks, rounded down, maybe to none. The last step
    takes what is left.
    """
    if params.schedule == "fixed":
        return min(params.tokens_per_step, masked)
    steps = block_steps(params, start, end)
    if step >= steps - 1:
        return masked
    if params.schedule == "linear":
        return math.ceil(masked / (steps - step))
    if params.schedule == "dream":
        return int(np.float32(masked) * dream_shares(steps)[step])
    remains = math.cos(math.pi / 2 * (step + 1) / steps) / math.cos(math.pi / 2 * step / steps)
    return min(masked, max(1, masked - math.floor(masked * remains + 1e-9)))


def next_write(params: DecodingParams, masked: int, step: int, start: int, end: int) -> tuple[int, int]:
    """The first step of the block, from the `step`-th on, that writes anything, and how many positions it writes.

    A step that writes nothing changes no state: the next one sees the same logits, and no forward is spent on it.
    """
    while not (written := tokens_to_write(params, masked, step, start, end)):
        step += 1
    return step, written


@lru_cache(maxsize=64)
def dream_shares(steps: int) -> np.ndarray:
    """[steps] fp32, as Dream's released code computes it: the share of the masks that each step writes.

    Time does not reach 0: of 64 masks the first of 64 steps would write 0.999, that is none, and the last one writes 2.
    """
    times = torch.linspace(1, 1e-3, steps + 1)
    return (1 - times[1:] / times[:-1]).numpy()
