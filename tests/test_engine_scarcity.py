"""The same answers when rows or pages are so scarce that groups are cut and requests wait."""

import pytest
from checkpoints import write_llada
from engines import Job, assert_matches_oracle, running

pytestmark = pytest.mark.engine

JOBS = [
    Job(f"prompt number {index}", {"num_candidates": 8, "tokens_per_step": k, "bypass_threshold": 1.0}, 20 + index)
    for index, k in enumerate([1, 2, 1, 3, 2, 1])
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("llada")
    write_llada(path)
    return path


def test_a_group_larger_than_the_token_budget_is_cut_and_scores_the_same(checkpoint):
    # 128 rows: not even four of a group's eight candidates fit in one step.
    with running(checkpoint, max_num_batched_tokens=128, max_num_seqs=8) as engine:
        for job, output in zip(JOBS, engine.run(JOBS), strict=True):
            assert_matches_oracle(engine, job, output)


def test_a_pool_of_a_few_pages_only_makes_requests_wait(checkpoint):
    # A sequence takes 2 pages; 6 usable ones leave one request its own pages and scratch for 2 candidates.
    with running(checkpoint, num_gpu_blocks_override=7, max_num_seqs=8) as engine:
        free = engine.free_pages()
        outputs = engine.run(JOBS)
        for job, output in zip(JOBS, outputs, strict=True):
            assert_matches_oracle(engine, job, output)
        assert engine.free_pages() == free


def test_pages_longer_than_a_sequence_are_as_good(checkpoint):
    with running(checkpoint, block_size=128) as engine:  # vLLM's own default on the CPU
        for job, output in zip(JOBS, engine.run(JOBS), strict=True):
            assert_matches_oracle(engine, job, output)


def test_nobody_waits_for_anothers_whole_generation(checkpoint):
    # Each step has room for one sequence of one request; all must advance in turns.
    with running(checkpoint, max_num_batched_tokens=128, max_num_seqs=8) as engine:
        llm_engine = engine.llm.llm_engine
        jobs = [Job("x" * 60, {"sampler": "ar"}, 40) for _ in range(4)]
        for index, job in enumerate(jobs):
            llm_engine.add_request(str(index), job.prompt, job.sampling_params())
        for _ in range(40):
            llm_engine.step()
        written = [decoder.report.steps for decoder in engine.runner.decoders.values()]
        assert len(written) == 4
        assert max(written) - min(written) <= 1, written
        llm_engine.abort_request([str(index) for index in range(4)])
