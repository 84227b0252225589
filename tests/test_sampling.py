"""The algorithm's functions on logits written by hand, against numbers worked out here from the definitions."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
import torch

from vllm_infogain.request.constraints import Constraints
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.actions import Proposal, choose_positions, propose, step_generator, step_rng_key
from vllm_infogain.sampling.block_view import BlockView
from vllm_infogain.sampling.logits import adjust_logits
from vllm_infogain.sampling.metadata import SamplingMetadata
from vllm_infogain.sampling.objective import action_cost, settled_objective, state_uncertainty
from vllm_infogain.sampling.read_logits import read
from vllm_infogain.sampling.rows import row_statistics
from vllm_infogain.sampling.scores import position_score

# Three masked positions over a vocabulary of four; probabilities chosen, logits are their logarithms (plus a shift,
# which must not matter).
P = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.01, 0.01], [0.4, 0.3, 0.2, 0.1]])
LOGITS = P.log() + torch.tensor([[1.0], [-3.0], [30.0]])
ENTROPY = [
    1.75 * math.log(2),
    -(0.97 * math.log(0.97) + 0.03 * math.log(0.01)),
    math.log(10) - 0.4 * math.log(4) - 0.3 * math.log(3) - 0.2 * math.log(2),
]


def view(params: DecodingParams, logits: torch.Tensor = LOGITS, seed: int = 0) -> BlockView:
    """What the sampler sees of these rows; a fifth column is the mask token's, of no weight."""
    offsets = np.arange(len(logits))
    metadata = SamplingMetadata(params, offsets[None], np.array([step_rng_key(seed, 0)]), offsets[None])
    (output,) = read(torch.nn.functional.pad(logits, (0, 1), value=-torch.inf), [metadata], mask_id=4)
    return BlockView(output.statistics[0], offsets)


def proposed(params: DecodingParams, logits: torch.Tensor = LOGITS, seed: int = 0) -> Proposal:
    count = min(params.tokens_per_step, len(logits))
    return propose(view(params, logits, seed), params, count, step_generator(seed, 0))


def test_row_statistics_are_those_of_the_definition():
    statistics = row_statistics(LOGITS)
    torch.testing.assert_close(statistics.entropy, torch.tensor(ENTROPY), atol=1e-5, rtol=0)
    assert statistics.top_token.tolist() == [0, 0, 0]
    torch.testing.assert_close(statistics.top_probability, torch.tensor([0.5, 0.97, 0.4]), atol=1e-5, rtol=0)
    torch.testing.assert_close(statistics.second_probability, torch.tensor([0.25, 0.01, 0.3]), atol=1e-5, rtol=0)


def test_a_forbidden_token_is_as_if_it_were_not_in_the_vocabulary():
    logits = torch.cat([LOGITS, torch.full((3, 1), 50.0)], -1)
    statistics = row_statistics(adjust_logits(logits, DecodingParams(constraints=Constraints(banned=((4,),)))))
    torch.testing.assert_close(statistics.entropy, torch.tensor(ENTROPY), atol=1e-5, rtol=0)
    assert statistics.top_token.tolist() == [0, 0, 0]


def test_entropy_of_a_certain_and_of_a_uniform_row():
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf], [7.0, 7.0, 7.0, 7.0]])
    torch.testing.assert_close(row_statistics(logits).entropy, torch.tensor([0.0, math.log(4)]), atol=1e-6, rtol=0)


def test_state_uncertainty_is_the_mean_or_the_sum_and_0_of_nothing():
    entropy = np.array([[1.0, 2.0, 6.0]], dtype=np.float32)
    assert state_uncertainty(entropy, "mean").tolist() == [3.0]
    assert state_uncertainty(entropy, "sum").tolist() == [9.0]
    assert state_uncertainty(entropy[:, :0], "mean").tolist() == [0.0]


def test_the_objective_by_hand():
    entropy = np.array([0.5, 1.0, 3.0])
    cost = action_cost(entropy, np.array([[0, 1], [1, 2]]))
    assert cost.tolist() == [1.5, 4.0]
    now = state_uncertainty(entropy, "mean")
    assert now == 1.5
    after = np.array([0.75, 0.25])

    def objective(**fields) -> list[float]:
        return (settled_objective(DecodingParams(**fields), now, cost) - after).tolist()

    assert objective(sampler="info_gain") == [1.5 - 0.75 - 1.5, 1.5 - 0.25 - 4]
    assert objective(sampler="info_gain", cost_weight=0.5) == [1.5 - 0.75 - 0.75, 1.5 - 0.25 - 2]
    assert objective(sampler="lookum") == [-0.75, -0.25]


def test_position_scores_by_hand():
    seen = view(DecodingParams(num_candidates=2))
    tokens = np.array([[0, 1, 2], [3, 0, 0]])
    drawn = dataclasses.replace(seen.statistics, tokens=tokens, probabilities=P.numpy()[[0, 1, 2], tokens])
    at = dataclasses.replace(seen, statistics=drawn)

    def score(name: str) -> np.ndarray:
        return position_score(name, at, DecodingParams(), step_generator(0, 0))

    np.testing.assert_allclose(score("sampled"), [[0.5, 0.01, 0.2], [0.125, 0.97, 0.4]], atol=1e-5)
    np.testing.assert_allclose(score("confidence")[1], [0.5, 0.97, 0.4], atol=1e-5)
    np.testing.assert_allclose(score("entropy")[0], [-entropy for entropy in ENTROPY], atol=1e-5)
    np.testing.assert_allclose(score("margin")[0], [0.25, 0.96, 0.1], atol=1e-5)
    assert (-score("ar")[0]).argsort().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("sampler", "first", "second"),
    [("confidence", 1, 0), ("entropy", 1, 0), ("margin", 1, 0), ("ar", 0, 1)],
)
def test_a_greedy_sampler_takes_its_two_best_positions(sampler: str, first: int, second: int):
    for written, positions in ((1, [first]), (2, sorted([first, second]))):
        params = DecodingParams(sampler=sampler, temperature=0.0, tokens_per_step=written)
        proposal = proposed(params)
        assert proposal.masked_indices.tolist() == [positions]
        assert proposal.tokens.tolist() == [[0] * written]


def test_equal_scores_go_to_the_lower_position():
    for written in (1, 3):
        chosen = choose_positions(np.zeros((2, 50), np.float32), written, 0.0, step_generator(0, 0))
        assert chosen.tolist() == [list(range(written))] * 2


def test_sure_positions_fill_the_action_and_bypass_the_look_ahead():
    params = DecodingParams(temperature=0.0, bypass_threshold=0.8)
    proposal = proposed(params)
    assert proposal.bypassed
    assert proposal.masked_indices.tolist() == [[1]]


def test_sure_positions_are_in_every_candidate_and_the_rest_is_proposed():
    params = DecodingParams(temperature=0.0, bypass_threshold=0.8, tokens_per_step=2, position_temperature=5.0)
    proposal = proposed(params)
    assert not proposal.bypassed
    assert proposal.masked_indices.tolist() == [[0, 1], [1, 2]], "the greedy action first, each action once"


def test_a_sure_position_has_the_same_token_in_every_candidate():
    params = DecodingParams(
        temperature=1.0, bypass_threshold=0.45, tokens_per_step=2, position_temperature=5.0, num_candidates=64
    )
    proposal = proposed(params, LOGITS[[2, 0, 2]])  # only position 1 is sure, at 0.5
    assert len(proposal.masked_indices) > 4
    assert (proposal.masked_indices == 1).any(-1).all()
    assert len(set(proposal.tokens[proposal.masked_indices == 1].tolist())) == 1


def test_a_threshold_of_1_never_bypasses():
    params = DecodingParams(temperature=0.0, bypass_threshold=1.0, position_temperature=5.0, num_candidates=64)
    proposal = proposed(params)
    assert sorted(proposal.masked_indices.flatten().tolist()) == [0, 1, 2]
    assert proposal.masked_indices[0].tolist() == [1]


def test_candidates_that_differ_only_in_a_token_are_both_kept():
    params = DecodingParams(temperature=1.0, bypass_threshold=1.0, position_temperature=0.0, num_candidates=64)
    proposal = proposed(params, LOGITS[[2]].repeat(2, 1))
    pairs = [tuple(pair) for pair in np.concatenate([proposal.masked_indices, proposal.tokens], -1).tolist()]
    assert len(pairs) == len(set(pairs)) > 4
    assert len({position for position, _ in pairs}) < len(pairs)


def test_an_action_that_writes_all_that_is_left_needs_no_candidates():
    params = DecodingParams(temperature=1.0, tokens_per_step=5, num_candidates=8)
    proposal = proposed(params)
    assert proposal.masked_indices.tolist() == [[0, 1, 2]]
    assert not proposal.bypassed


def test_the_fill_of_what_is_left_counts_as_bypassed_where_all_of_it_is_sure():
    for threshold, bypassed in ((0.39, True), (0.41, False)):  # the least sure is 0.4
        proposal = proposed(DecodingParams(tokens_per_step=3, bypass_threshold=threshold))
        assert (len(proposal.masked_indices), proposal.bypassed) == (1, bypassed)


def test_the_greedy_action_at_n_1_is_the_first_of_many():
    one = DecodingParams(num_candidates=1, bypass_threshold=1.0, tokens_per_step=2)
    many = DecodingParams(num_candidates=8, bypass_threshold=1.0, tokens_per_step=2)
    first, group = proposed(one, seed=5), proposed(many, seed=5)
    assert group.masked_indices[0].tolist() == first.masked_indices[0].tolist()
    assert group.tokens[0].tolist() == first.tokens[0].tolist()


def chi_square(counts: list[int], expected: list[float]) -> float:
    total = sum(counts)
    return sum((count - total * share) ** 2 / (total * share) for count, share in zip(counts, expected, strict=True))


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_tokens_are_drawn_from_the_softmax_at_the_token_temperature(temperature):
    row, params = LOGITS[[2]].repeat(20_000, 1), DecodingParams(sampler="entropy", temperature=temperature)
    statistics = view(params, row).statistics
    counts = Counter(statistics.tokens[0].tolist())
    expected = (LOGITS[2] / temperature).softmax(-1).tolist()
    # 99.9% of chi-square with 3 degrees of freedom: 16.3
    assert chi_square([counts[token] for token in range(4)], expected) < 16.3
    assert np.abs(statistics.probabilities[0] - P[2].numpy()[statistics.tokens[0]]).max() < 1e-6, "at temperature 1"


def test_top_k_and_top_p_change_what_is_drawn_and_nothing_else():
    row = LOGITS[[2]].repeat(20_000, 1)  # 0.4, 0.3, 0.2, 0.1
    for fields in ({"top_k": 2}, {"top_p": 0.6}):
        statistics = view(DecodingParams(sampler="entropy", **fields), row).statistics
        counts = Counter(statistics.tokens[0].tolist())
        assert counts.keys() == {0, 1}
        # 99.9% of chi-square with 1 degree of freedom: 10.8
        assert chi_square([counts[0], counts[1]], [4 / 7, 3 / 7]) < 10.8
        np.testing.assert_allclose(statistics.probabilities[0], P[2].numpy()[statistics.tokens[0]], atol=1e-6)
        np.testing.assert_allclose(statistics.entropy, ENTROPY[2], atol=1e-5)
        np.testing.assert_allclose(statistics.top_probability, 0.4, atol=1e-6)


def test_positions_are_drawn_without_replacement_from_the_softmax_at_the_position_temperature():
    scores, temperature = np.array([0.9, 0.5, 0.1], np.float32), 0.4
    drawn = choose_positions(np.tile(scores, (20_000, 1)), 2, temperature, step_generator(4, 0)).tolist()
    p = (torch.from_numpy(scores) / temperature).softmax(-1).tolist()
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    counts = Counter(map(tuple, drawn))
    # First i, then j among the rest. 99.9% of chi-square with 5 degrees of freedom: 20.5
    assert chi_square([counts[pair] for pair in pairs], [p[i] * p[j] / (1 - p[i]) for i, j in pairs]) < 20.5


def test_the_draws_of_a_step_depend_on_seed_and_step_only():
    def draw(seed: int, step: int) -> list:
        return step_generator(seed, step).random(4).tolist()

    assert draw(1, 2) == draw(1, 2)
    seeds = [0, *(2**bit for bit in range(70))]
    assert len({tuple(draw(seed, step)) for seed in seeds for step in range(20)}) == len(seeds) * 20
    keys = [step_rng_key(seed, step) for seed in seeds for step in range(20)]
    assert len(set(keys)) == len(keys)
    assert 0 <= min(keys) <= max(keys) < 2**63
