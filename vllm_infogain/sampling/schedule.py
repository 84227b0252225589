"""How many positions a step writes. Always recomputed from the masks that remain, so that none is ever stranded.

    schedule   written by step i (from 0) of a block's S steps; m masks are left of the L it began with
    fixed      K, at most m
    linear     m / (S - i), rounded up
    cosine     m - floor(m c(i + 1) / c(i)), at least 1: few at first; rounding adds up from step to step
    maskgit    m - left, left = floor(L c(i + 1)), from 1 to m - 1: MaskGIT (arXiv 2202.04200) and MMaDA
    dream      m (1 - t(i + 1) / t(i)), rounded down: Dream's released code; t falls from 1 to 0.001 in equal steps
    per_block  n / S, rounded down, one more in the first n mod S steps, of a block of n positions, masked or not:
               SDAR's and LLaDA2's released code

c(i) = cos(pi/2 x i/S). The last step writes all that is left. `dream` and `maskgit` have steps that write nothing; as
they change no state, they are passed over without a forward.

`steps` is a bound for the whole canvas. Blocks share it by their masks, and each that has any gets one at least. With
`per_block` every block has S = `steps`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from vllm_infogain.request.canvas import initial_canvas
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.params import DecodingParams


@dataclass(frozen=True)
class Block:
    """Consecutive positions that are decoded together. Start and end are canvas offsets."""

    start: int
    end: int
    masked: int  # positions to fill, before its first step
    steps: int = 0  # its share of `steps`; 0 where the schedule is `fixed`, or nothing is to fill


def plan_blocks(params: DecodingParams, prompt_length: int, mask_id: int) -> list[Block]:
    """The blocks of a request's canvas, left to right. With absolute ones the first may begin in the prompt."""
    length, canvas = params.canvas_length, initial_canvas(params, mask_id)
    size = params.block_length or prompt_length + length
    inside = prompt_length % size if params.absolute_blocks or params.block_causal else 0
    starts = [0, *range(size - inside, length, size)]
    bounds = list(zip(starts, [*starts[1:], length], strict=True))
    masked = [canvas[start:end].count(mask_id) for start, end in bounds]
    steps = [0] * len(bounds)
    if params.schedule != "fixed":
        assert params.steps is not None
        every = params.schedule == "per_block"
        steps = [params.steps] * len(bounds) if every else share_steps(params.steps, masked)
    return [Block(*bound, *counts) for bound, *counts in zip(bounds, masked, steps, strict=True)]


def share_steps(steps: int, masked: Sequence[int]) -> list[int]:
    """Steps of each block, `steps` in all: its share of the masks, but one at least where there is any.

    Raises:
        ParameterError: fewer steps than blocks to fill.
    """
    total, waiting = sum(masked), sum(count > 0 for count in masked)
    if steps < waiting:
        raise ParameterError(
            "steps", steps,
            f"{waiting} blocks are to be filled, each in one step at least; give {waiting} or more, or a longer "
            "block_length",
        )  # fmt: skip
    shares, seen, given = [], 0, 0
    for count in masked:
        seen += count
        waiting -= count > 0
        until = given
        if count:
            fair = math.ceil(steps * seen / total)
            until = max(given + 1, min(fair, steps - waiting))
        shares.append(until - given)
        given = until
    return shares


def tokens_to_write(params: DecodingParams, masked: int, step: int, block: Block) -> int:
    """Positions to write in the `step`-th step (from 0) of a block of which `masked` are left."""
    if params.schedule == "fixed":
        return min(params.tokens_per_step, masked)
    steps = block.steps
    if step >= steps - 1:
        return masked
    match params.schedule:
        case "linear":
            return math.ceil(masked / (steps - step))
        case "cosine":
            remains = math.cos(math.pi / 2 * (step + 1) / steps) / math.cos(math.pi / 2 * step / steps)
            return min(masked, max(1, masked - math.floor(masked * remains + 1e-9)))
        case "maskgit":
            left = math.floor(block.masked * maskgit_shares(steps)[step])
            return masked - max(1, min(masked - 1, left))
        case "per_block":
            # Of the whole block, though a part of it may be prompt or lie behind the canvas.
            size = params.block_length or block.end - block.start
            return min(masked, size // steps + (step < size % steps))
        case "dream":
            return int(np.float32(masked) * dream_shares(steps)[step])
        case _:
            raise AssertionError(params.schedule)


def next_write(params: DecodingParams, masked: int, step: int, block: Block) -> tuple[int, int]:
    """The first step of the block, from the `step`-th on, that writes anything, and how many positions it writes.

    A step that writes nothing changes no state: the next one sees the same logits, and no forward is spent on it.
    """
    while not (written := tokens_to_write(params, masked, step, block)):
        step += 1
    return step, written


def annealing(params: DecodingParams, step: int, block: Block) -> float:
    """What is left of the position temperature in the `step`-th step of a block's schedule: 1, but for `maskgit`.

    MMaDA's released code multiplies it by 1 - r in every step, r = 1 / S, 2 / S and so on. (MaskGIT's own is 1 - r.)
    Where the schedule is `fixed`, S is the number of steps that it takes.
    """
    if params.sampler != "maskgit":
        return 1.0
    steps = block.steps or math.ceil(block.masked / params.tokens_per_step)
    return math.prod(1 - (earlier + 1) / steps for earlier in range(min(step + 1, steps)))


@lru_cache(maxsize=64)
def dream_shares(steps: int) -> np.ndarray:
    """[steps] fp32, as Dream's released code computes it: the share of the masks that each step writes.

    Time does not reach 0: of 64 masks the first of 64 steps would write 0.999, that is none, and the last one writes 2.
    """
    times = torch.linspace(1, 1e-3, steps + 1)
    return (1 - times[1:] / times[:-1]).numpy()


@lru_cache(maxsize=64)
def maskgit_shares(steps: int) -> np.ndarray:
    """[steps] fp32, as MMaDA's released code computes it: the share of a block's first masks that each step leaves."""
    ratios = torch.tensor([(step + 1) / steps for step in range(steps)])
    return torch.cos(ratios * math.pi * 0.5).numpy()
