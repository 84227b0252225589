"""Two workers that share every layer decide alike: the same tokens as one, through vLLM's multi-process executor.

The other families: test_families_served.py.
"""

import pytest
from child import generate
from engines import Job, running
from jobs import CACHED, GUIDED

from vllm_infogain.request.params import SAMPLERS

pytestmark = pytest.mark.engine

EVERY_SAMPLER = [
    Job(f"prompt {i % 5}", {"sampler": sampler, "tokens_per_step": 2, "block_length": 8}, 14, temperature, 5)
    for i, (sampler, temperature) in enumerate((sampler, temperature) for sampler in SAMPLERS for temperature in (0, 1))
]


def test_every_sampler_cache_and_guide_gives_the_same_tokens_on_one_worker_and_on_two(checkpoint):
    jobs = [*EVERY_SAMPLER, *CACHED, *GUIDED]
    seven, one = ({"infogain": {"steps_per_schedule": steps}} for steps in (7, 1))
    tokens = generate(checkpoint, jobs, tensor_parallel_size=2, additional_config=seven)
    with running(checkpoint, model=object(), additional_config=one) as engine:
        assert tokens == [list(output.outputs[0].token_ids) for output in engine.run(jobs)]
    assert sum(map(len, tokens)) == sum(job.max_tokens for job in jobs)
