"""The cached modes on the engine: equal to a plain implementation of the same approximation, whatever happens."""

import pytest
import torch
from engines import Engine, Job, assert_matches_oracle, assert_preemptions_change_nothing, running
from jobs import CACHED
from knobs import fitting

import vllm_infogain
from vllm_infogain.request.params import SAMPLERS

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def engine(checkpoint):
    with running(checkpoint) as engine:
        yield engine


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_equals_the_plain_approximation(engine: Engine, sampler: str, cache: str):
    for block_length, refresh, tokens_per_step in ((4, 0, 1), (16, 3, 2), (0, 2, 1), (32, 1, 3)):
        knobs = {"sampler": sampler, "cache": cache, "block_length": block_length, "cache_refresh": refresh}
        job = Job("a cached prompt", fitting(knobs | {"tokens_per_step": tokens_per_step, "num_candidates": 4}), 40)
        assert_matches_oracle(engine, job, engine.run([job])[0])


def test_a_mixed_batch_of_modes_equals_the_oracle_request_by_request(engine: Engine):
    free = engine.free_pages()
    for job, output in zip(CACHED, engine.run(CACHED), strict=True):
        assert_matches_oracle(engine, job, output)
    assert engine.free_pages() == free


def test_a_preemption_changes_nothing(engine: Engine):
    """The cached states are computed again as they were, not as they are: else the answer would tell."""
    free = engine.free_pages()
    assert assert_preemptions_change_nothing(engine, CACHED) > 50
    assert engine.free_pages() == free


def test_inside_a_block_only_its_rows_run(engine: Engine):
    job = Job("rows", {"sampler": "ar", "cache": "dual", "block_length": 8}, 32)
    (output,) = engine.run([job])
    report = vllm_infogain.report(output)
    length = len(output.prompt_token_ids) + 32
    assert report["refreshes"] == 4
    assert report["forwards"] == 32
    assert report["rows"] == 4 * length + 28 * 8


def test_the_approximation_differs_from_exact_mode_and_a_refresh_at_every_step_does_not(engine: Engine):
    """Else the caches would not be what they claim to be."""

    def trajectory(**knobs) -> list[float]:
        job = Job("differs", {"sampler": "entropy", "block_length": 16, **knobs}, 48)
        (output,) = engine.run([job])
        return [entropy for step in vllm_infogain.report(output)["trajectory"] for entropy in step["entropies"]]

    exact, dual = trajectory(), trajectory(cache="dual")
    assert max(abs(one - other) for one, other in zip(exact, dual, strict=True)) > 1e-2
    for cache in ("prefix", "dual"):
        torch.testing.assert_close(
            torch.tensor(trajectory(cache=cache, cache_refresh=1)), torch.tensor(exact), atol=1e-4, rtol=0
        )
