"""Reports and decoding steps in the responses of a real server, as OpenAI's own client reads them."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import openai
import pytest
from scrape import left_midway
from server import openai_client
from waiting import PATIENCE

from vllm_infogain.embedded.tokenizer import MASK, VOCAB

pytestmark = pytest.mark.engine

CANVAS = 24
ENDPOINTS = ("completions", "chat")
PROMPT = "judge 1+2*3=7"


@pytest.fixture(scope="module")
def url(tiny_url: str) -> str:
    return tiny_url


@pytest.fixture(scope="module")
def client(url):
    with openai_client(url) as client:
        yield client


@dataclass
class Choice:
    """One choice, put together from its chunks."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    events: list[Any] = field(default_factory=list)  # in order: texts that are not empty, and lists of steps
    finish_reason: str | None = None
    report: dict | None = None

    @property
    def steps(self) -> list[dict]:
        return [step for event in self.events if isinstance(event, list) for step in event]


def create(client, endpoint: str, body: dict | None = None, /, stream: bool = False, **knobs):
    """A response; `body` holds fields of the request, `knobs` decoding parameters."""
    body = {"max_tokens": CANVAS, "ignore_eos": True, "return_token_ids": True, "seed": 5} | (body or {})
    direct = ("max_tokens", "n", "stop", "stream_options", "prompt", "seed")
    fields = {name: body.pop(name) for name in direct if name in body} | {"model": "tiny", "stream": stream}
    knobs = {"block_length": 8, "bypass_threshold": 1, "num_candidates": 4} | knobs
    fields["extra_body"] = body | {"vllm_xargs": knobs}
    if endpoint == "completions":
        return client.completions.create(**({"prompt": PROMPT} | fields))
    return client.chat.completions.create(**({"messages": [{"role": "user", "content": PROMPT}]} | fields))


def text_of(choice) -> str:
    """Of a choice or a chunk of one, of either endpoint."""
    if hasattr(choice, "text"):
        return choice.text
    message = choice.message if hasattr(choice, "message") else choice.delta
    return message.content or ""


def gather(chunks) -> dict[int, Choice]:
    """The choices by their index."""
    choices: dict[int, Choice] = defaultdict(Choice)
    for chunk in chunks:
        for part in chunk.choices:
            choice = choices[part.index]
            assert choice.finish_reason is None, "nothing comes behind the finish_reason"
            steps = getattr(part, "infogain_steps", None)
            if steps is not None:
                assert not text_of(part)
                assert part.finish_reason is None
                choice.events.append(steps)
            elif text_of(part):
                choice.events.append(text_of(part))
            choice.text += text_of(part)
            choice.token_ids += getattr(part, "token_ids", None) or []
            choice.finish_reason = part.finish_reason
            choice.report = getattr(part, "infogain", None)
            assert (choice.report is None) == (choice.finish_reason is None), "the report comes with the finish_reason"
    return dict(choices)


# Reports.


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("mode", ["block", "canvas"])
def test_a_stream_ends_with_the_text_and_the_report_of_the_whole_response(client, endpoint, mode):
    response = create(client, endpoint, {"n": 2})
    streamed = gather(create(client, endpoint, {"n": 2}, stream=True, stream_mode=mode))
    assert response.kv_transfer_params is None
    for choice in response.choices:
        assert streamed[choice.index].text == text_of(choice)
        assert streamed[choice.index].token_ids == choice.token_ids
        assert streamed[choice.index].finish_reason == choice.finish_reason == "length"
        # What a request costs depends on nobody it runs beside.
        assert streamed[choice.index].report == choice.infogain
    assert choice.infogain["steps"] == CANVAS
    entropies = {choice.infogain["cumulative_entropy"] for choice in response.choices}
    assert len(entropies) == 2, "each sample has a report of its own"


@pytest.mark.parametrize("mode", ["block", "canvas"])
def test_samples_of_several_prompts_have_the_reports_they_have_alone(client, mode):
    prompts = [PROMPT, "sudoku\n1..4"]
    alone = [create(client, "completions", {"prompt": prompt, "n": 2}).choices for prompt in prompts]
    expected = [choice.infogain for choices in alone for choice in choices]
    whole = create(client, "completions", {"prompt": prompts, "n": 2})
    streamed = gather(create(client, "completions", {"prompt": prompts, "n": 2}, stream=True, stream_mode=mode))
    entropies = [report["cumulative_entropy"] for report in expected]
    assert len(set(entropies)) == 4
    assert [choice.infogain["cumulative_entropy"] for choice in whole.choices] == pytest.approx(entropies, abs=1e-4)
    assert sorted(streamed) == [0, 1, 2, 3]
    streamed_entropies = [streamed[index].report["cumulative_entropy"] for index in range(4)]
    assert streamed_entropies == pytest.approx(entropies, abs=1e-4)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_report_comes_beside_the_usage(client, endpoint):
    body = {"stream_options": {"include_usage": True}}
    chunks = list(create(client, endpoint, body, stream=True, stream_mode="canvas"))
    assert gather(chunks)[0].report["steps"] == CANVAS
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == CANVAS


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("mode", ["block", "canvas"])
def test_every_chunk_counts_the_tokens_so_far_if_asked_to(client, endpoint, mode):
    body = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    *chunks, last = create(client, endpoint, body, stream=True, stream_mode=mode)
    tokens = 0
    for chunk in chunks:
        tokens += len(getattr(chunk.choices[0], "token_ids", None) or ())
        assert chunk.usage.completion_tokens == tokens
        assert chunk.usage.prompt_tokens == last.usage.prompt_tokens
    assert tokens == last.usage.completion_tokens == CANVAS


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("mode", ["block", "canvas"])
def test_a_request_ended_by_a_stop_string_has_a_report(client, endpoint, mode):
    text = text_of(create(client, endpoint).choices[0])
    stop = text[10]  # of the second block
    stopped = create(client, endpoint, {"stop": stop}).choices[0]
    streamed = gather(create(client, endpoint, {"stop": stop}, stream=True, stream_mode=mode))[0]
    assert text_of(stopped) == streamed.text == text[: text.index(stop)]
    assert stopped.finish_reason == streamed.finish_reason == "stop"
    for report in (stopped.infogain, streamed.report):
        assert 0 < report["steps"] <= CANVAS


def test_a_stream_of_blocks_has_no_chunk_without_text(client):
    chunks = list(create(client, "completions", stream=True))
    assert [len(chunk.choices[0].token_ids) for chunk in chunks] == [8, 8, 8]
    assert not any(hasattr(chunk.choices[0], "infogain_steps") for chunk in chunks)


# Steps.


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_steps_write_every_place_of_the_canvas_once_and_add_up_to_the_response(client, endpoint):
    choice = gather(create(client, endpoint, stream=True, stream_mode="canvas", tokens_per_step=2))[0]
    written = [
        (position, token)
        for step in choice.steps
        for position, token in zip(step["positions"], step["tokens"], strict=True)
    ]
    assert sorted(position for position, _ in written) == list(range(CANVAS))
    assert [token for _, token in sorted(written)] == choice.token_ids
    assert len(choice.steps) == choice.report["steps"] == CANVAS // 2
    entropies = sum(entropy for step in choice.steps for entropy in step["entropies"])
    assert entropies == pytest.approx(choice.report["cumulative_entropy"], abs=1e-4)
    names = {number: name for name, number in VOCAB.items()}
    for step in choice.steps:
        assert step.keys() == {"positions", "tokens", "text", "entropies", "objective", "chosen", "bypassed"}
        assert step["text"] == [names[token] for token in step["tokens"]]
        assert not step["bypassed"]
        # Where all that is masked is written at once there is nothing to compare.
        assert not step["objective"] or step["objective"][step["chosen"]] == max(step["objective"])
    assert any(len(step["objective"]) > 1 for step in choice.steps)


def test_special_tokens_are_told_by_name(client):
    choice = gather(create(client, "completions", {"max_tokens": 200}, stream=True, stream_mode="canvas"))[0]
    special = {text for step in choice.steps for text in step["text"] if text.startswith("<|")}
    assert special, "a random model writes some in 200 places"
    assert special < VOCAB.keys() - {MASK}
    assert not any(name in choice.text for name in special)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_the_steps_of_a_block_come_before_its_text(client, endpoint):
    choice = gather(create(client, endpoint, stream=True, stream_mode="canvas"))[0]
    blocks, texts = [], []  # blocks that the steps wrote in, up to each text
    for event in choice.events:
        if isinstance(event, str):
            texts.append(event)
            blocks.append(None)
        else:
            blocks += [position // 8 for step in event for position in step["positions"]]
    assert len(texts) == 3
    assert blocks == [0] * 8 + [None] + [1] * 8 + [None] + [2] * 8 + [None]


def test_steps_are_sent_while_no_text_is_final_yet(client):
    knobs = {"block_length": 0, "num_candidates": 1, "stream_mode": "canvas"}
    *events, text = gather(create(client, "completions", {"max_tokens": 200}, stream=True, **knobs))[0].events
    assert isinstance(text, str)
    # Those of an engine that is ahead of its reader come together.
    assert len(events) > 20
    assert sum(len(event) for event in events) == 200


def test_the_steps_told_are_the_trajectory_of_the_report(client):
    choice = gather(create(client, "completions", stream=True, stream_mode="canvas", return_trajectory=1))[0]
    steps = [{name: value for name, value in step.items() if name != "text"} for step in choice.steps]
    assert steps == choice.report["trajectory"]


def test_a_stop_token_ends_steps_and_text_together(client):
    plain = create(client, "completions").choices[0]
    stop = plain.token_ids[10]
    end = plain.token_ids.index(stop) + 1
    body = {"stop_token_ids": [stop]}
    choice = gather(create(client, "completions", body, stream=True, stream_mode="canvas"))[0]
    assert choice.token_ids == plain.token_ids[:end]
    assert choice.finish_reason == "stop"
    positions = {position for step in choice.steps for position in step["positions"]}
    assert positions == set(range(-(-end // 8) * 8)), "no block behind the stop token is decoded"


def test_a_chat_opens_with_its_role_and_all_chunks_have_one_header(client):
    chunks = list(create(client, "chat", {"n": 2}, stream=True, stream_mode="canvas"))
    roles = [getattr(choice.delta, "role", None) for chunk in chunks for choice in chunk.choices]
    assert roles == ["assistant"] * 2 + [None] * (len(chunks) - 2)
    assert len({(chunk.id, chunk.object, chunk.created, chunk.model) for chunk in chunks}) == 1


def test_openais_own_accumulator_reads_a_stream_with_steps(client):
    fields = {"model": "tiny", "messages": [{"role": "user", "content": PROMPT}], "max_tokens": CANVAS, "seed": 5}
    knobs = {"block_length": 8, "bypass_threshold": 1, "num_candidates": 4, "stream_mode": "canvas"}
    body = {"ignore_eos": True, "vllm_xargs": knobs}
    with client.chat.completions.stream(**fields, extra_body=body) as stream:
        for _ in stream:
            content = stream.current_completion_snapshot.choices[0].message.content
    assert content == text_of(create(client, "chat").choices[0])


def test_streams_of_both_modes_side_by_side_are_those_alone(client, url):
    wanted = [("block", 1), ("canvas", 2), ("canvas", 3), ("block", 4)]

    async def read(shared, mode: str, seed: int) -> Choice:
        chunks = await create(shared, "completions", {"seed": seed}, stream=True, stream_mode=mode)
        return gather([chunk async for chunk in chunks])[0]

    async def read_all():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as shared:
            return await asyncio.gather(*(read(shared, mode, seed) for mode, seed in wanted))

    together = asyncio.run(read_all())
    for (mode, seed), choice in zip(wanted, together, strict=True):
        alone = create(client, "completions", {"seed": seed}).choices[0]
        assert choice.text == alone.text
        assert bool(choice.steps) == (mode == "canvas")


# Leaving.


@pytest.mark.parametrize(("endpoint", "prompts"), [("completions", 1), ("completions", 2), ("chat", 1)])
def test_a_client_that_leaves_a_stream_of_steps_frees_its_request(client, url, endpoint, prompts):
    # One block: no text before the very end, which is far away.
    body = {"max_tokens": 900} | ({"prompt": [PROMPT] * 2} if prompts == 2 else {})
    knobs = {"block_length": 0, "bypass_threshold": 1, "position_temperature": 5}

    def begin():
        stream = create(client, endpoint, body, stream=True, stream_mode="canvas", **knobs)
        seen = set()  # choices with a step
        for chunk in stream:
            if len(seen) == prompts:
                return stream
            seen |= {choice.index for choice in chunk.choices if hasattr(choice, "infogain_steps")}
        raise AssertionError(f"steps came of {seen} only")

    left_midway(url, begin, whole=900)


# Responses.


def responses(client, stream: bool = False, **knobs):
    fields = {"model": "tiny", "input": PROMPT, "max_output_tokens": CANVAS, "stream": stream}
    return client.responses.create(**fields, extra_body={"seed": 5, "vllm_xargs": knobs})


def test_a_response_carries_its_report_streamed_or_not(client):
    whole = responses(client)
    last = ("response.completed", "response.incomplete")  # a canvas that ran full is the latter from vLLM 0.33 on
    (ended,) = (event.response for event in responses(client, True) if event.type in last)
    assert 0 < whole.kv_transfer_params["infogain"]["steps"] <= CANVAS
    assert ended.kv_transfer_params["infogain"].keys() == whole.kv_transfer_params["infogain"].keys()


@pytest.mark.parametrize("knobs", [{"sampler": "best"}, {"num_candidates": 65}, {"stream_mode": "canvas"}])
def test_a_streamed_response_is_refused_before_it_starts(client, knobs):
    with pytest.raises(openai.BadRequestError) as refusal:
        responses(client, True, **knobs)
    (name,) = knobs
    assert name in refusal.value.body["message"]
