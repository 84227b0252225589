"""Two engines behind one server: requests are spread over both, and each is answered as one engine answers it."""

import asyncio
import re
import urllib.request

import openai
import pytest
from engines import Job, running
from server import serve
from waiting import PATIENCE

from vllm_infogain.embedded import SERVED_NAME

pytestmark = pytest.mark.engine

SAMPLERS = ["info_gain", "entropy", "beam", "lookum"]
JOBS = [
    Job(f"judge {i}+2*3={i + 6}", {"sampler": SAMPLERS[i % 4], "block_length": 8, "cache": cache}, 12, i % 2, i)
    for i, cache in enumerate(["none", "dual", "prefix"] * 4)
]


def completions(url: str, jobs: list[Job]) -> list[list[int]]:
    """Tokens of the jobs, sent at once."""

    async def send_all():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
            sent = [
                client.completions.create(
                    model=SERVED_NAME, prompt=job.prompt, max_tokens=job.max_tokens, temperature=job.temperature,
                    seed=job.seed,
                    extra_body={"ignore_eos": True, "vllm_xargs": job.knobs, "return_token_ids": True},
                )
                for job in jobs
            ]  # fmt: skip
            return await asyncio.gather(*sent)

    return [answer.choices[0].token_ids for answer in asyncio.run(send_all())]


def answered_by_engine(url: str, counter: str = "vllm:generation_tokens") -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as response:
        text = response.read().decode()
    counts = re.findall("^" + counter + r'_total\{.*?engine="(\d+)".*?\} (\S+)$', text, re.MULTILINE)
    return {engine: float(count) for engine, count in counts}


def test_two_engines_share_the_requests_and_answer_as_one():
    with running(None, model=object()) as engine:
        expected = [list(output.outputs[0].token_ids) for output in engine.run(JOBS)]
    with serve("--plugin", "infogain", "--data-parallel-size", "2") as url:
        assert completions(url, JOBS) == expected
        assert completions(url, JOBS[:1]) == expected[:1]  # the other engine idles
        counts = answered_by_engine(url)
        assert answered_by_engine(url, "vllm:diffusion_num_committed_tokens") == counts
    assert counts.keys() == {"0", "1"}
    assert min(counts.values()) > 0
    assert sum(counts.values()) == sum(job.max_tokens for job in JOBS) + JOBS[0].max_tokens
