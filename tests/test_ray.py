"""Ray places the workers, one on each of two nodes: the same tokens as one worker."""

import importlib.metadata
import json
import os
import subprocess
import sys
import textwrap

import pytest
import vllm.platforms
from child import generate
from engines import Job, running
from jobs import CACHED
from ray_cluster import ray_cluster
from vllm.platforms.cpu import CpuPlatform
from vllm.plugins import PLATFORM_PLUGINS_GROUP
from waiting import PATIENCE

from vllm_infogain.engine import ray_on_cpu

JOBS = [
    *CACHED,
    Job("exact", {"sampler": "info_gain", "block_length": 8, "bypass_threshold": 1.0}, 16),
    Job("warm", {"sampler": "entropy", "tokens_per_step": 2, "block_length": 8}, 16, 0.8, 4),
]


@pytest.mark.engine
def test_two_workers_on_two_nodes_give_the_tokens_of_one(checkpoint):
    """A server's workers: test_families_served.py."""
    with ray_cluster(nodes=2) as environment:
        tokens = generate(checkpoint, JOBS, environment, tensor_parallel_size=2, distributed_executor_backend="ray")
    with running(checkpoint, model=object()) as engine:
        assert tokens == [list(output.outputs[0].token_ids) for output in engine.run(JOBS)]
    assert sum(map(len, tokens)) == sum(job.max_tokens for job in JOBS)


# The entry that makes it possible without a GPU.


def platforms_of_new_processes(*environments: dict[str, str]) -> list[str]:
    """Forks of one process that has imported what takes long, and of vLLM nothing that asks for a platform."""
    code = """
        import json, os, sys
        import torch, transformers

        assert "vllm" not in sys.modules
        for environment in json.loads(sys.argv[1]):
            if (child := os.fork()) == 0:
                os.environ.update(environment)
                from vllm.platforms import current_platform as p
                print("PLATFORM", type(p).__name__, repr(p.ray_device_key), p.is_cpu(), flush=True)
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
    """
    variables = {name: value for name, value in os.environ.items() if name != ray_on_cpu.SWITCH}
    command = [sys.executable, "-c", textwrap.dedent(code), json.dumps(environments)]
    run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE, env=variables)
    marked = (line for line in run.stdout.splitlines() if line.startswith("PLATFORM "))
    return [line.removeprefix("PLATFORM ") for line in marked]


def test_the_platform_is_vllms_own_unless_the_switch_is_on():
    switch = ray_on_cpu.SWITCH
    vllms, ours = "CpuPlatform '' True", "RayCPUPlatform 'GPU' True"
    environments = {}, {switch: "0"}, {switch: "1"}, {switch: "1", "VLLM_PLUGINS": ""}
    assert platforms_of_new_processes(*environments) == [vllms, vllms, ours, vllms]


def test_the_switch_means_nothing_where_vllm_is_not_built_for_cpus(monkeypatch):
    monkeypatch.setenv(ray_on_cpu.SWITCH, "1")
    assert ray_on_cpu.platform() is not None
    monkeypatch.setattr(vllm.platforms, "cpu_platform_plugin", lambda: None)
    assert ray_on_cpu.platform() is None


def test_vllm_still_asks_for_what_the_entry_gives_and_has_none_of_its_own():
    (entry,) = importlib.metadata.entry_points(group=PLATFORM_PLUGINS_GROUP, name="infogain")
    assert entry.load() is ray_on_cpu.platform
    assert CpuPlatform.ray_device_key == "", "vLLM's CPU platform names a Ray resource: remove engine/ray_on_cpu.py"
