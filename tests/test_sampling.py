"""The algorithm's functions on logits written by hand, against numbers worked out here from the definitions."""

import math
from collections import Counter

import pytest
import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.actions import choose_positions, draw_tokens, propose, step_generator
from vllm_infogain.sampling.objective import action_cost, objective, state_uncertainty
from vllm_infogain.sampling.scores import position_score
from vllm_infogain.sampling.statistics import adjust_logits, row_statistics
from vllm_infogain.sampling.view import View

# Three masked positions over a vocabulary of four; probabilities chosen, logits are their logarithms (plus a shift,
# which must not matter).
P = torch.tensor([[0.5, 0.25, 0.125, 0.125], [0.97, 0.01, 0.01, 0.01], [0.4, 0.3, 0.2, 0.1]])
LOGITS = P.log() + torch.tensor([[1.0], [-3.0], [30.0]])
ENTROPY = [
    1.75 * math.log(2),
    -(0.97 * math.log(0.97) + 0.03 * math.log(0.01)),
    math.log(10) - 0.4 * math.log(4) - 0.3 * math.log(3) - 0.2 * math.log(2),
]


def view(logits: torch.Tensor = LOGITS, **fields) -> View:
    return View(logits, row_statistics(logits), torch.arange(len(logits)), **fields)


def generator(seed: int = 0) -> torch.Generator:
    return step_generator(seed, 0, torch.device("cpu"))


def test_row_statistics_are_those_of_the_definition():
    statistics = row_statistics(LOGITS)
    torch.testing.assert_close(statistics.entropy, torch.tensor(ENTROPY), atol=1e-5, rtol=0)
    assert statistics.top_token.tolist() == [0, 0, 0]
    torch.testing.assert_close(statistics.top_probability, torch.tensor([0.5, 0.97, 0.4]), atol=1e-5, rtol=0)
    torch.testing.assert_close(statistics.margin, torch.tensor([0.25, 0.96, 0.1]), atol=1e-5, rtol=0)


def test_a_forbidden_token_is_as_if_it_were_not_in_the_vocabulary():
    logits = torch.cat([LOGITS, torch.full((3, 1), 50.0)], -1)
    statistics = row_statistics(adjust_logits(logits, 4, (), 0.0))
    torch.testing.assert_close(statistics.entropy, torch.tensor(ENTROPY), atol=1e-5, rtol=0)
    assert statistics.top_token.tolist() == [0, 0, 0]


def test_entropy_of_a_certain_and_of_a_uniform_row():
    logits = torch.tensor([[0.0, -torch.inf, -torch.inf, -torch.inf], [7.0, 7.0, 7.0, 7.0]])
    torch.testing.assert_close(row_statistics(logits).entropy, torch.tensor([0.0, math.log(4)]), atol=1e-6, rtol=0)


def test_state_uncertainty_is_the_mean_or_the_sum_and_0_of_nothing():
    entropy = torch.tensor([[1.0, 2.0, 6.0]])
    assert state_uncertainty(entropy, "mean").tolist() == [3.0]
    assert state_uncertainty(entropy, "sum").tolist() == [9.0]
    assert state_uncertainty(entropy[:, :0], "mean").tolist() == [0.0]


def test_the_objective_by_hand():
    entropy = torch.tensor([0.5, 1.0, 3.0])  # H(z) = 1.5
    cost = action_cost(entropy, torch.tensor([[0, 1], [1, 2]]))
    assert cost.tolist() == [1.5, 4.0]
    after = torch.tensor([0.75, 0.25])
    # J = 1.5 - 0.75 - 1.5 and 1.5 - 0.25 - 4
    assert objective(DecodingParams(sampler="info_gain"), state_uncertainty(entropy, "mean"), after, cost).tolist() == [
        -0.75,
        -2.75,
    ]
    assert objective(DecodingParams(sampler="lookum"), state_uncertainty(entropy, "mean"), after, cost).tolist() == [
        -0.75,
        -0.25,
    ]


def test_position_scores_by_hand():
    tokens = torch.tensor([[0, 1, 2], [3, 0, 0]])

    def score(name: str) -> torch.Tensor:
        return position_score(name, view(), tokens, DecodingParams(), generator())

    torch.testing.assert_close(
        score("sampled"), torch.tensor([[0.5, 0.01, 0.2], [0.125, 0.97, 0.4]]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(score("confidence")[1], torch.tensor([0.5, 0.97, 0.4]), atol=1e-5, rtol=0)
    torch.testing.assert_close(score("entropy")[0], -torch.tensor(ENTROPY), atol=1e-5, rtol=0)
    torch.testing.assert_close(score("margin")[0], torch.tensor([0.25, 0.96, 0.1]), atol=1e-5, rtol=0)
    assert score("ar")[0].argsort(descending=True).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("sampler", "first", "second"),
    [("confidence", 1, 0), ("entropy", 1, 0), ("margin", 1, 0), ("ar", 0, 1)],
)
def test_a_greedy_sampler_takes_its_two_best_positions(sampler: str, first: int, second: int):
    for written, positions in ((1, [first]), (2, sorted([first, second]))):
        params = DecodingParams(sampler=sampler, temperature=0.0, tokens_per_step=written)
        proposal = propose(view(), params, min(params.tokens_per_step, 3), generator())
        assert proposal.positions.tolist() == [positions]
        assert proposal.tokens.tolist() == [[0] * written]


def test_equal_scores_go_to_the_lower_position():
    scores = torch.zeros(1, 50)
    assert choose_positions(scores, 3, 0.0, generator()).tolist() == [[0, 1, 2]]


def test_sure_positions_fill_the_action_and_bypass_the_look_ahead():
    params = DecodingParams(temperature=0.0, bypass_threshold=0.8)
    proposal = propose(view(), params, min(params.tokens_per_step, 3), generator())
    assert proposal.bypassed
    assert proposal.positions.tolist() == [[1]]


def test_sure_positions_are_in_every_candidate_and_the_rest_is_proposed():
    params = DecodingParams(temperature=0.0, bypass_threshold=0.8, tokens_per_step=2, position_temperature=5.0)
    proposal = propose(view(), params, min(params.tokens_per_step, 3), generator())
    assert not proposal.bypassed
    assert proposal.positions.tolist() == [[0, 1], [1, 2]], "the greedy action first, each action once"


def test_a_threshold_of_1_never_bypasses():
    params = DecodingParams(temperature=0.0, bypass_threshold=1.0, position_temperature=5.0, num_candidates=64)
    proposal = propose(view(), params, min(params.tokens_per_step, 3), generator())
    assert sorted(proposal.positions.flatten().tolist()) == [0, 1, 2]
    assert proposal.positions[0].tolist() == [1]


def test_candidates_that_differ_only_in_a_token_are_both_kept():
    params = DecodingParams(temperature=1.0, bypass_threshold=1.0, position_temperature=0.0, num_candidates=64)
    proposal = propose(view(LOGITS[[2]].repeat(2, 1)), params, 1, generator())
    pairs = [tuple(pair) for pair in torch.cat([proposal.positions, proposal.tokens], -1).tolist()]
    assert len(pairs) == len(set(pairs)) > 4
    assert len({position for position, _ in pairs}) < len(pairs)


def test_an_action_that_writes_all_that_is_left_needs_no_candidates():
    params = DecodingParams(temperature=1.0, tokens_per_step=5, num_candidates=8)
    proposal = propose(view(), params, min(params.tokens_per_step, 3), generator())
    assert proposal.positions.tolist() == [[0, 1, 2]]
    assert not proposal.bypassed


def test_the_greedy_action_at_n_1_is_the_first_of_many():
    one = DecodingParams(num_candidates=1, bypass_threshold=1.0, tokens_per_step=2)
    many = DecodingParams(num_candidates=8, bypass_threshold=1.0, tokens_per_step=2)
    first = propose(view(), one, min(one.tokens_per_step, 3), generator(5))
    group = propose(view(), many, min(many.tokens_per_step, 3), generator(5))
    assert group.positions[0].tolist() == first.positions[0].tolist()
    assert group.tokens[0].tolist() == first.tokens[0].tolist()


def chi_square(counts: list[int], expected: list[float]) -> float:
    total = sum(counts)
    return sum((count - total * share) ** 2 / (total * share) for count, share in zip(counts, expected, strict=True))


def test_tokens_are_drawn_from_the_softmax_at_the_token_temperature():
    row = LOGITS[2:]
    for temperature in (1.0, 0.5, 2.0):
        counts = Counter(draw_tokens(row / temperature, 20_000, temperature, generator(3)).flatten().tolist())
        expected = (row[0] / temperature).softmax(-1).tolist()
        # 99.9% of chi-square with 3 degrees of freedom: 16.3
        assert chi_square([counts[token] for token in range(4)], expected) < 16.3


def test_positions_are_drawn_without_replacement_from_the_softmax_at_the_position_temperature():
    scores, temperature = torch.tensor([0.9, 0.5, 0.1]), 0.4
    drawn = choose_positions(scores.expand(20_000, -1), 2, temperature, generator(4)).tolist()
    p = (scores / temperature).softmax(-1).tolist()
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    counts = Counter(map(tuple, drawn))
    # First i, then j among the rest. 99.9% of chi-square with 5 degrees of freedom: 20.5
    assert chi_square([counts[pair] for pair in pairs], [p[i] * p[j] / (1 - p[i]) for i, j in pairs]) < 20.5


def test_the_draws_of_a_step_depend_on_seed_and_step_only():
    def draw(seed: int, step: int) -> list:
        return torch.rand(4, generator=step_generator(seed, step, torch.device("cpu"))).tolist()

    assert draw(1, 2) == draw(1, 2)
    seeds = [0, *(2**bit for bit in range(63))]
    assert len({tuple(draw(seed, step)) for seed in seeds for step in range(20)}) == len(seeds) * 20
