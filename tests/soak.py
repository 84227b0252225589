"""A long run of short requests, and what the server's processes hold in memory on the way.

`python tests/soak.py 10000` starts a server of the embedded model and prints a line per tenth of the run.
"""

import asyncio
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import psutil
from clients import ask, ask_streamed, client, wait_until_idle
from knobs import fitting
from server import Server, start
from traffic import Call, plain_call

SEED = 1
CONCURRENCY = 64
LOOKS = 10
MIB = 1 << 20
# KV pages are resident once they are used: a pool of few is full soon, and what grows for ever is seen in a short run.
ARGUMENTS = ("--plugin", "infogain", "--kv-cache-memory-bytes", str(32 * MIB))


@dataclass(frozen=True)
class Memory:
    """Of one process, in MiB."""

    rss: float  # resident, pages shared with other processes included
    uss: float  # of which no other process has


def memory(server: Server) -> dict[str, Memory]:
    """Of the API server, the engine core and the workers, by their titles."""
    api = psutil.Process(server.process.pid)
    found = {"API server": api}
    for child in api.children(recursive=True):
        title = " ".join(child.cmdline()).strip()
        if title.startswith("VLLM::"):
            found[title] = child
    assert len(found) >= 3, f"engine core and worker are not among {list(found)}"
    full = {title: process.memory_full_info() for title, process in found.items()}
    return {title: Memory(info.rss / MIB, info.uss / MIB) for title, info in full.items()}


def short_call(rng: random.Random) -> Call:
    """A request of few forwards, of any sampler."""
    call = plain_call(rng)
    knobs = call.body["vllm_xargs"] | {"tokens_per_step": 4, "num_candidates": 3}
    knobs |= {"block_length": 0, "schedule": "fixed", "num_generations": 2, "beam_width": 2}
    return Call(call.path, call.body | {"max_tokens": rng.randint(1, 8), "n": 1, "vllm_xargs": fitting(knobs)})


async def serve_all(url: str, calls: list[Call]) -> None:
    """Have all calls answered, many at once, over connections that are kept alive."""

    async def one_client(http: httpx.AsyncClient) -> None:
        while calls:
            call = calls.pop()
            answer = await (ask_streamed if len(calls) % 3 == 0 else ask)(http, call)
            assert answer is not None
            assert answer.status == 200, f"{call}\n{answer}"

    async with client(url) as http:
        await asyncio.gather(*(one_client(http) for _ in range(CONCURRENCY)))


def measure(count: int) -> Iterator[dict[str, Memory]]:
    """Memory after each of LOOKS equal parts of `count` requests, the server idle."""
    rng = random.Random(SEED)
    with start(*ARGUMENTS) as server:
        for _ in range(LOOKS):
            asyncio.run(serve_all(server.url, [short_call(rng) for _ in range(count // LOOKS)]))
            wait_until_idle(server.url)
            yield memory(server)


def main(count: int) -> None:
    started = time.monotonic()
    print("resident (of its own) MiB")
    for now in measure(count):
        held = "  ".join(f"{title} {one.rss:.1f} ({one.uss:.1f})" for title, one in sorted(now.items()))
        print(f"{time.monotonic() - started:6.0f} s  {held}", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
