"""Clients of a server under test: asynchronous, each request with a deadline, the answer in a form to compare."""

import asyncio
import json
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import httpx
import openai
from engines import Job
from scrape import scrape
from traffic import COMPLETIONS, Call
from waiting import PATIENCE, wait_until

DEADLINE = PATIENCE  # for one request, however busy the server
KEEP_ALIVE = (
    2.0  # seconds that an unused connection is kept: less than the server does, which would close it in our face
)


@dataclass(frozen=True)
class Answer:
    status: int
    choices: tuple[tuple[str, tuple[int, ...], str | None], ...] = ()  # (text, token ids, finish reason) by index
    error: str = ""  # body of a refusal


def client(url: str) -> httpx.AsyncClient:
    # No time-out of a read: `DEADLINE` is for the whole request.
    limits = httpx.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE)
    return httpx.AsyncClient(base_url=url, timeout=None, limits=limits)


async def ask(http: httpx.AsyncClient, call: Call) -> Answer:
    """The whole answer in one piece."""
    async with asyncio.timeout(DEADLINE):
        response = await http.post(call.path, json=call.body)
    if response.status_code != 200:
        return Answer(response.status_code, error=response.text)
    choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
    fields = ((_text(call, choice), tuple(choice["token_ids"]), choice["finish_reason"]) for choice in choices)
    return Answer(200, tuple(fields))


async def ask_streamed(http: httpx.AsyncClient, call: Call, leave_after: int | None = None) -> Answer | None:
    """The answer put together from its chunks; None where the client left after `leave_after` of them."""
    texts, ids, reasons = defaultdict(str), defaultdict(tuple), {}
    async with (
        asyncio.timeout(DEADLINE),
        http.stream("POST", call.path, json=call.body | {"stream": True}) as response,
    ):
        if response.status_code != 200:
            return Answer(response.status_code, error=(await response.aread()).decode())
        chunks = 0
        async for line in response.aiter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            chunk = json.loads(line.removeprefix("data: "))
            if "error" in chunk:
                return Answer(chunk["error"].get("code", 0), error=line)
            for choice in chunk["choices"]:
                index = choice["index"]
                texts[index] += _text(call, choice)
                ids[index] += tuple(choice.get("token_ids") or ())
                reasons[index] = choice.get("finish_reason") or reasons.get(index)
            chunks += 1
            if chunks == leave_after:
                return None
    return Answer(200, tuple((texts[index], ids[index], reasons[index]) for index in sorted(reasons)))


def completed(url: str, model: str, jobs: list[Job]) -> list[list[int]]:
    """Tokens of the jobs, sent at once by OpenAI's client."""

    async def send_all():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
            sent = [
                client.completions.create(
                    model=model, prompt=job.prompt, max_tokens=job.max_tokens, temperature=job.temperature,
                    seed=job.seed,
                    extra_body={"ignore_eos": True, "vllm_xargs": job.knobs, "return_token_ids": True},
                )
                for job in jobs
            ]  # fmt: skip
            return await asyncio.gather(*sent)

    return [answer.choices[0].token_ids for answer in asyncio.run(send_all())]


def _text(call: Call, choice: dict[str, Any]) -> str:
    if call.path == COMPLETIONS:
        return choice["text"]
    return (choice["delta"] if "delta" in choice else choice["message"]).get("content") or ""


def metrics(url: str) -> dict[str, float]:
    """Sums of the server's metrics over their labels, by name."""
    sums: dict[str, float] = defaultdict(float)
    for (name, _), value in scrape(url).items():
        sums[name] += value
    return dict(sums)


HELD = (
    "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc", "infogain:scratch_pages",
)  # fmt: skip


def wait_until_idle(url: str) -> None:
    """Wait until no request runs or waits and every KV page is free, scratch pages too."""

    def held() -> dict[str, float]:
        now = metrics(url)
        return {name: now[name] for name in HELD if now[name]}

    wait_until(lambda: not held(), lambda: f"the server does not come to rest: {held()}", every=0.2)
