"""Beam search and best-of-N, and which samplers are the same as which others."""

import dataclasses
import math

import pytest
import torch
from stub_model import MASK_ID, StubModel, drive

from vllm_infogain.reference import oracle
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.best_of_n import generation_seeds
from vllm_infogain.sampling.rows import row_statistics

COMMON = {"canvas_length": 10, "tokens_per_step": 2, "return_trajectory": True}


@pytest.mark.parametrize("seed", range(8))
def test_a_beam_of_one_is_info_gain_token_for_token(seed):
    for temperature in (0.0, 1.0):
        shared = COMMON | {"temperature": temperature, "seed": seed, "block_length": 4}
        beam, _ = drive(StubModel(seed), [1, 2], DecodingParams(sampler="beam", beam_width=1, **shared))
        single, _ = drive(StubModel(seed), [1, 2], DecodingParams(sampler="info_gain", **shared))
        assert beam == single


def test_a_beam_keeps_the_best_by_the_sum_of_j_and_ends_with_the_least_entropy():
    params = DecodingParams(
        sampler="beam", beam_width=3, num_candidates=6, temperature=0.0, bypass_threshold=1.0, position_temperature=1.0,
        canvas_length=6, block_length=0,
    )  # fmt: skip
    model = StubModel(2)
    tokens, decoder = drive(model, [1], params)
    # The sum of J telescopes to H(z_0) - H(z_end) - sum of C, and H(z_end) = 0.
    trajectory = drive(model, [1], dataclasses.replace(params, return_trajectory=True))[1].report.trajectory
    start = row_statistics(model(torch.tensor([[1] + [MASK_ID] * 6]))[0, 1:]).entropy.mean().item()
    # The last position's J is H - H = 0; it had no rival and reports none.
    total = sum(step.objective[step.chosen] for step in trajectory if step.objective)
    assert total == pytest.approx(start - decoder.report.cumulative_entropy, abs=1e-4)
    assert tokens == oracle.decode(model, [1], params, MASK_ID).tokens


def test_best_of_n_is_the_generation_with_the_lowest_cumulative_entropy():
    params = DecodingParams(sampler="best_of_n", num_generations=6, temperature=1.0, seed=5, **COMMON)
    tokens, decoder = drive(StubModel(), [1, 2], params)
    generations = [
        drive(StubModel(), [1, 2], dataclasses.replace(params, sampler="entropy", position_temperature=0.1, seed=seed))
        for seed in generation_seeds(params)
    ]
    entropies = [generation.report.cumulative_entropy for _, generation in generations]
    assert len(set(entropies)) > 1
    best = entropies.index(min(entropies))
    assert tokens == generations[best][0]
    assert decoder.report.cumulative_entropy == entropies[best]


@pytest.mark.parametrize("seed", range(8))
def test_lookum_is_info_gain_with_a_cost_weight_of_0(seed):
    shared = COMMON | {"temperature": 1.0, "seed": seed}
    lookum, _ = drive(StubModel(seed), [1, 2], DecodingParams(sampler="lookum", **shared))
    free, _ = drive(StubModel(seed), [1, 2], DecodingParams(sampler="info_gain", cost_weight=0.0, **shared))
    assert lookum == free


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("score", ["confidence", "entropy", "margin"])
def test_one_candidate_at_position_temperature_0_is_the_greedy_sampler(score, temperature):
    shared = COMMON | {"temperature": temperature, "position_temperature": 0.0, "seed": 3, "bypass_threshold": 1.0}
    look = DecodingParams(sampler="info_gain", num_candidates=1, position_score=score, **shared)
    assert drive(StubModel(), [1, 2], look)[0] == drive(StubModel(), [1, 2], DecodingParams(sampler=score, **shared))[0]


def probability_of_entropy(nats: float) -> float:
    """The larger p of a coin with this entropy, by bisection."""
    low, high = 0.5, 1.0
    for _ in range(60):
        p = (low + high) / 2
        entropy = 0.0 if p == 1 else -p * math.log(p) - (1 - p) * math.log(1 - p)
        low, high = (p, high) if entropy > nats else (low, p)
    return low


def test_a_beam_finds_what_one_hypothesis_passes_by():
    """Three positions whose entropies depend on which others are written (tokens are always 0).

    Nothing written: 0.69 each. {0}: 0.6, 0.6. {1}: 0.65, 0.65. {2}: 0.69, 0.69. {1, 2} settles 0; any other pair
    leaves 0.6. J of the first action: 0: -0.6, 1: -0.65, 2: -0.69. One hypothesis starts with 0 and pays
    0.69 + 0.6 + 0.6; a beam of two also keeps 1, whose next action 2 has J = 0.65 - 0 - 0.65, and pays 0.69 + 0.65.
    """
    table = {
        frozenset(): 0.69,
        frozenset([0]): 0.6,
        frozenset([1]): 0.65,
        frozenset([2]): 0.69,
        frozenset([1, 2]): 1e-4,
    }

    def model(ids: torch.Tensor) -> torch.Tensor:  # vocabulary 0, 1 and, up to MASK_ID, tokens never predicted
        logits = torch.full((*ids.shape, MASK_ID + 1), -torch.inf)
        for row, canvas in enumerate((ids[:, 1:] != MASK_ID).tolist()):
            p = probability_of_entropy(table.get(frozenset(i for i, done in enumerate(canvas) if done), 0.6))
            logits[row, :, :2] = torch.tensor([p, 1 - p]).log()
        return logits

    params = DecodingParams(
        sampler="info_gain", temperature=0.0, canvas_length=3, num_candidates=32, position_temperature=10.0,
        position_score="confidence", bypass_threshold=1.0, return_trajectory=True, beam_width=2,
    )  # fmt: skip
    single = drive(model, [0], params)[1].report
    beam = drive(model, [0], dataclasses.replace(params, sampler="beam"))[1].report
    assert single.trajectory[0].positions == [0]
    assert sorted(single.trajectory[0].objective) == pytest.approx([-0.69, -0.65, -0.6], abs=1e-3)
    assert single.cumulative_entropy == pytest.approx(0.69 + 0.6 + 0.6, abs=1e-3)
    assert [step.positions for step in beam.trajectory] == [[1], [2], [0]]
    assert beam.cumulative_entropy == pytest.approx(0.69 + 0.65, abs=1e-3)
