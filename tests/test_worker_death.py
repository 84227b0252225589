"""A process of the server is killed: nobody waits for ever, nobody is told that all is well."""

import asyncio

import httpx
import psutil
import pytest
from clients import ask, ask_streamed, client, metrics
from server import Server, start, titled
from traffic import COMPLETIONS, Call
from waiting import PATIENCE, wait_until

from vllm_infogain.embedded import SERVED_NAME

pytestmark = pytest.mark.engine

TOKENS = 56
LONG = Call(COMPLETIONS, {
    "model": SERVED_NAME, "prompt": "7", "max_tokens": TOKENS, "seed": 1, "ignore_eos": True, "return_token_ids": True,
    "vllm_xargs": {"num_candidates": 64, "bypass_threshold": 1, "position_temperature": 5, "block_length": 0},
})  # fmt: skip


async def sent_until_one_fails(http: httpx.AsyncClient, stream: bool) -> int | str:
    """One request after the other, so that no machine is too fast: how the first failed that was not answered whole."""
    while True:
        try:
            answer = await (ask_streamed if stream else ask)(http, LONG)
        except httpx.HTTPError as error:
            return type(error).__name__
        if answer.status != 200:
            return answer.status
        assert [len(ids) for _, ids, _ in answer.choices] == [TOKENS], "told that all is well"


def health(url: str) -> int | None:
    """The status; None where nobody answers."""
    try:
        return httpx.get(f"{url}/health", timeout=PATIENCE).status_code
    except httpx.TransportError:
        return None


async def kill_under_load(server: Server, victim: psutil.Process) -> None:
    async with client(server.url) as http, asyncio.TaskGroup() as group:
        sent = [group.create_task(sent_until_one_fails(http, stream)) for stream in (False, True, False, True)]

        def is_busy() -> bool:
            failed = [task.result() for task in sent if task.done()]
            assert not failed, f"before anything was killed: {failed}"
            return metrics(server.url)["vllm:num_requests_running"] > 0

        await asyncio.to_thread(wait_until, is_busy, lambda: "no request ever runs")
        victim.kill()


def die(server: Server, title: str) -> None:
    victim, *_ = titled(server, title)
    children = psutil.Process(server.process.pid).children(recursive=True)
    asyncio.run(kill_under_load(server, victim))  # until every client was told
    assert health(server.url) in (503, None)
    assert server.process.wait(timeout=PATIENCE) == 1, "so that a supervisor restarts it"
    _, left = psutil.wait_procs(children, timeout=PATIENCE)
    assert not left


def test_a_killed_engine_core_ends_the_server():
    with start("--plugin", "infogain") as server:
        die(server, "VLLM::EngineCore")


@pytest.mark.slow  # its death is the engine core's, which is killed above
def test_a_killed_worker_of_two_ends_the_server():
    with start(
        "--plugin", "infogain", "--tensor-parallel-size", "2", environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    ) as server:
        assert len(titled(server, "VLLM::Worker")) == 2
        die(server, "VLLM::Worker")
