"""How many positions a step writes. Always recomputed from the masks that remain, so that none is ever stranded."""

import math

from vllm_infogain.params import DecodingParams


def block_steps(params: DecodingParams, start: int, end: int) -> int:
    """The steps that the block of canvas offsets [start, end) gets of the canvas's `steps`: its share, at least 1."""
    assert params.steps is not None
    share = params.steps / params.canvas_length
    return max(1, math.ceil(end * share - 1e-9) - math.ceil(start * share - 1e-9))


def tokens_to_write(params: DecodingParams, masked: int, step: int, start: int, end: int) -> int:
    """Positions to write in the `step`-th step (from 0) of the block [start, end), of which `masked` are left.

    fixed: K. linear: an equal share of the masks for each step left. cosine: the share of masks that remains after
    step i of S is cos(pi/2 x i/S), so that early steps write few (MaskGIT). The last step takes what is left.
    """
    if params.schedule == "fixed":
        return min(params.tokens_per_step, masked)
    steps = block_steps(params, start, end)
    if step >= steps - 1:
        return masked
    if params.schedule == "linear":
        return math.ceil(masked / (steps - step))
    remains = math.cos(math.pi / 2 * (step + 1) / steps) / math.cos(math.pi / 2 * step / steps)
    return min(masked, max(1, masked - math.floor(masked * remains + 1e-9)))
