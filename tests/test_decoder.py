"""The decoder's state machine, driven by a stub model, against the oracle; and groups consumed in parts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_infogain.params import LOOKAHEAD_SAMPLERS, SAMPLERS, DecodingParams
from vllm_infogain.reference import oracle
from vllm_infogain.sampling import make_decoder
from vllm_infogain.sampling.decoder import Decoder
from vllm_infogain.sampling.statistics import adjust_logits, row_statistics

VOCAB, MASK_ID = 7, 6


class StubModel:
    """Logits that depend on every token and its position, so that each action changes every other row."""

    def __init__(self, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(64, 64, VOCAB, VOCAB, generator=generator)

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:  # [n, length] -> [n, length, vocab]
        length = ids.shape[1]
        one_hot = torch.nn.functional.one_hot(ids, VOCAB).float()
        return torch.einsum("njv,ijvw->niw", one_hot, self.weights[:length, :length]) / length**0.5 * 2


def drive(
    model: StubModel, prompt: list[int], params: DecodingParams, part: int = 1_000_000
) -> tuple[list[int], Decoder]:
    """Run a decoder to its end, `part` sequences of a group at a time."""
    decoder = make_decoder(prompt, params, MASK_ID)
    tokens: list[int] = []
    while decoder.pending is not None:
        sequences, masked = decoder.pending.part(part)
        logits = model(sequences).gather(1, masked.unsqueeze(-1).expand(-1, -1, VOCAB))
        logits = adjust_logits(logits, MASK_ID, params.eos_ids, params.eos_penalty)
        decoder.consume(logits, row_statistics(logits))
        tokens += decoder.take_finished()
    return tokens, decoder


settings_of_requests = st.builds(
    DecodingParams,
    sampler=st.sampled_from(SAMPLERS),
    num_candidates=st.integers(1, 9),
    position_temperature=st.sampled_from([None, 0.0, 0.1, 2.0]),
    position_score=st.sampled_from(["sampled", "confidence", "entropy", "margin"]),
    bypass_threshold=st.sampled_from([0.0, 0.5, 0.8, 1.0]),
    tokens_per_step=st.integers(1, 5),
    block_length=st.integers(0, 12),
    bypass_mode=st.sampled_from(["fill", "only"]),
    state_uncertainty=st.sampled_from(["mean", "sum"]),
    uncertainty_scope=st.sampled_from(["block", "sequence"]),
    cost_weight=st.sampled_from([0.0, 0.5, 1.0]),
    beam_width=st.integers(1, 4),
    num_generations=st.integers(1, 4),
    schedule=st.sampled_from(["fixed", "linear", "cosine"]),
    steps=st.integers(1, 15),
    absolute_blocks=st.booleans(),
    eos_penalty=st.sampled_from([0.0, 2.0]),
    eos_ids=st.just((5,)),
    stop_ids=st.sampled_from([(), (5,), (4, 5)]),
    top_k=st.sampled_from([0, 2]),
    top_p=st.sampled_from([1.0, 0.6]),
    temperature=st.sampled_from([0.0, 0.7, 1.0]),
    seed=st.integers(0, 2**63 - 1),
    canvas_length=st.integers(1, 13),
    return_trajectory=st.just(True),
).filter(lambda params: not (params.sampler == "beam" and params.bypass_mode == "only"))


@settings(max_examples=200, deadline=None)
@given(params=settings_of_requests, model_seed=st.integers(0, 3), part=st.integers(1, 9))
def test_any_request_equals_the_oracle_and_leaves_no_mask(params: DecodingParams, model_seed: int, part: int):
    model, prompt = StubModel(model_seed), [1, 2, 3]
    tokens, decoder = drive(model, prompt, params, part)
    expected = oracle.decode(model, prompt, params, MASK_ID)
    assert tokens == expected.tokens
    assert MASK_ID not in tokens
    for step, plain in zip(decoder.report.trajectory, expected.steps, strict=True):
        assert step.positions == plain.positions
        torch.testing.assert_close(torch.tensor(step.objective), torch.tensor(plain.objective), atol=1e-4, rtol=0)
    written = [position for step in decoder.report.trajectory for position in step.positions]
    ends_early = len(tokens) < params.canvas_length
    assert len(written) == len(set(written)), "each position is written once"
    assert set(range(len(tokens))) <= set(written)
    assert ends_early or len(written) == params.canvas_length
    assert not ends_early or tokens[-1] in params.stop_ids
    entropies = [entropy for step in decoder.report.trajectory for entropy in step.entropies]
    assert abs(decoder.report.cumulative_entropy - sum(entropies)) < 1e-4


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
        assert drive(StubModel(), [1, 2], params, part)[0] == whole


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
