"""No request can take the server down, and nobody gets in who may not: limits, timeouts, API key, CORS, remote code."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest
from checkpoints import write_llada
from clients import wait_until_idle
from scrape import Samples, scrape, total
from server import is_healthy, start, titled
from waiting import PATIENCE, wait_until

pytestmark = pytest.mark.engine

KEY = "a-key-of-the-test"
ORIGIN = "http://page.example"
ROWS = 4096
LIMITS = {"request_timeout": 6.0, "request_rows": ROWS, "server_rows": ROWS}


@pytest.fixture(scope="module")
def checkpoint_with_code(tmp_path_factory):
    """A checkpoint that brings code of its own, which says so if it ever runs."""
    path = tmp_path_factory.mktemp("tiny")
    write_llada(path, max_sequence_length=1024)
    (path / "modeling_llada.py").write_text(
        f"open({str(path / 'it-ran')!r}, 'w').close()\nclass Config: ...\nclass Model: ...\n"
    )
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "modeling_llada.Config", "AutoModelForCausalLM": "modeling_llada.Model"}
    (path / "config.json").write_text(json.dumps(config))
    return path


@pytest.fixture(scope="module")
def server(checkpoint_with_code):
    with start(
        str(checkpoint_with_code), "--plugin", "infogain", "--dtype", "float32", "--block-size", "32",
        "--kv-cache-memory-bytes", "67108864", "--served-model-name", "tiny", "--api-key", KEY,
        "--allowed-origins", json.dumps([ORIGIN]), "--additional-config", json.dumps({"infogain": LIMITS}),
    ) as server:  # fmt: skip
        yield server


@pytest.fixture(scope="module")
def url(server):
    return server.url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0, timeout=PATIENCE) as client:
        yield client


def complete(client, max_tokens: int = 8, *, stream: bool = False, n: int = 1, **knobs):
    extra = {"ignore_eos": True, "vllm_xargs": knobs}
    return client.completions.create(
        model="tiny", prompt="judge 1+2=3", max_tokens=max_tokens, n=n, stream=stream, seed=1, extra_body=extra
    )


@pytest.mark.parametrize(
    ("name", "n", "knobs"),
    [
        ("num_candidates", 1, {"num_candidates": 64, "block_length": 0}),
        ("beam_width", 1, {"sampler": "beam", "beam_width": 32, "num_candidates": 8}),
        ("num_generations", 1, {"sampler": "best_of_n", "num_generations": 256}),
        ("n", 128, {"sampler": "ar"}),
    ],
)
def test_a_request_of_more_rows_than_allowed_is_refused_by_name(client, name, n, knobs):
    with pytest.raises(openai.BadRequestError, match=rf"{name}=.*request_rows is {ROWS}"):
        complete(client, 90, n=n, **knobs)


# Requests that take too long. No machine is too fast for that or too slow: the engine core is stopped in the midst of
# them until they are late, and they are sent again where they were done, or late, before that.

AT_ONCE = {"sampler": "ar", "block_length": 0}  # no text before the end
BLOCKS = {"sampler": "ar", "block_length": 1}
STEPS = "infogain:steps_total"
EVERY_ROW = {"num_candidates": 4, "block_length": 0, "bypass_threshold": 1}


def answer(client, stream: bool, knobs) -> tuple[str, str, Any]:
    """Its finish reason, text and report, of which one that never ran has none."""
    answer = complete(client, 1000, stream=stream, **knobs)
    choices = [chunk.choices[0] for chunk in answer if chunk.choices] if stream else answer.choices
    return choices[-1].finish_reason, "".join(choice.text for choice in choices), getattr(choices[-1], "infogain", None)


def late(server, client, asked: list[tuple[bool, dict]], are_under_way: Callable[[Samples, float], bool]) -> list:
    """Answers of requests, sent at once, that are all late while they are under way: by the metrics, and steps made."""
    (core,) = titled(server, "VLLM::EngineCore")
    answers = []

    def were_late() -> bool:
        nonlocal answers
        wait_until_idle(server.url)
        before = total(scrape(server.url), STEPS)

        def have_begun() -> bool:
            now = scrape(server.url)
            return are_under_way(now, total(now, STEPS) - before) or any(one.done() for one in sent)

        with ThreadPoolExecutor(len(asked)) as pool:
            sent = [pool.submit(answer, client, *one) for one in asked]
            wait_until(have_begun, lambda: "they do not get so far")
            core.suspend()
            is_in_time = not any(one.done() for one in sent)
            if is_in_time:
                time.sleep(LIMITS["request_timeout"])
            core.resume()
            answers = [one.result() for one in sent]
        return is_in_time and all(reason == "abort" for reason, *_ in answers)

    wait_until(were_late, lambda: f"the last answers: {answers}")
    return answers


def test_requests_that_take_too_long_end_with_what_they_have_and_say_what_it_cost(server, client):
    def are_under_way(now: Samples, steps: float) -> bool:
        return total(now, "vllm:num_requests_running") == 4 and steps > 20

    asked = [(stream, knobs) for stream in (False, True) for knobs in (AT_ONCE, BLOCKS)]
    answers = late(server, client, asked, are_under_way)
    for (_, knobs), (_, text, report) in zip(asked, answers, strict=True):
        assert bool(text) == (knobs == BLOCKS), "blocks finished until then are kept"
        assert 0 < report["steps"] < 1000
    wait_until_idle(server.url)


def test_a_request_that_nobody_admits_in_time_ends_too(server, client):
    def are_under_way(now: Samples, _: float) -> bool:
        return total(now, "vllm:num_requests_running") == total(now, "vllm:num_requests_waiting") == 1

    answers = late(server, client, [(False, EVERY_ROW)] * 2, are_under_way)
    assert [text for _, text, _ in answers] == ["", ""]
    assert sorted(report is None for *_, report in answers) == [False, True], "one has never run"
    wait_until_idle(server.url)


def test_without_the_key_nothing_is_answered(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            stranger.models.list()
        with pytest.raises(openai.AuthenticationError):
            complete(stranger)
    assert is_healthy(url)


@pytest.mark.parametrize(("origin", "is_let_in"), [(ORIGIN, True), ("http://other.example", False)])
def test_only_pages_of_the_allowed_origin_may_read_answers(url, origin, is_let_in):
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST", "Authorization": f"Bearer {KEY}"}
    request = urllib.request.Request(f"{url}/v1/models", headers=headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as response:
        assert (response.headers.get("Access-Control-Allow-Origin") == origin) == is_let_in


def test_code_that_a_checkpoint_brings_does_not_run(client, checkpoint_with_code):
    assert complete(client).usage.completion_tokens == 8
    assert not (checkpoint_with_code / "it-ran").exists()
