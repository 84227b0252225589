"""The same answers when rows or pages are so scarce that groups are cut and requests wait."""

import pytest
from checkpoints import write_sdar
from engines import Job, assert_matches_oracle, running
from jobs import BLOCK_CAUSAL, CACHED

pytestmark = pytest.mark.engine

JOBS = [
    Job(f"prompt number {index}", {"num_candidates": 8, "tokens_per_step": k, "bypass_threshold": 1.0}, 20 + index)
    for index, k in enumerate([1, 2, 1, 3, 2, 1])
]


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
            llm_engine.add_request(str(index), job.prompt, job.sampling_params(return_trajectory=True))
        for _ in range(40):
            llm_engine.step()
        written = [request.decoder.report.steps for request in engine.runner.requests.values()]
        assert len(written) == 4
        assert max(written) - min(written) <= 1, written
        llm_engine.abort_request([str(index) for index in range(4)])


@pytest.mark.parametrize(
    "scarcity",
    [
        {"max_num_batched_tokens": 128},
        {"num_gpu_blocks_override": 12},
        {"additional_config": {"infogain": {"scratch_pages": 3}}},
        {"additional_config": {"infogain": {"logits_mib": 1, "steps_per_schedule": 1}}, "max_num_batched_tokens": 300},
    ],
)
def test_scarce_rows_pages_and_scratch_only_make_requests_wait(checkpoint, scarcity: dict):
    with running(checkpoint, max_num_seqs=8, **scarcity) as engine:
        free = engine.free_pages()
        for job, output in zip(CACHED, engine.run(CACHED), strict=True):
            assert_matches_oracle(engine, job, output)
        assert engine.free_pages() == free


def test_what_a_pool_can_never_hold_is_refused(checkpoint):
    with running(checkpoint, num_gpu_blocks_override=9) as engine:
        with pytest.raises(ValueError, match="beam_width=8: with cache='dual' it keeps so many copies"):
            engine.run([Job("beam", {"sampler": "beam", "cache": "dual", "beam_width": 8, "num_candidates": 2}, 40)])
        (output,) = engine.run([Job("beam", {"sampler": "beam", "beam_width": 8, "num_candidates": 2}, 40)])
        assert len(output.outputs[0].token_ids) == 40


def test_another_block_size_than_the_checkpoints_is_a_flag_of_the_engine(tmp_path):
    model = write_sdar(tmp_path, block_size=16, omit=("block_size",))
    with running(tmp_path, model, hf_overrides={"block_size": 16}) as engine:
        for job, output in zip(BLOCK_CAUSAL, engine.run(BLOCK_CAUSAL), strict=True):
            assert_matches_oracle(engine, job, output)


def test_requests_that_together_want_more_rows_than_the_server_allows_wait_their_turn(checkpoint):
    jobs = [Job("rows", {"block_length": 0, "bypass_threshold": 1.0}, 12, 1.0, index) for index in range(5)]
    positions = len("rows") + 2 + 12  # prompt, its special tokens, canvas: all that candidates can differ in
    limit = {"infogain": {"server_rows": 2 * 8 * positions}}
    counts: list[int] = []
    with running(checkpoint, additional_config=limit) as engine:
        outputs = engine.drive(jobs, lambda step: counts.append(len(engine.scheduler.running)))
        assert max(counts) == 2
        for job, output in zip(jobs, outputs, strict=True):
            assert_matches_oracle(engine, job, output)
