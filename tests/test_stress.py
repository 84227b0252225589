"""A real server under random traffic: every answer is right, every fault is refused, everything is given back."""

import asyncio
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
from clients import Answer, ask, ask_streamed, client, metrics, wait_until_idle
from server import start
from traffic import Call, invalid_call, valid_call
from waiting import PATIENCE

pytestmark = pytest.mark.engine

SEED = 20250611
CLIENTS = 16
REQUESTS = 1000
SCARCE_REQUESTS = 500
# What a client does with a request, and how often. Those that leave have no answer to compare.
MANNERS = {"whole": 10, "streamed": 4, "spoiled": 4, "spoiled, streamed": 1, "aborted": 2, "left mid-stream": 2}

Expected = list[tuple[Call, Answer]]


@pytest.fixture(scope="module")
def url(embedded_url: str) -> str:
    return embedded_url


@pytest.fixture(scope="module")
def expected(url: str) -> Expected:
    """Distinct valid requests and what each is answered alone."""
    rng = random.Random(SEED)
    calls = [valid_call(rng) for _ in range(150)]

    async def one_by_one() -> Expected:
        async with client(url) as http:
            return [(call, await ask(http, call)) for call in calls]

    pairs = asyncio.run(one_by_one())
    assert all(answer.status == 200 for _, answer in pairs), [pair for pair in pairs if pair[1].status != 200]
    assert len({answer.choices for _, answer in pairs}) > 100, "the requests do not tell answers apart"
    return pairs


async def send(http: httpx.AsyncClient, manner: str, rng: random.Random, expected: Expected) -> str | None:
    """Send one request; returns what was wrong with what came back."""
    call, due = rng.choice(expected)
    send_it = ask_streamed if "stream" in manner else ask
    try:
        if manner == "aborted":
            try:
                async with asyncio.timeout(rng.uniform(0, 0.5)):
                    answer = await ask(http, call)
            except TimeoutError:
                return None
        elif manner == "left mid-stream":
            answer = await ask_streamed(http, call, leave_after=rng.randint(1, 2))
            if answer is None:
                return None
        elif manner.startswith("spoiled"):
            call = invalid_call(rng)
            answer = await send_it(http, call)
            is_refused = answer.status == 400 and call.refused in answer.error
            return None if is_refused else f"{manner}: {call}\n  got {answer}"
        else:
            answer = await send_it(http, call)
    except (TimeoutError, httpx.HTTPError) as error:
        return f"{manner}: {call}\n  got {error!r}"
    return None if answer == due else f"{manner}: {call}\n  got {answer}\n  due {due}"


async def besiege(
    url: str, count: int, expected: Expected, meanwhile: Callable[[httpx.AsyncClient], Awaitable[None]] | None = None
) -> list[str]:
    """`count` random requests from many clients at once, `meanwhile` beside them; returns what went wrong."""
    rng = random.Random(SEED)
    manners = rng.choices(list(MANNERS), list(MANNERS.values()), k=count)
    assert min(Counter(manners).values()) > count / 50
    jobs = iter([(manner, random.Random(f"{SEED}/{index}")) for index, manner in enumerate(manners)])
    faults = []

    async def one_client() -> None:
        async with client(url) as http:
            for manner, rng in jobs:
                if fault := await send(http, manner, rng, expected):
                    faults.append(fault)

    async with client(url) as http:
        beside = asyncio.create_task(meanwhile(http)) if meanwhile else None
        await asyncio.gather(*(one_client() for _ in range(CLIENTS)))
        if beside:
            beside.cancel()
            await asyncio.gather(beside, return_exceptions=True)
    return faults


def report(faults: list[str]) -> str:
    return f"{len(faults)} requests went wrong, of them:\n" + "\n".join(faults[:5])


def test_a_thousand_random_requests_are_each_answered_as_if_alone(url: str, expected: Expected):
    faults = asyncio.run(besiege(url, REQUESTS, expected))
    assert not faults, report(faults)
    wait_until_idle(url)


def hostile_constraints() -> list[dict[str, Any]]:
    """Each differs from the others, and takes more to compile than is served."""
    bombs = ["(a|b)*a(a|b){{{}}}", "(a{{10000}}){{{}}}", "(a?){{{}}}a{{1000}}", "(a|b|ab)*b(a|b){{{}}}"]
    patterns = [{"regex": bomb.format(1000 - index)} for index in range(4) for bomb in bombs]
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(6):
        schema = {"properties": {"a": schema} | {f"p{index}": {"type": "null"} for index in range(20)}}
    return [*patterns, {"json": schema}]


def test_constraints_too_large_to_compile_are_refused_and_hold_nobody_up(url: str):
    plain = {"prompt": "multiply 6*7", "max_tokens": 12, "temperature": 0}

    async def completed(http: httpx.AsyncClient, body: dict[str, Any]) -> httpx.Response:
        return await http.post("/v1/completions", json={"model": "infogain-tiny"} | body)

    async def besieged() -> int:
        """How often others were answered before the hostile ones all were."""
        async with client(url) as http, asyncio.TaskGroup() as group:
            hostile = [
                group.create_task(completed(http, plain | {"structured_outputs": constraint}))
                for constraint in hostile_constraints()
            ]
            looks = 0
            while not all(task.done() for task in hostile):
                assert (await http.get("/health")).status_code == 200
                assert (await completed(http, plain)).status_code == 200
                looks += 1
        for answer in (task.result() for task in hostile):
            assert answer.status_code == 400, answer.text
            assert "structured_outputs." in answer.json()["error"]["message"]
        return looks

    looks, hostile = asyncio.run(besieged()), len(hostile_constraints())
    print(f"{looks} looks beside {hostile} hostile constraints")
    # Compiled on the server's event loop, one after the other, they would let no more than one pass after each.
    assert looks > hostile + 1
    wait_until_idle(url)


def test_requests_that_wait_and_are_preempted_are_answered_as_if_alone_and_the_server_ends_well(
    expected: Expected,
):
    # The longest request keeps four states of two pages each; one page more is vLLM's own.
    seen: Counter[str] = Counter()

    async def take_pages_away(http: httpx.AsyncClient) -> None:
        while True:
            reset = await http.post("/reset_prefix_cache", params={"reset_running_requests": True})
            assert reset.status_code == 200
            now = await asyncio.to_thread(metrics, url)
            seen["waiting"] += now["vllm:num_requests_waiting"] > 0
            seen["looks"] += 1
            seen["preempted"] = int(now["vllm:num_preemptions_total"])
            await asyncio.sleep(0.02)

    with start(
        "--plugin", "infogain", "--num-gpu-blocks-override", "9", environment={"VLLM_SERVER_DEV_MODE": "1"}
    ) as server:
        url = server.url
        while seen["preempted"] <= 20 or not seen["waiting"]:  # once, unless the machine is too fast to be looked at
            faults = asyncio.run(besiege(url, SCARCE_REQUESTS, expected, take_pages_away))
            assert not faults, report(faults)
            wait_until_idle(url)
        print(seen)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=PATIENCE) == 0
