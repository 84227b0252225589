"""SDAR on the engine: finished blocks are cached exactly, and prefixes are shared between requests."""

import dataclasses

import pytest
from checkpoints import write_sdar
from engines import Engine, Job, assert_matches_oracle, assert_preemptions_change_nothing, running
from jobs import BLOCK_CAUSAL, PREFIX
from knobs import fitting

import vllm_infogain
from vllm_infogain.request.params import SAMPLERS

pytestmark = pytest.mark.engine

BLOCK = 4


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("sdar")
    return path, write_sdar(path, block_size=BLOCK)


@pytest.fixture(scope="module")
def engine(checkpoint):
    with running(*checkpoint, enable_prefix_caching=True, disable_log_stats=False) as engine:
        yield engine


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_equals_the_oracle_for_prompts_of_any_length(engine: Engine, sampler: str):
    for length in (1, 4, 6, 33):  # shorter than a block, one block, a block and a tail, beyond a page
        for tokens_per_step in (1, 3):
            knobs = fitting({"sampler": sampler, "tokens_per_step": tokens_per_step, "num_candidates": 4})
            job = Job("x" * length, knobs, max_tokens=11)
            assert_matches_oracle(engine, job, engine.run([job])[0])


def test_a_mixed_batch_equals_the_oracle_with_prefixes_found_and_not(engine: Engine):
    free = engine.free_pages()
    for _ in range(2):
        for job, output in zip(BLOCK_CAUSAL, engine.run(BLOCK_CAUSAL), strict=True):
            assert_matches_oracle(engine, job, output)
        assert engine.free_pages() == free


def test_guided_requests_equal_the_oracle_beside_others_and_preempted(engine: Engine):
    prompt, free = engine.prompt_ids(BLOCK_CAUSAL[0]), engine.free_pages()
    other = [9] * (len(prompt) % BLOCK + 2 * BLOCK)
    guided = [
        Job(prompt, {"guidance_scale": 1.5, "bypass_threshold": 1.0, "num_candidates": 4}, 30),
        Job(prompt, {"guidance_scale": 3, "guidance_prompt_ids": other, "tokens_per_step": 2}, 20),
        Job([5], {"guidance_scale": 1, "guidance_prompt_ids": [6] * (1 + BLOCK), "sampler": "entropy"}, 14),
        Job(prompt, {"guidance_scale": 1, "sampler": "beam", "beam_width": 2, "num_candidates": 3}, 9),
        Job(prompt, {"guidance_scale": 2, "sampler": "best_of_n", "num_generations": 2}, 9, 1.0, 5),
    ]
    jobs = [*guided, *BLOCK_CAUSAL[:3]]
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        assert_matches_oracle(engine, job, output)
        assert job not in guided or output.num_cached_tokens == 0, "a guide's pages are nobody else's"
    assert assert_preemptions_change_nothing(engine, jobs, every=3) > 0
    assert engine.free_pages() == free


def test_a_prefix_of_an_earlier_request_is_not_computed_again(engine: Engine):
    engine.scheduler.reset_prefix_cache()
    job = Job(PREFIX + "?", {"sampler": "ar"}, 8)
    first, again = (vllm_infogain.report(engine.run([job])[0])["rows"] for _ in range(2))
    assert first - again == 64, "two full pages of 32"
    longer = Job(PREFIX + "?!", {"sampler": "ar"}, 8)
    (output,) = engine.run([longer])
    assert output.num_cached_tokens == 64
    assert_matches_oracle(engine, longer, output)


def test_what_is_asked_of_the_prefix_cache_and_found_there_is_counted_once_per_request(engine: Engine):
    def counted() -> dict[str, int]:
        return {name: metric.value for metric in engine.llm.get_metrics() if (name := metric.name) in grown}

    grown = {"vllm:prefix_cache_queries": 0, "vllm:prefix_cache_hits": 0}
    engine.scheduler.reset_prefix_cache()
    job = Job(PREFIX + "?", {"sampler": "ar"}, 8)
    for hits in (0, 64):
        before = counted()
        engine.run([job])
        grown = {name: value - before[name] for name, value in counted().items()}
        assert grown == {
            "vllm:prefix_cache_queries": len(engine.prompt_ids(job)),
            "vllm:prefix_cache_hits": hits,
        }


def test_a_preemption_changes_nothing(engine: Engine):
    assert assert_preemptions_change_nothing(engine, BLOCK_CAUSAL, every=3) > 0


def test_only_the_block_and_the_one_before_it_run(engine: Engine):
    engine.scheduler.reset_prefix_cache()
    (output,) = engine.run([Job("123456", {"sampler": "ar"}, 12)])
    report = vllm_infogain.report(output)
    assert len(output.prompt_token_ids) == 8
    # The prompt with the first block; then, at each block's start, the last one's final tokens with it.
    assert report["rows"] == (12 + 3 * BLOCK) + 2 * (2 * BLOCK + 3 * BLOCK)


# A page holds 32 positions: requests of lengths 3, 64 and 100 share none.
LENGTHS = (1, 3, 16, BLOCK, 32, 64, 100)


@pytest.fixture(scope="module")
def engines(engine: Engine, tmp_path_factory) -> dict[int, Engine]:
    """The one engine, beside the plain model of each block length."""
    path = tmp_path_factory.mktemp("plain")
    return {size: dataclasses.replace(engine, model=write_sdar(path, block_size=size)) for size in LENGTHS}


def test_a_request_may_have_a_block_length_of_its_own(engine: Engine, engines: dict[int, Engine]):
    jobs = [
        (size, dataclasses.replace(job, knobs=job.knobs | {"block_length": size}))
        for job, size in zip([*BLOCK_CAUSAL, BLOCK_CAUSAL[0]], LENGTHS, strict=True)
    ]
    outputs = engine.run([job for _, job in jobs])
    for (size, job), output in zip(jobs, outputs, strict=True):
        assert_matches_oracle(engines[size], job, output)


def test_pages_are_shared_by_requests_of_one_block_length_only(engine: Engine, engines: dict[int, Engine]):
    engine.scheduler.reset_prefix_cache()
    knobs = {"sampler": "confidence", "tokens_per_step": 4}
    for prefix, found in ((PREFIX, (0, 64)), (PREFIX.upper(), (0, 64))):
        for size in LENGTHS if prefix == PREFIX else reversed(LENGTHS):
            job = Job(prefix, knobs | {"block_length": size}, 20)
            for cached in found:
                (output,) = engine.run([job])
                assert output.num_cached_tokens == (cached if 32 % size == 0 else 0), size
                assert_matches_oracle(engines[size], job, output)
    (default,) = engine.run([Job(PREFIX, knobs, 20)])
    assert default.num_cached_tokens == 64, "the checkpoint's own length, given or not"


def test_a_salt_cannot_pass_for_another_block_length(engine: Engine):
    engine.scheduler.reset_prefix_cache()
    prompt = {"prompt_token_ids": engine.prompt_ids(Job(PREFIX, {}))}
    ours = Job("", {"sampler": "ar", "block_length": 16}, 8).sampling_params(return_trajectory=True)
    for salt in ("16:", "16", "x"):
        salted = prompt | {"cache_salt": salt}
        params = Job("", {"sampler": "ar"}, 8).sampling_params(return_trajectory=True)
        counts = [engine.llm.generate([salted], [params], use_tqdm=False)[0].num_cached_tokens for _ in range(2)]
        assert counts == [0, 64], "the client's salt still tells requests apart"
    assert engine.llm.generate([prompt], [ours], use_tqdm=False)[0].num_cached_tokens == 0


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        (
            {"guidance_scale": 1, "guidance_prompt_ids": [5] * 10},
            r"guidance_prompt_ids='10 tokens': .*blocks of 4 .*the prompt has \(9\)",
        ),
        ({"cache": "dual"}, "cache='dual': the model attends block by block; give 'none'"),
        ({"block_length": 0}, "block_length=0: the model attends block by block, .*; give 1 or more"),
        ({"block_length": 129}, "block_length=129: give at most the model length of 128"),
        ({"uncertainty_scope": "sequence"}, "uncertainty_scope='sequence': the model attends block by block"),
    ],
)
def test_what_has_no_meaning_block_by_block_is_refused(engine: Engine, knobs: dict, message: str):
    with pytest.raises(ValueError, match=message):
        engine.run([Job("refused", knobs)])
