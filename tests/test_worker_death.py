"""A process of the server is killed: nobody waits for ever, nobody is told that all is well."""

import concurrent.futures
import time

import httpx
import psutil
import pytest
from clients import metrics
from server import Server, start
from waiting import PATIENCE

from vllm_infogain.embedded import SERVED_NAME

pytestmark = pytest.mark.engine

# Seconds of work: still running when the process dies.
LONG = {
    "model": SERVED_NAME, "prompt": "7", "max_tokens": 56, "seed": 1, "ignore_eos": True,
    "vllm_xargs": {"num_candidates": 64, "bypass_threshold": 1, "position_temperature": 5, "block_length": 0},
}  # fmt: skip


def processes(server: Server, title: str) -> list[psutil.Process]:
    """The server's processes whose title, which vLLM sets, starts so."""
    return [
        child for child in psutil.Process(server.process.pid).children(recursive=True)
        if " ".join(child.cmdline()).startswith(title)
    ]  # fmt: skip


def generate(url: str, stream: bool) -> str:
    """What a client sees of a long request: "answered", or how it failed."""
    try:
        with httpx.stream(
            "POST", f"{url}/v1/completions", json=LONG | {"stream": stream}, timeout=PATIENCE
        ) as response:
            body = response.read().decode()
    except httpx.HTTPError as error:
        return type(error).__name__
    if response.status_code != 200:
        return str(response.status_code)
    return "error in the stream" if '"error"' in body else "answered"


def health(url: str) -> int | None:
    """The status; None where nobody answers."""
    try:
        return httpx.get(f"{url}/health", timeout=PATIENCE).status_code
    except httpx.TransportError:
        return None


def kill_under_load(server: Server, title: str) -> None:
    victim, *_ = processes(server, title)
    children = psutil.Process(server.process.pid).children(recursive=True)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        waiting = [pool.submit(generate, server.url, stream) for stream in (False, True)]
        while metrics(server.url)["vllm:num_requests_running"] < 2:
            assert not any(client.done() for client in waiting), "too short a request to die under"
            time.sleep(0.05)
        victim.kill()
        seen = [client.result() for client in waiting]
    assert not {"answered", "ReadTimeout"} & set(seen), seen
    assert health(server.url) in (503, None)
    assert server.process.wait(timeout=PATIENCE) == 1, "so that a supervisor restarts it"
    _, left = psutil.wait_procs(children, timeout=PATIENCE)
    assert not left


def test_a_killed_engine_core_ends_the_server():
    with start("--plugin", "infogain") as server:
        kill_under_load(server, "VLLM::EngineCore")


def test_a_killed_worker_of_two_ends_the_server():
    with start(
        "--plugin", "infogain", "--tensor-parallel-size", "2", environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    ) as server:
        assert len(processes(server, "VLLM::Worker")) == 2
        kill_under_load(server, "VLLM::Worker")
