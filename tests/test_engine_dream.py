"""Dream on the engine: position p is read off row p - 1, in exact mode and where only a block's rows run."""

import dataclasses

import pytest
import torch
from checkpoints import write_dream
from engines import MASK_ID, Engine, Job, assert_matches_oracle, assert_preemptions_change_nothing, running
from jobs import CACHED, GUIDED
from knobs import fitting

import vllm_infogain
from vllm_infogain.engine import request_state
from vllm_infogain.request.params import SAMPLERS

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("dream")
    return path, write_dream(path)


@pytest.fixture(scope="module")
def engine(checkpoint):
    with running(*checkpoint) as engine:
        yield engine


def tokens(engine: Engine, job: Job) -> list[int]:
    return list(engine.run([job])[0].outputs[0].token_ids)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_equals_the_oracle_in_exact_mode(engine: Engine, sampler: str):
    knobs = fitting({"sampler": sampler, "tokens_per_step": 2, "block_length": 8, "num_candidates": 4})
    job = Job("an exact prompt", knobs, 20)
    assert_matches_oracle(engine, job, engine.run([job])[0])


@pytest.mark.parametrize("cache", ["prefix", "dual"])
@pytest.mark.parametrize(("block_length", "refresh", "tokens_per_step"), [(1, 0, 1), (4, 0, 1), (16, 3, 2), (0, 2, 1)])
def test_cached_modes_equal_the_plain_approximation(
    engine: Engine, cache: str, block_length: int, refresh: int, tokens_per_step: int
):
    knobs = {
        "cache": cache, "block_length": block_length, "cache_refresh": refresh, "tokens_per_step": tokens_per_step,
        "bypass_threshold": 1.0, "num_candidates": 4,
    }  # fmt: skip
    samplers = ("info_gain", "entropy", "beam")
    jobs = [Job("a cached prompt", fitting(knobs | {"sampler": sampler}), 40) for sampler in samplers]
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        assert_matches_oracle(engine, job, output)


def test_a_window_of_whole_pages_and_one_row_equals_the_plain_approximation(engine: Engine):
    """32 positions to a page: the row before the block makes the window one more than a page."""
    for cache in ("prefix", "dual"):
        job = Job("pages", {"cache": cache, "block_length": 32, "tokens_per_step": 4, "bypass_threshold": 1.0}, 64)
        assert_matches_oracle(engine, job, engine.run([job])[0])


@pytest.mark.parametrize("cache", ["none", "prefix", "dual"])
def test_a_prompt_of_one_token_is_the_row_that_the_canvas_is_read_off(engine: Engine, cache: str):
    job = Job([29], {"cache": cache, "block_length": 4, "bypass_threshold": 1.0}, 9)
    assert_matches_oracle(engine, job, engine.run([job])[0])


def test_the_canvas_begins_with_what_the_prompts_last_row_predicts(engine: Engine):
    job = Job("first", {"sampler": "ar"}, 1)
    ids = [*engine.prompt_ids(job), MASK_ID]
    row = engine.model.model(torch.tensor([ids]), attention_mask=torch.zeros(1, 1, len(ids), len(ids))).logits[0, -2]
    row[MASK_ID] = -torch.inf
    assert tokens(engine, job) == [row.argmax()]


def test_a_mixed_batch_of_modes_equals_the_oracle_request_by_request(engine: Engine):
    free = engine.free_pages()
    for job, output in zip(CACHED, engine.run(CACHED), strict=True):
        assert_matches_oracle(engine, job, output)
    assert engine.free_pages() == free


def test_a_preemption_changes_nothing(engine: Engine):
    assert assert_preemptions_change_nothing(engine, [*CACHED, *GUIDED]) > 0


def test_inside_a_block_only_its_rows_and_the_one_before_run(engine: Engine):
    (output,) = engine.run([Job("rows", {"sampler": "ar", "cache": "dual", "block_length": 8}, 32)])
    length = len(output.prompt_token_ids) + 32
    assert vllm_infogain.report(output)["rows"] == 4 * length + 28 * (8 + 1)


def test_without_the_shift_tokens_differ(engine: Engine, monkeypatch):
    """Else the tests above would prove nothing."""
    job = Job("negative control", {"sampler": "ar"}, 12)
    expected = tokens(engine, job)
    parse = request_state.decoding_params
    monkeypatch.setattr(request_state, "decoding_params", lambda *args: dataclasses.replace(parse(*args), shift=0))
    unshifted = tokens(engine, job)
    assert sum(one != other for one, other in zip(expected, unshifted, strict=True)) > 6
