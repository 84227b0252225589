"""Two workers that share every layer decide alike: the same tokens as one, through vLLM's multi-process executor."""

from pathlib import Path

import pytest
from checkpoints import write_dream, write_llada, write_sdar
from checkpoints_moe import write_llada2, write_llada_moe, write_sdar_moe
from child import generate
from engines import Job, running
from jobs import BLOCK_CAUSAL, CACHED

from vllm_infogain.request.params import SAMPLERS

pytestmark = pytest.mark.engine

EVERY_SAMPLER = [
    Job(f"prompt {i % 5}", {"sampler": sampler, "tokens_per_step": 2, "block_length": 8}, 14, temperature, 5)
    for i, (sampler, temperature) in enumerate((sampler, temperature) for sampler in SAMPLERS for temperature in (0, 1))
]


def two_workers(checkpoint: Path, jobs: list[Job], steps: int) -> list[list[int]]:
    config = {"infogain": {"steps_per_schedule": steps}}
    return generate(checkpoint, jobs, tensor_parallel_size=2, additional_config=config)


def one_worker(checkpoint: Path, jobs: list[Job], steps: int) -> list[list[int]]:
    config = {"infogain": {"steps_per_schedule": steps}}
    with running(checkpoint, model=object(), additional_config=config) as engine:
        return [list(output.outputs[0].token_ids) for output in engine.run(jobs)]


def test_every_sampler_and_every_cache_give_the_same_tokens_on_one_worker_and_on_two(tmp_path):
    write_llada(tmp_path)
    jobs = [*EVERY_SAMPLER, *CACHED]
    tokens = two_workers(tmp_path, jobs, steps=7)
    assert tokens == one_worker(tmp_path, jobs, steps=1)
    assert sum(map(len, tokens)) == sum(job.max_tokens for job in jobs)


@pytest.mark.parametrize(
    ("write", "jobs"),
    [
        (write_dream, CACHED[:6]),
        (write_sdar, BLOCK_CAUSAL),
        (write_sdar_moe, BLOCK_CAUSAL),
        (write_llada_moe, CACHED[:6]),
        (write_llada2, BLOCK_CAUSAL),
    ],
)
def test_every_family_gives_the_same_tokens_on_one_worker_and_on_two(tmp_path, write, jobs):
    write(tmp_path)
    tokens = two_workers(tmp_path, jobs, steps=1)
    assert tokens == one_worker(tmp_path, jobs, steps=7)
    assert sum(map(len, tokens)) == sum(job.max_tokens for job in jobs)
