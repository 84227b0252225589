"""Guidance on the engine: a sequence and its guide in one forward, whatever else is in it, however it is cut."""

import pytest
from engines import Engine, Job, assert_matches_oracle, assert_preemptions_change_nothing, running
from jobs import CACHED, GUIDED
from knobs import fitting

import vllm_infogain
from vllm_infogain.request.params import SAMPLERS

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def engine(checkpoint):
    with running(checkpoint) as engine:
        yield engine


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_equals_the_oracle(engine: Engine, sampler: str):
    knobs = {"sampler": sampler, "block_length": 8, "tokens_per_step": 2, "num_candidates": 4, "guidance_scale": 2.5}
    ways = [
        {},
        {"guidance_prompt_ids": [*range(10, 50)]},
        {"cache": "prefix", "cache_refresh": 3},
        {"cache": "dual", "guidance_prompt_ids": [9, 8, 7]},
    ]
    jobs = [Job("a guided prompt", fitting(knobs | way), 20) for way in ways]
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        assert_matches_oracle(engine, job, output)


def test_guided_and_other_requests_share_batches_however_they_are_cut(engine: Engine, monkeypatch):
    free = engine.free_pages()
    monkeypatch.setattr(engine.scheduler, "max_num_scheduled_tokens", 400)  # less than the largest group
    monkeypatch.setattr(engine.runner, "logit_rows", 21)
    jobs = [*GUIDED, *CACHED[:3]]
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        assert_matches_oracle(engine, job, output)
    assert engine.free_pages() == free


def test_a_preemption_changes_nothing(engine: Engine):
    free = engine.free_pages()
    assert assert_preemptions_change_nothing(engine, [*GUIDED, CACHED[0]], every=4) > 10
    assert engine.free_pages() == free


def test_pages_and_scratch_of_a_few_guides_only_make_requests_wait(engine: Engine):
    pool = engine.scheduler.kv_cache_manager.block_pool
    free = engine.free_pages()
    taken = pool.get_new_blocks(free - 24)  # the largest of them holds three states and three guides of two pages each
    for job, output in zip(GUIDED, engine.run(GUIDED), strict=True):
        assert_matches_oracle(engine, job, output)
    pool.free_blocks(taken)
    assert engine.free_pages() == free


def test_the_report_counts_the_guides_rows(engine: Engine):
    for other in (None, [9, 8, 7]):
        knobs = {"guidance_scale": 1, "guidance_prompt_ids": other, "bypass_threshold": 1.0, "num_candidates": 3}
        (output,) = engine.run([Job("rows", knobs, 12)])
        report, prompt = vllm_infogain.report(output), len(output.prompt_token_ids)
        sequences = sum(len(step["objective"]) or 1 for step in report["trajectory"])
        both = prompt + 12 + len(other or output.prompt_token_ids) + 12
        assert report["rows"] == sequences * both
        assert report["forwards"] == report["steps"]


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"guidance_scale": 1, "guidance_prompt_ids": [5, 999]}, "guidance_prompt_ids=999: outside the vocabulary"),
        ({"guidance_scale": 1, "guidance_prompt_ids": [5] * 120}, "guidance_prompt_ids='120 tokens': .*length is 128"),
        ({"guidance_scale": float("nan")}, "guidance_scale=nan: give a finite number from 0 to 100"),
        ({"guidance_scale": 1e9}, "guidance_scale=1000000000.0: give a finite number from 0 to 100"),
    ],
)
def test_a_guide_that_cannot_be_is_refused_by_name(engine: Engine, knobs: dict, message: str):
    with pytest.raises(ValueError, match=message):
        engine.run([Job("refused", knobs)])
