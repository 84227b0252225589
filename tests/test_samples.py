"""The `n` samples of a request: their seeds, and temperature 0."""

import pytest
from test_admission import config
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm_infogain.patches import samples

from vllm_infogain.compat import ParentRequest, VLLMValidationError
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.request.seeds import child_seed
from vllm_infogain.sampling.best_of_n import generation_seeds
from vllm_infogain.serving.admission import check_request


@pytest.fixture(scope="module")
def served(checkpoint):
    return config(checkpoint)


def seeds(params: SamplingParams) -> list[int | None]:
    """Of a request's samples, as vLLM's front end makes them."""
    request = EngineCoreRequest("id", [5], None, params, None, 0.0, None, None, None, external_req_id="id")
    parent = ParentRequest(request)
    return [parent.get_child_info(index)[1].seed for index in range(params.n)]


def test_samples_of_neighbouring_seeds_have_no_seed_in_common(served):
    drawn = [seeds(samples.mark(SamplingParams(n=8, seed=seed))) for seed in range(50)]
    assert [first for first, *_ in drawn] == list(range(50)), "the first sample is what n=1 gives"
    assert len({seed for row in drawn for seed in row}) == 400
    assert all(0 <= seed < 1 << 63 for row in drawn for seed in row), "vLLM sends seeds as 64 bits with a sign"


def test_samples_of_engines_that_are_not_ours_are_seeded_as_ever(served):
    assert seeds(SamplingParams(n=3, seed=7)) == [7, 8, 9]
    assert seeds(SamplingParams(n=3)) == [None] * 3


def test_samples_without_a_seed_differ_at_temperature_0_too(served):
    shared = SamplingParams(n=3, temperature=0)
    assert seeds(samples.mark(shared)) == [0, *(child_seed(0, "sample", index) for index in (1, 2))]
    assert shared.seed is None, "callers share their parameters"
    assert seeds(samples.mark(SamplingParams(n=3, temperature=1))) == [None] * 3, "seeded by their ids"


def test_generations_share_no_seed_with_samples_or_with_neighbouring_seeds():
    own = [seed for s in range(20) for seed in generation_seeds(DecodingParams(seed=s, num_generations=8))[1:]]
    children = [child_seed(s, "sample", index) for s in range(20) for index in range(8)]
    assert len({*own, *children}) == len(own) + len(children)
    assert generation_seeds(DecodingParams(seed=4))[0] == 4


@pytest.mark.parametrize("knobs", [{"sampler": "entropy"}, {"position_temperature": 0}, {"sampler": "klass"}])
def test_several_samples_that_would_all_be_the_same_are_refused(served, knobs):
    params = SamplingParams(n=4, temperature=0, max_tokens=8, extra_args=knobs)
    with pytest.raises(ValueError, match=r"^n=4: .* all samples are the same; give one of them above 0"):
        check_request(params, [5], served)


@pytest.mark.parametrize(
    "knobs", [{}, {"sampler": "entropy", "position_temperature": 0.1}, {"sampler": "uniform"}, {"sampler": "best_of_n"}]
)
def test_several_samples_at_temperature_0_are_let_in_where_their_positions_differ(served, knobs):
    check_request(SamplingParams(n=4, temperature=0, max_tokens=8, extra_args=knobs), [5], served)


def test_engines_that_are_not_ours_refuse_them_still(served):
    with pytest.raises(VLLMValidationError, match="n must be 1 when using greedy sampling"):
        samples.verify(SamplingParams(n=4, temperature=0))
    samples.verify(SamplingParams(n=4, temperature=0.5))
    samples.verify(SamplingParams(temperature=0))
