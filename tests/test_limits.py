"""No request can take the server down, and nobody gets in who may not: limits, timeouts, API key, CORS, remote code."""

import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from checkpoints import write_llada
from clients import wait_until_idle
from scrape import scrape, total
from server import is_healthy, serve
from waiting import PATIENCE

pytestmark = pytest.mark.engine

KEY = "a-key-of-the-test"
ORIGIN = "http://page.example"
ROWS = 4096
LIMITS = {"request_timeout": 4.0, "request_rows": ROWS, "server_rows": ROWS}


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
def url(checkpoint_with_code):
    with serve(
        str(checkpoint_with_code), "--plugin", "infogain", "--dtype", "float32", "--block-size", "32",
        "--kv-cache-memory-bytes", "67108864", "--served-model-name", "tiny", "--api-key", KEY,
        "--allowed-origins", json.dumps([ORIGIN]), "--additional-config", json.dumps({"infogain": LIMITS}),
    ) as address:  # fmt: skip
        yield address


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


def test_requests_that_together_want_too_many_rows_wait_and_are_answered_as_alone(client, url):
    # Each wants 64 x 32 rows, so that two of them are the server's limit.
    knobs = {"num_candidates": 64, "block_length": 32, "cache": "dual", "bypass_threshold": 1}
    knobs["position_temperature"] = 5
    alone = complete(client, 32, **knobs).choices[0].text
    seen = []
    with ThreadPoolExecutor(5) as pool:
        answers = [pool.submit(complete, client, 32, **knobs) for _ in range(5)]
        while not all(answer.done() for answer in answers):
            seen.append(total(scrape(url), "vllm:num_requests_running"))
    assert [answer.result().choices[0].text for answer in answers] == [alone] * 5
    assert max(seen) <= 2


def steps_taken(url) -> float:
    """By all requests; none is left."""
    wait_until_idle(url)
    return total(scrape(url), "infogain:steps_total")


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_ends_with_what_it_has_and_frees_its_pages(client, url, stream):
    before = steps_taken(url)
    answer = complete(client, 1000, stream=stream, block_length=1, sampler="ar")
    if stream:
        chunks = [chunk.choices[0] for chunk in answer if chunk.choices]
        reason, text = chunks[-1].finish_reason, "".join(chunk.text for chunk in chunks)
    else:
        reason, text = answer.choices[0].finish_reason, answer.choices[0].text
    assert reason == "abort"
    assert text, "blocks finished until then are kept"
    assert steps_taken(url) - before < 1000, "it was to end long before its canvas is full"


def test_a_request_that_nobody_admits_in_time_ends_too(client, url):
    knobs = {"num_candidates": 4, "block_length": 0, "bypass_threshold": 1}  # all of the server's rows
    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(complete, client, 1000, **knobs) for _ in range(2)]
        while (
            not total(scrape(url), "vllm:num_requests_running") == total(scrape(url), "vllm:num_requests_waiting") == 1
        ):
            assert not any(answer.done() for answer in answers), "one was to wait for the other"
        choices = [answer.result().choices[0] for answer in answers]
    assert [choice.finish_reason for choice in choices] == ["abort", "abort"]
    wait_until_idle(url)


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


@pytest.mark.parametrize("stream", [False, True])
def test_a_request_that_takes_too_long_before_any_text_says_so_and_what_it_cost(client, stream):
    answer = complete(client, 1000, stream=stream, block_length=0, sampler="ar")
    (choice,) = [chunk.choices[0] for chunk in answer] if stream else answer.choices
    assert (choice.text, choice.finish_reason) == ("", "abort")
    assert 0 < choice.infogain["steps"] < 1000
