"""Two engines behind one server: requests are spread over both, and each is answered as one engine answers it."""

import re
import urllib.request

import pytest
from clients import completed
from engines import Job, running
from ray_cluster import members, ray_cluster
from server import serve, start
from waiting import PATIENCE, wait_until

from vllm_infogain.embedded import SERVED_NAME

pytestmark = pytest.mark.engine

SAMPLERS = ["info_gain", "entropy", "beam", "lookum"]
JOBS = [
    Job(f"judge {i}+2*3={i + 6}", {"sampler": SAMPLERS[i % 4], "block_length": 8, "cache": cache}, 12, i % 2, i)
    for i, cache in enumerate(["none", "dual", "prefix"] * 4)
]


def answered_by_engine(url: str, counter: str = "vllm:generation_tokens") -> dict[str, float]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as response:
        text = response.read().decode()
    counts = re.findall("^" + counter + r'_total\{.*?engine="(\d+)".*?\} (\S+)$', text, re.MULTILINE)
    return {engine: float(count) for engine, count in counts}


def test_two_engines_share_the_requests_and_answer_as_one():
    with running(None, model=object()) as engine:
        expected = [list(output.outputs[0].token_ids) for output in engine.run(JOBS)]
    with serve("--plugin", "infogain", "--data-parallel-size", "2") as url:
        assert completed(url, SERVED_NAME, JOBS) == expected
        assert completed(url, SERVED_NAME, JOBS[:1]) == expected[:1]  # the other engine idles
        counts = answered_by_engine(url)
        assert answered_by_engine(url, "vllm:diffusion_num_committed_tokens") == counts
    assert counts.keys() == {"0", "1"}
    assert min(counts.values()) > 0
    assert sum(counts.values()) == sum(job.max_tokens for job in JOBS) + JOBS[0].max_tokens


@pytest.mark.slow
def test_engines_that_ray_placed_answer_as_one_and_the_death_of_one_ends_the_server():
    with running(None, model=object()) as engine:
        expected = [list(output.outputs[0].token_ids) for output in engine.run(JOBS)]
    flags = ["--data-parallel-size", "2", "--data-parallel-backend", "ray"]
    with (
        ray_cluster(nodes=1, cpus=2, gpus=2) as cluster,
        start("--plugin", "infogain", *flags, environment=cluster) as server,
    ):
        assert completed(server.url, SERVED_NAME, JOBS) == expected
        counts = answered_by_engine(server.url)
        assert counts.keys() == {"0", "1"}
        assert min(counts.values()) > 0
        first, _ = members(cluster, "EngineCoreActor")
        first.kill()
        wait_until(lambda: server.process.poll() is not None, lambda: "the server lives on without an engine")
