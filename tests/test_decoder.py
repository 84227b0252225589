"""The decoder's state machine, driven by a stub model, against the oracle: whole groups and parts of them."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stub_model import MASK_ID, VOCAB, Forwards, StubModel, drive

from vllm_infogain.reference import oracle
from vllm_infogain.request.params import LOOKAHEAD_SAMPLERS, SAMPLERS, DecodingParams
from vllm_infogain.sampling import make_decoder
from vllm_infogain.sampling.read_logits import read
from vllm_infogain.sampling.schedule import plan_blocks

PROMPT = [1, 2, 3]


def that_go_together(params: DecodingParams) -> DecodingParams:
    """With what `parse_params` refuses changed to what it accepts."""
    if params.block_causal:
        params = replace(params, cache="none", uncertainty_scope="block", block_length=max(1, params.block_length))
    if params.cache == "dual" and params.looks_ahead:
        params = replace(params, uncertainty_scope="block")
    ids = params.guidance_prompt_ids
    if params.block_causal and ids and (len(ids) - len(PROMPT)) % params.block_length:
        params = replace(params, guidance_prompt_ids=None)
    if params.schedule != "fixed":
        ample = replace(params, steps=params.canvas_length)
        params = replace(params, steps=max(params.steps, len(plan_blocks(ample, len(PROMPT), MASK_ID))))
    return replace(params, bypass_mode="fill") if params.sampler == "beam" else params


settings_of_requests = st.builds(
    DecodingParams,
    sampler=st.sampled_from(SAMPLERS),
    num_candidates=st.integers(1, 9),
    position_temperature=st.sampled_from([None, 0.0, 0.1, 2.0]),
    position_score=st.sampled_from(["sampled", "confidence", "entropy", "margin"]),
    bypass_threshold=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    entropy_bound=st.sampled_from([0.0, 0.1, 1.5]),
    tokens_per_step=st.integers(1, 5),
    block_length=st.integers(0, 12),
    bypass_mode=st.sampled_from(["fill", "only"]),
    state_uncertainty=st.sampled_from(["mean", "sum"]),
    uncertainty_scope=st.sampled_from(["block", "sequence"]),
    cost_weight=st.sampled_from([0.0, 0.5, 1.0]),
    beam_width=st.integers(1, 4),
    num_generations=st.integers(1, 4),
    schedule=st.sampled_from(["fixed", "linear", "cosine", "maskgit", "dream", "per_block"]),
    steps=st.integers(1, 15),
    absolute_blocks=st.booleans(),
    eos_penalty=st.sampled_from([0.0, 2.0]),
    eos_last=st.booleans(),
    eos_ids=st.just((5,)),
    stop_ids=st.sampled_from([(), (5,), (4, 5)]),
    prune=st.booleans(),
    cache=st.sampled_from(["none", "prefix", "dual"]),
    cache_refresh=st.integers(0, 3),
    block_causal=st.booleans(),
    top_k=st.sampled_from([0, 2]),
    top_p=st.sampled_from([1.0, 0.6]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    canvas_length=st.integers(1, 13),
    guidance_scale=st.sampled_from([0.0, 0.0, 0.7, 3.5]),
    guidance_prompt_ids=st.none() | st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=9).map(tuple),
    return_trajectory=st.just(True),
).map(that_go_together)


@settings(max_examples=300)
@given(
    params=settings_of_requests,
    model_seed=st.integers(0, 3),
    parts=st.lists(st.integers(1, 9), min_size=1, max_size=5),
    is_prompt_computed=st.booleans(),
)
def test_any_request_equals_the_oracle_and_leaves_no_mask(
    params: DecodingParams, model_seed: int, parts: list[int], is_prompt_computed: bool
):
    block = params.block_length if params.block_causal else 0
    model, prompt = StubModel(model_seed, block), PROMPT
    is_prompt_computed = is_prompt_computed and not params.is_guided  # the guide's prompt never is
    computed = len(prompt) // block * block if block and is_prompt_computed else 0
    tokens, decoder = drive(model, prompt, params, parts, computed)
    expected = oracle.decode(model, prompt, params, MASK_ID)
    assert tokens == expected.tokens
    assert MASK_ID not in tokens
    for step, plain in zip(decoder.report.trajectory, expected.steps, strict=True):
        assert (step.positions, step.bypassed) == (plain.positions, plain.bypassed)
        assert len(step.objective) == len(plain.objective)
        for ours, definition in zip(step.objective, plain.objective, strict=True):
            assert (
                (params.prune and definition < plain.objective[plain.chosen])
                if ours is None
                else (ours == pytest.approx(definition, abs=1e-4))
            )
    written = [position for step in decoder.report.trajectory for position in step.positions]
    ends_early = len(tokens) < params.canvas_length
    assert len(written) == len(set(written)), "each position is written once"
    assert set(range(len(tokens))) <= set(written)
    assert ends_early or len(written) == params.canvas_length
    assert not ends_early or tokens[-1] in params.stop_ids
    entropies = [entropy for step in decoder.report.trajectory for entropy in step.entropies]
    assert abs(decoder.report.cumulative_entropy - sum(entropies)) < 1e-4
    steps = decoder.report.trajectory
    assert (decoder.report.steps, decoder.report.written) == (len(steps), len(written))
    assert decoder.report.bypassed_steps == sum(step.bypassed for step in steps)


def test_pruning_spares_candidates_and_changes_no_token():
    fields = {"tokens_per_step": 2, "bypass_threshold": 1.0, "position_temperature": 1.0, "canvas_length": 12}
    fields |= {"temperature": 0.0, "return_trajectory": True}
    spared = 0
    for seed in range(5):
        model = StubModel(seed)
        whole, one = drive(model, [1, 2], DecodingParams(**fields))
        pruned, other = drive(model, [1, 2], DecodingParams(**fields, prune=True))
        assert pruned == whole
        spared += one.report.candidates - other.report.candidates
        nothing = sum(step.objective.count(None) for step in other.report.trajectory)
        assert nothing == one.report.candidates - other.report.candidates
    assert spared > 0


@pytest.mark.parametrize("sampler", [*LOOKAHEAD_SAMPLERS, "best_of_n"])
def test_a_group_consumed_in_parts_takes_the_same_action(sampler: str):
    params = DecodingParams(
        sampler=sampler,
        tokens_per_step=2,
        bypass_threshold=1.0,
        position_temperature=1.0,
        canvas_length=12,
        temperature=1.0,
    )
    whole, _ = drive(StubModel(), [1, 2], params)
    for part in (1, 2, 3, 7):
        assert drive(StubModel(), [1, 2], params, [part])[0] == whole


def test_lookahead_prefers_the_action_that_settles_the_rest():
    """Two positions of equal entropy; only the second decides the third. LookUM and Info-Gain must write it."""

    def model(ids: torch.Tensor) -> torch.Tensor:
        logits = torch.zeros(*ids.shape, VOCAB)
        logits[..., 2:] = -30.0  # tokens 0 and 1 only, both at 1/2
        logits[:, 1, 0] += 0.2  # position 1 of the prompt + canvas: slightly surer, so greedy takes it
        decided = ids[:, 2] != MASK_ID
        logits[decided, 3, 0] = 30.0  # knowing position 2 settles position 3
        return logits

    choice = {}
    for sampler in ("confidence", "info_gain", "lookum"):
        params = DecodingParams(
            sampler=sampler,
            temperature=0.0,
            canvas_length=3,
            num_candidates=32,
            position_temperature=0.0 if sampler == "confidence" else 10.0,
            position_score="confidence",
            return_trajectory=True,
        )
        _, decoder = drive(model, [5], params)
        choice[sampler] = decoder.report.trajectory[0].positions
    assert choice == {"confidence": [0], "info_gain": [1], "lookum": [1]}


def test_blocks_finish_left_to_right():
    params = DecodingParams(block_length=4, canvas_length=10, temperature=0.0, return_trajectory=True)
    _, decoder = drive(StubModel(), [1], params)
    blocks = [position // 4 for step in decoder.report.trajectory for position in step.positions]
    assert blocks == sorted(blocks)


def test_the_parts_of_one_forward_count_once():
    params = DecodingParams(temperature=0.0, bypass_threshold=1.0, position_temperature=9.0, canvas_length=4)
    model = StubModel()
    whole = drive(model, [1], params)[1].report
    decoder, forwards = make_decoder([1], params, MASK_ID), Forwards(model, [1], params)
    while decoder.pending is not None:
        pending, is_first = decoder.pending, True
        while decoder.pending is pending and pending.remaining:
            metadata = decoder.metadata(1)
            (output,) = read(forwards.logits(pending, pending.part(1)), [metadata], MASK_ID)
            decoder.consume(1, output, first_of_forward=is_first)
            is_first = False
    assert len(forwards.windows) > whole.forwards
    assert decoder.report == whole
