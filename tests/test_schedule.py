"""Schedules: how many positions each step writes, and how many steps a request takes."""

import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_model import MASK_ID, StubModel, drive

from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.params import SAMPLERS, DecodingParams
from vllm_infogain.sampling.schedule import Block, next_write, plan_blocks, share_steps, tokens_to_write


def schedule(name: str, steps: int, size: int) -> list[int]:
    params, masked, counts = DecodingParams(schedule=name, steps=steps, canvas_length=size), size, []
    block = Block(0, size, masked=size, steps=steps)
    while masked:
        assert len(counts) < steps
        counts.append(tokens_to_write(params, masked, len(counts), block))
        masked -= counts[-1]
    return counts


def test_schedules_by_hand():
    assert schedule("linear", 4, 16) == [4, 4, 4, 4]
    assert schedule("linear", 4, 10) == [3, 3, 2, 2]
    # 16 cos(pi/2 x i/4): 14.78, 11.31, 6.12, 0 remain
    assert schedule("cosine", 4, 16) == [2, 4, 5, 5]
    assert schedule("linear", 20, 5) == [1, 1, 1, 1, 1]
    assert schedule("cosine", 1, 7) == [7]
    # 4 times from 1 to 0.001: the shares are 0.24975, 0.33289, 0.49900 and what is left, rounded down
    assert schedule("dream", 4, 16) == [3, 4, 4, 5]
    assert schedule("dream", 4, 4) == [0, 1, 1, 2]
    assert schedule("dream", 1, 7) == [7]


def maskgit(steps: int, size: int) -> list[int]:
    """How many positions each step of the released loop unmasks: written from its description, in fp32."""
    masked, counts = size, []
    for step in range(steps):
        share = torch.cos(torch.tensor((step + 1) / steps) * math.pi * 0.5)
        left = max(1, min(masked - 1, int((size * share).floor()))) if step < steps - 1 else 0
        counts.append(masked - left)
        masked = left
    return counts


def test_maskgits_schedule_is_the_published_one():
    # 12 cos(pi/2 x i/5): 11.41, 9.71, 7.05, 3.71 and nothing remain
    assert schedule("maskgit", 5, 12) == [1, 2, 2, 4, 3]
    assert schedule("cosine", 5, 12) == [1, 2, 3, 3, 3], "ours: the share of what remains, rounded step by step"
    assert schedule("maskgit", 50, 1024)[:6] == [1, 2, 2, 4, 4, 6]
    assert schedule("maskgit", 4, 1) == [0, 0, 0, 1]
    for steps in range(1, 40):
        for size in (1, 2, 3, 7, 12, 64, 256, 1024):
            assert schedule("maskgit", steps, size) == maskgit(steps, size)


def test_per_block_splits_a_blocks_length_whatever_of_it_is_masked():
    assert schedule("per_block", 5, 32) == [7, 7, 6, 6, 6]
    assert schedule("per_block", 40, 3) == [1, 1, 1]
    params = DecodingParams(
        schedule="per_block", steps=3, block_length=8, canvas_length=11, absolute_blocks=True, sampler="ar",
        temperature=0.0, return_trajectory=True,
    )  # fmt: skip
    # The prompt fills 3 of the first block's 8 places, the canvas ends 2 before the second one's end.
    assert plan_blocks(params, 3, MASK_ID) == [Block(0, 5, 5, 3), Block(5, 11, 6, 3)]
    _, decoder = drive(StubModel(), [1, 2, 3], params)
    assert [len(step.positions) for step in decoder.report.trajectory] == [3, 2, 3, 3]


def test_a_step_that_writes_nothing_is_passed_over():
    params = DecodingParams(schedule="dream", steps=4, canvas_length=4)
    block = Block(0, 4, masked=4, steps=4)
    assert next_write(params, 4, 0, block) == (1, 1)
    assert next_write(params, 1, 0, block) == (3, 1), "the last step takes what is left"
    assert next_write(params, 3, 2, block) == (2, 1)


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_a_schedule_never_takes_more_steps_than_given_and_ends_with_what_is_left(name):
    for steps in range(1, 12):
        for size in range(1, 20):
            counts = schedule(name, steps, size)
            assert len(counts) <= steps
            assert sum(counts) == size
            assert min(counts) >= 1


def test_blocks_share_the_steps_of_the_canvas():
    params = DecodingParams(
        sampler="ar",
        schedule="linear",
        steps=6,
        block_length=8,
        canvas_length=24,
        temperature=0.0,
        return_trajectory=True,
    )
    _, decoder = drive(StubModel(), [1], params)
    assert [len(step.positions) for step in decoder.report.trajectory] == [4] * 6
    for steps in range(4, 30):
        other = dataclasses.replace(params, steps=steps, block_length=6)
        assert drive(StubModel(), [1], other)[1].report.steps == min(24, steps)


def test_blocks_share_the_steps_by_their_masks_and_none_goes_without():
    assert share_steps(3, [2, 2, 1]) == [1, 1, 1]
    assert share_steps(8, [8, 8, 8, 2]) == [3, 2, 2, 1]
    assert share_steps(6, [4, 0, 8]) == [2, 0, 4], "a block of given text takes no step"
    with pytest.raises(ParameterError, match=r"steps=2: 3 blocks are to be filled, .* give 3 or more"):
        share_steps(2, [2, 2, 1])


def test_absolute_blocks_begin_where_the_prompt_leaves_off():
    params = DecodingParams(schedule="linear", steps=4, canvas_length=9, block_length=4, block_causal=True)
    assert plan_blocks(params, 6, MASK_ID) == [Block(0, 2, 2, 1), Block(2, 6, 4, 2), Block(6, 9, 3, 1)]
    assert plan_blocks(params, 4, MASK_ID)[0] == Block(0, 4, 4, 2)


@settings(max_examples=300, deadline=None)
@given(
    canvas=st.lists(st.sampled_from([1, 2, MASK_ID]), min_size=1, max_size=30).filter(lambda canvas: MASK_ID in canvas),
    prompt_length=st.integers(1, 9),
    block_length=st.integers(0, 12),
    absolute_blocks=st.booleans(),
    schedule=st.sampled_from(["linear", "cosine", "maskgit", "dream"]),
    spare=st.integers(0, 12),
    sampler=st.sampled_from(SAMPLERS),
    bypass_mode=st.sampled_from(["fill", "only"]),
    stop_ids=st.sampled_from([(), (5,)]),
)
def test_no_request_takes_more_steps_than_given(canvas, prompt_length, block_length, absolute_blocks, spare, **knobs):
    if knobs["sampler"] == "beam":
        knobs["bypass_mode"] = "fill"
    params = DecodingParams(
        **knobs, steps=1 << 16, block_length=block_length, absolute_blocks=absolute_blocks, temperature=0.0,
        canvas_length=len(canvas), diffusion_seed_canvas=tuple(canvas), num_candidates=2, beam_width=2,
        num_generations=2, entropy_bound=0.0, factor=0.0, return_trajectory=True,
    )  # fmt: skip
    blocks = [block for block in plan_blocks(params, prompt_length, MASK_ID) if block.masked]
    params = dataclasses.replace(params, steps=len(blocks) + spare)
    tokens, decoder = drive(StubModel(), [1] * prompt_length, params)
    assert decoder.report.steps <= params.steps
    assert MASK_ID not in tokens
    written = {place for step in decoder.report.trajectory for place in step.positions}
    assert written >= {place for place, token in enumerate(canvas[: len(tokens)]) if token == MASK_ID}
    if len(tokens) == len(canvas) and not knobs["stop_ids"]:
        for block in (block for block in plan_blocks(params, prompt_length, MASK_ID) if block.masked):
            taken = [step for step in decoder.report.trajectory if step.positions[0] in range(block.start, block.end)]
            assert 1 <= len(taken) <= block.steps <= params.steps


@pytest.mark.parametrize("sampler", ["eb", "factor"])
def test_samplers_that_choose_how_many_to_write_end_with_the_schedule_too(sampler: str):
    params = DecodingParams(sampler=sampler, schedule="linear", steps=3, canvas_length=8, entropy_bound=0.0, factor=0.0)
    tokens, decoder = drive(StubModel(), [1, 2], dataclasses.replace(params, return_trajectory=True))
    assert [len(step.positions) for step in decoder.report.trajectory] == [1, 1, 6]
    assert MASK_ID not in tokens


def test_a_bypass_does_not_strand_masks_or_lengthen_the_schedule():
    for mode in ("fill", "only"):
        params = DecodingParams(
            schedule="cosine", steps=5, canvas_length=13, bypass_threshold=0.3, bypass_mode=mode, block_length=0
        )
        for scope in ("block", "sequence"):
            scoped = dataclasses.replace(params, uncertainty_scope=scope, block_length=7 if scope == "sequence" else 0)
            tokens, decoder = drive(StubModel(), [1, 2], scoped)
            assert MASK_ID not in tokens
            assert decoder.report.steps <= 5
