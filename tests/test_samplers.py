"""Each sampler on logits written by hand, against positions and counts worked out here from its definition."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from stub_model import MASK_ID, StubModel, drive

from vllm_infogain.reference import oracle
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.actions import propose, step_generator, step_rng_key
from vllm_infogain.sampling.block_view import BlockView
from vllm_infogain.sampling.frequencies import log_frequencies
from vllm_infogain.sampling.logits import adjust_logits, keep_likely
from vllm_infogain.sampling.metadata import SamplingMetadata
from vllm_infogain.sampling.read_logits import read
from vllm_infogain.sampling.scores import is_stable, pc_score

# Five positions, vocabulary of three; the largest probability falls 0.96, 0.9, 0.8, 0.6, 0.4.
P = torch.tensor([[0.96, 0.03, 0.01], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]])
ENTROPY = [-sum(p * math.log(p) for p in row) for row in P.tolist()]  # 0.190, 0.394, 0.639, 0.898, 1.089


def view(params: DecodingParams, previous: torch.Tensor | None = None, **fields) -> BlockView:
    """What the sampler sees of P; a fourth column is the mask token's, of no weight."""
    offsets, padded = np.arange(len(P)), torch.nn.functional.pad(P.log(), (0, 1), value=-torch.inf)
    if previous is not None:
        previous = torch.nn.functional.pad(previous.log(), (0, 1), value=-torch.inf)
    metadata = SamplingMetadata(params, offsets[None], np.array([step_rng_key(0, 0)]), offsets[None], previous=previous)
    (output,) = read(padded, [metadata], mask_id=3)
    return BlockView(output.statistics[0], offsets, **fields)


def written(sampler: str, count: int = 1, previous: torch.Tensor | None = None, background=None, **knobs) -> list[int]:
    params = DecodingParams(sampler=sampler, temperature=0.0, **knobs)
    at = view(params, previous, log_frequencies=background)
    proposal = propose(at, params, count, step_generator(0, 0))
    assert len(proposal.masked_indices) == 1
    return proposal.masked_indices[0].tolist()


@pytest.mark.parametrize(("threshold", "positions"), [(0.95, [0]), (0.9, [0, 1]), (0.5, [0, 1, 2, 3]), (0.99, [0])])
def test_threshold_writes_all_that_are_sure_enough_and_at_least_one(threshold, positions):
    assert written("threshold", threshold=threshold - 1e-6) == positions


def test_threshold_writes_no_fewer_than_scheduled():
    assert written("threshold", threshold=0.85, count=3) == [0, 1, 2]
    assert written("threshold", threshold=0.5, count=3) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    # (n + 1)(1 - p_n): 2 x 0.04 = 0.08, 3 x 0.1 = 0.3, 4 x 0.2 = 0.8, 5 x 0.4 = 2, 6 x 0.6 = 3.6
    ("factor", "count"),
    [(0.01, 1), (0.1, 1), (0.31, 2), (0.9, 3), (2.1, 4), (4.0, 5)],
)
def test_factor_writes_the_largest_n_whose_bound_holds(factor, count):
    assert written("factor", factor=factor) == list(range(count))


@pytest.mark.parametrize(
    # Sum of entropies less the largest: 0, 0.190, 0.584, 1.223, 2.121
    ("bound", "count"),
    [(0.0, 1), (0.18, 1), (0.2, 2), (0.6, 3), (1.3, 4), (2.2, 5)],
)
def test_eb_writes_as_many_as_its_entropy_bound_allows(bound, count):
    assert written("eb", entropy_bound=bound) == list(range(count))


def test_klass_prefers_a_stable_position_to_a_surer_one():
    before = P.clone()
    before[[0, 1]] = torch.tensor([0.3, 0.4, 0.3])  # 0 and 1 have moved since; 2, 3 and 4 have not
    params = DecodingParams(sampler="klass", temperature=0.0)
    kl = sum(p * math.log(p / q) for p, q in zip(P[0].tolist(), before[0].tolist(), strict=True))
    assert kl > 0.5
    at = view(params, before)
    assert at.statistics.divergence == pytest.approx([kl, at.statistics.divergence[1], 0, 0, 0], abs=1e-5)
    assert is_stable(at, 5e-4).tolist() == [0, 0, 1, 1, 1]
    assert is_stable(at, kl + 1e-3).tolist()[0] == 1
    assert is_stable(view(params), 5e-4).tolist() == [0] * 5, "there was no previous step"
    assert written("klass", previous=before) == [2]
    assert written("klass", 4, before) == [0, 2, 3, 4]
    assert written("klass") == [0], "without a previous step it is confidence"


def test_pc_weighs_position_and_how_rare_a_token_is():
    background = log_frequencies({0: 80, 1: 15, 2: 5}, 3)  # f = 0.8, 0.15, 0.05
    params = DecodingParams(sampler="pc", temperature=0.0, pc_lambda=0.5, pc_alpha=1.0)
    expected = [
        math.exp(-0.5 * place) * min(1.0, -p * math.log(f))
        for place, (p, f) in enumerate([(0.96, 0.8), (0.9, 0.8), (0.8, 0.15), (0.6, 0.8), (0.4, 0.05)])
    ]
    np.testing.assert_allclose(pc_score(view(params, log_frequencies=background), params), [expected], atol=1e-5)
    assert expected.index(max(expected)) == 2  # rare enough to come before two surer ones
    assert written("pc", background=background, pc_lambda=0.5, pc_alpha=1.0) == [2]
    assert written("pc", background=background, pc_lambda=5.0, pc_alpha=1.0) == [0], "steep goes left to right"
    uniform = [math.exp(-0.5 * place) * min(1.0, p * math.log(4)) for place, p in enumerate([0.96, 0.9, 0.8, 0.6, 0.4])]
    np.testing.assert_allclose(pc_score(view(params), params), [uniform], atol=1e-5)


def test_a_token_never_seen_counts_as_half_a_token():
    assert np.exp(log_frequencies({0: 7, 2: 2}, 3)).tolist() == pytest.approx([7 / 9.5, 0.5 / 9.5, 2 / 9.5])
    with pytest.raises(ValueError, match="do not fit a vocabulary of 3"):
        log_frequencies({3: 1}, 3)


@pytest.mark.parametrize("sampler", ["eb", "threshold", "factor"])
def test_adaptive_samplers_take_a_position_temperature(sampler):
    params = DecodingParams(sampler=sampler, temperature=0.0, position_temperature=3.0, threshold=0.7, factor=0.9)
    drawn = {
        tuple(propose(view(params), params, 1, step_generator(seed, 0)).masked_indices[0].tolist())
        for seed in range(40)
    }
    assert len(drawn) > 3
    assert len({len(positions) for positions in drawn}) == 1, "how many is decided before which"


@pytest.mark.parametrize(
    ("knobs", "positions"),
    [
        ({"bypass_threshold": 0.95, "entropy_bound": 0.0}, [0]),
        ({"bypass_threshold": 0.5, "entropy_bound": 0.0}, [0, 1, 2, 3]),  # with no limit from above
        ({"bypass_threshold": 0.5, "entropy_bound": 0.0, "count": 3}, [0, 1, 2, 3]),
        ({"bypass_threshold": 0.95, "entropy_bound": 0.38}, [0]),
        ({"bypass_threshold": 0.95, "entropy_bound": 0.4}, [0, 1]),  # one more, the surest
        ({"bypass_threshold": 0.95, "entropy_bound": 9.0}, [0, 1]),  # and only one
        ({"bypass_threshold": 0.3, "entropy_bound": 9.0}, [0, 1, 2, 3, 4]),
    ],
)
def test_adaptive_writes_all_that_are_sure_and_one_more_within_its_bound(knobs, positions):
    assert written("adaptive", **knobs) == positions


def test_adaptive_compares_candidates_only_where_too_few_are_sure():
    knobs = {"temperature": 0.0, "position_temperature": 9.0, "num_candidates": 64, "entropy_bound": 9.0}
    params = DecodingParams(sampler="adaptive", bypass_threshold=0.97, **knobs)
    nothing_sure = propose(view(params), params, 1, step_generator(0, 0))
    assert sorted(nothing_sure.masked_indices.ravel().tolist()) == [0, 1, 2, 3, 4]
    assert nothing_sure.masked_indices[0].tolist() == [0], "the greedy one comes first"
    assert not nothing_sure.bypassed

    params = DecodingParams(sampler="adaptive", bypass_threshold=0.95, **(knobs | {"entropy_bound": 0.0}))
    one_of_three = propose(view(params), params, 3, step_generator(0, 0))
    assert len(one_of_three.masked_indices) == 6, "the pairs of the other four"
    assert (one_of_three.masked_indices == 0).any(-1).all()


def test_adaptive_takes_fewer_steps_than_info_gain_and_no_look_ahead_where_all_is_sure():
    shared = {"temperature": 0.0, "canvas_length": 12, "return_trajectory": True, "num_candidates": 4}
    for seed in range(4):
        model = StubModel(seed)
        _, one = drive(model, [1, 2], DecodingParams(**shared, sampler="info_gain", bypass_threshold=0.4))
        _, all_of_them = drive(model, [1, 2], DecodingParams(**shared, sampler="adaptive", bypass_threshold=0.4))
        assert one.report.steps == 12 > all_of_them.report.steps
        for step in all_of_them.report.trajectory:
            assert len(step.positions) == 1 or not step.objective, "several are written only where they are sure"


# P's most likely tokens are 0, 0, 1, 0, 2.
ENDS = {"eos_last": True, "eos_ids": (0,)}


@pytest.mark.parametrize(
    ("sampler", "knobs", "positions"),
    [
        ("confidence", {}, [2]),
        ("confidence", {"count": 2}, [2, 4]),
        ("confidence", {"count": 4}, [0, 1, 2, 4]),  # ends are equal, the lower index first
        ("confidence", {"eos_ids": (), "stop_ids": (1, 2)}, [0]),
        ("confidence", {"eos_ids": (0, 1, 2)}, [0]),  # nothing but ends is left: as ever
        ("entropy", {"count": 2}, [2, 4]),
        ("ar", {"count": 2}, [2, 4]),
        ("threshold", {"threshold": 0.7}, [2]),
        ("threshold", {"threshold": 0.3}, [2, 4]),
        ("factor", {"factor": 9.0}, [2, 4]),
        ("eb", {"entropy_bound": 9.0}, [2, 4]),
        ("info_gain", {"bypass_threshold": 0.7}, [2]),  # the two surer ones wait
        ("info_gain", {"bypass_threshold": 0.3, "count": 2}, [2, 4]),
        ("info_gain", {"bypass_threshold": 1.0, "num_candidates": 1, "count": 2}, [2, 4]),
        ("adaptive", {"bypass_threshold": 0.7}, [2]),
        ("adaptive", {"bypass_threshold": 0.7, "entropy_bound": 2.0}, [2, 4]),
    ],
)
def test_what_ends_the_text_is_written_last(sampler, knobs, positions):
    assert written(sampler, **(ENDS | knobs)) == positions


def test_no_candidate_ends_the_text_while_it_has_other_tokens():
    params = DecodingParams(temperature=0.0, position_temperature=3.0, num_candidates=64, bypass_threshold=0.7, **ENDS)
    for count in (1, 2, 3):
        proposal = propose(view(params), params, count, step_generator(0, 0))
        for action in proposal.masked_indices.tolist():
            assert len(set(action)) == count
            assert len({2, 4} - {*action}) == max(0, 2 - count)


def test_uniform_chooses_every_position_alike():
    params = DecodingParams(sampler="uniform", temperature=0.0)
    at = view(params)
    counts = [0] * 5
    for seed in range(4000):
        proposal = propose(at, params, 1, step_generator(seed, 0))
        counts[proposal.masked_indices.item()] += 1
    # 99.9% of chi-square with 4 degrees of freedom: 18.5
    assert sum((count - 800) ** 2 / 800 for count in counts) < 18.5


# Bypass, filters, EOS.


def test_bypass_only_writes_the_sure_positions_and_leaves_the_rest():
    params = DecodingParams(temperature=0.0, bypass_threshold=0.85, bypass_mode="only")
    proposal = propose(view(params), params, 4, step_generator(0, 0))
    assert proposal.masked_indices.tolist() == [[0, 1]]
    assert proposal.bypassed
    filled = propose(view(params), dataclasses.replace(params, bypass_mode="fill"), 4, step_generator(0, 0))
    assert not filled.bypassed
    assert all({0, 1} < set(action) and len(action) == 4 for action in filled.masked_indices.tolist())


def test_top_k_and_top_p_leave_the_tokens_their_definitions_leave():
    row = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()

    def kept(**fields) -> list[bool]:
        return (keep_likely(row, DecodingParams(temperature=1.0, **fields)) > -torch.inf)[0].tolist()

    assert kept(top_k=2) == [True, True, False, False]
    assert kept(top_p=0.79) == [True, True, False, False]
    assert kept(top_p=0.81) == [True, True, True, False]
    assert kept(top_p=0.01) == [True, False, False, False]
    assert kept(top_k=3, top_p=0.9) == [True, True, True, False]
    assert kept() == [True] * 4


def test_the_eos_penalty_is_subtracted_once_from_current_and_look_ahead_logits_alike():
    logits = adjust_logits(torch.zeros(2, 4), DecodingParams(eos_ids=(1,), eos_penalty=2.0))
    assert logits.tolist() == [[0.0, -2.0, 0.0, 0.0]] * 2
    model, seen = StubModel(), []

    def spy(ids: torch.Tensor) -> torch.Tensor:
        seen.append(len(ids))
        return model(ids)

    plain = DecodingParams(canvas_length=8, temperature=1.0, bypass_threshold=1.0, eos_ids=(5,))
    seeded = (dataclasses.replace(plain, seed=seed) for seed in range(100))
    plain = next(params for params in seeded if 5 in drive(model, [1, 2, 3], params)[0])
    heavy = dataclasses.replace(plain, eos_penalty=1e4)
    tokens, _ = drive(spy, [1, 2, 3], heavy)
    assert 5 not in tokens
    assert max(seen) > 1
    assert tokens == oracle.decode(model, [1, 2, 3], heavy, MASK_ID).tokens


def test_a_stop_token_ends_the_canvas_with_its_block():
    class Stops(StubModel):
        def __call__(self, ids: torch.Tensor) -> torch.Tensor:
            logits = super().__call__(ids)
            logits[:, 5] = torch.nn.functional.one_hot(torch.tensor(4), 7) * 50.0  # canvas offset 3 is token 4
            return logits

    params = DecodingParams(canvas_length=12, block_length=4, temperature=0.0, stop_ids=(4,), sampler="ar")
    tokens, decoder = drive(Stops(), [1, 2], params)
    assert tokens[-1] == 4
    assert tokens.index(4) == len(tokens) - 1 <= 3
    assert decoder.report.steps == 4, "the two blocks behind are never decoded"
