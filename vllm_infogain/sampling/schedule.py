"""How many positions a step writes. Always recomputed from the masks that remain, so that none is ever stranded."""

import math

from vllm_infogain.params import DecodingParams


def block_steps(params: DecodingParams, block_size: int) -> int:
    """The steps that a block of `block_size` positions gets of the canvas's `steps`, its share rounded up."""
    assert params.steps is not None
    return math.ceil(params.steps * block_size / params.canvas_length)


def tokens_to_write(params: DecodingParams, masked: int, step: int, block_size: int) -> int:
    """Positions to write in the `step`-th step (from 0) of a block with `masked` of `block_size` positions masked.

    fixed: K. linear: an equal share of the masks for each step left. cosine: the share of masks that remains after
    step i of S is cos(pi/2 x i/S), so that early steps write few (MaskGIT). The last step takes what is left.
    """
    if params.schedule == "fixed":
        return min(params.tokens_per_step, masked)
    steps = block_steps(params, block_size)
    if step >= steps - 1:
        return masked
    if params.schedule == "linear":
        return math.ceil(masked / (steps - step))
    remains = math.cos(math.pi / 2 * (step + 1) / steps) / math.cos(math.pi / 2 * step / steps)
    return min(masked, max(1, masked - math.floor(masked * remains + 1e-9)))
