"""`vllm serve --plugin infogain` as a client sees it."""

import asyncio
import json
import re

import httpx
import jsonschema
import openai
import pytest
from routes import BODIES, constrained
from scrape import left_midway, wait_for_running
from server import MODEL_LENGTH, assert_refused, is_healthy, openai_client
from waiting import PATIENCE

from vllm_infogain.embedded.tokenizer import ANSWER, BOS, VOCAB

pytestmark = pytest.mark.engine

PROMPT = "judge 1+2*3=7"
PROMPT_TOKENS = len(PROMPT) + 2  # one per character, and the two that open and close a prompt
VLLMS_OWN = (
    "min_p",
    "allowed_token_ids",
    "bad_words",
    "echo",
    "use_beam_search",
    "repetition_penalty",
    "response_format",
    "structured_outputs",
    "guided_regex",
    "return_token_ids",
    "priority",
)  # fields the client knows no argument for
WHOLE_CANVAS = {"sampler": "ar", "tokens_per_step": 64, "block_length": 0}  # few forwards, whatever the canvas


@pytest.fixture(scope="module")
def url(tiny_url: str) -> str:
    return tiny_url


@pytest.fixture(scope="module")
def client(url):
    with openai_client(url) as client:
        yield client


def request(max_tokens: int = 16, *, prompt=PROMPT, ignore_eos: bool = True, body=None, **knobs) -> dict:
    """Arguments of `completions.create`: `knobs` are ours, the rest is OpenAI's or vLLM's."""
    given = dict(body or {})
    extra = {name: given.pop(name) for name in list(given) if name in VLLMS_OWN}
    extra |= {"ignore_eos": ignore_eos, "vllm_xargs": knobs}
    return {"model": "tiny", "prompt": prompt, "max_tokens": max_tokens, "extra_body": extra} | given


def chat_request(max_tokens: int = 16, *, content: str = PROMPT, body=None, **knobs) -> dict:
    fields = request(max_tokens, body=body, **knobs)
    del fields["prompt"]
    return fields | {"messages": [{"role": "user", "content": content}]}


def complete(client, *args, **kwargs) -> str:
    return client.completions.create(**request(*args, **kwargs)).choices[0].text


def infogain_report(response) -> dict:
    return response.choices[0].infogain


def together(url: str, requests: list[dict]) -> list:
    """Responses, or the errors raised, of completions sent at the same time."""

    async def send_all():
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
            sent = [client.completions.create(**fields) for fields in requests]
            return await asyncio.gather(*sent, return_exceptions=True)

    return asyncio.run(send_all())


# What is served.


def test_a_completion_fills_its_canvas(client):
    response = client.completions.create(**request(24))
    assert response.usage.completion_tokens == 24
    assert response.usage.prompt_tokens == PROMPT_TOKENS
    assert response.choices[0].finish_reason == "length"


def test_a_chat_message_is_the_same_prompt_as_its_text(client):
    chat = client.chat.completions.create(**chat_request(body={"seed": 3}))
    assert chat.usage.prompt_tokens == PROMPT_TOKENS
    assert chat.choices[0].message.content == complete(client, body={"seed": 3})


def test_a_canvas_that_just_fits_is_served_over_both_endpoints(client):
    fitting = MODEL_LENGTH - PROMPT_TOKENS
    completion = client.completions.create(**request(fitting, **WHOLE_CANVAS))
    chat = client.chat.completions.create(**chat_request(fitting, **WHOLE_CANVAS))
    assert completion.usage.completion_tokens == chat.usage.completion_tokens == fitting


def test_every_prompt_of_a_batch_gets_its_own_answer(client):
    prompts = ["judge 1+1=2", "multiply 3*4", "sudoku"]
    batch = client.completions.create(**request(prompt=prompts, body={"temperature": 0}))
    assert [choice.index for choice in batch.choices] == [0, 1, 2]
    alone = [complete(client, prompt=prompt, body={"temperature": 0}) for prompt in prompts]
    assert [choice.text for choice in batch.choices] == alone
    assert len(set(alone)) == 3


def test_two_samples_of_a_seeded_request_differ_and_are_reproducible(client):
    first, again = (client.completions.create(**request(body={"n": 2, "seed": 7})) for _ in range(2))
    one, two = (choice.text for choice in first.choices)
    assert one != two
    assert [choice.text for choice in again.choices] == [one, two]


def test_samples_of_a_seed_are_not_those_of_the_next(client):
    drawn = [
        [choice.text for choice in client.completions.create(**request(body={"n": 3, "seed": seed})).choices]
        for seed in (7, 8)
    ]
    assert len({*drawn[0], *drawn[1]}) == 6
    assert [first for first, *_ in drawn] == [complete(client, body={"seed": seed}) for seed in (7, 8)]


def test_samples_at_temperature_zero_differ_by_their_positions(client):
    fields = request(24, body={"n": 4, "temperature": 0}, position_temperature=0.1, bypass_threshold=1)
    first, again = ([choice.text for choice in client.completions.create(**fields).choices] for _ in range(2))
    assert len(set(first)) > 1
    assert first == again
    chat = chat_request(24, body={"n": 4, "temperature": 0}, position_temperature=0.1, bypass_threshold=1)
    assert [choice.message.content for choice in client.chat.completions.create(**chat).choices] == first


def test_unseeded_requests_differ_and_temperature_zero_does_not(client):
    assert len({complete(client) for _ in range(3)}) == 3
    assert len({complete(client, body={"temperature": 0}) for _ in range(3)}) == 1


def test_a_seeded_request_alone_equals_itself_in_a_mixed_batch(client, url):
    mixed = [
        request(16, body={"seed": 1}),
        request(40, prompt="sudoku\n1..4", body={"seed": 2}, sampler="lookum", block_length=8),
        request(16, prompt="a", body={"seed": 3}, sampler="ar"),
        request(33, body={"seed": 4, "temperature": 0.5}, sampler="entropy", tokens_per_step=4, block_length=0),
        request(24, body={"seed": 5}, num_candidates=16, block_length=5),
        request(7, prompt="judge 20*20=400", body={"seed": 6}, sampler="margin"),
        request(64, body={"seed": 7}, tokens_per_step=3, position_score="entropy"),
        request(20, body={"seed": 8, "temperature": 1.5}, sampler="uniform"),
    ]
    alone = [response.choices[0].text for fields in mixed for response in together(url, [fields])]
    batched = [response.choices[0].text for response in together(url, mixed)]
    assert batched == alone


def test_a_stop_string_ends_the_text_before_it(client):
    text = complete(client, 32, body={"seed": 1})
    stop = text[10]
    response = client.completions.create(**request(32, body={"seed": 1, "stop": stop}))
    assert response.choices[0].text == text[: text.index(stop)]
    assert response.choices[0].finish_reason == "stop"


# Log-probabilities and constraints.


def test_logprobs_come_in_openais_form_over_both_endpoints(client):
    fields = {"seed": 4, "temperature": 1.0}
    completion = client.completions.create(**request(12, body=fields | {"logprobs": 2})).choices[0]
    chat = client.chat.completions.create(**chat_request(12, body=fields | {"logprobs": True, "top_logprobs": 2}))
    entries = chat.choices[0].logprobs.content
    assert "".join(entry.token for entry in entries) == "".join(completion.logprobs.tokens)
    assert [entry.logprob for entry in entries] == pytest.approx(completion.logprobs.token_logprobs)
    for entry, token, best in zip(entries, completion.logprobs.tokens, completion.logprobs.top_logprobs, strict=True):
        assert entry.logprob <= 0
        assert len(entry.top_logprobs) == 2
        assert best[token] == pytest.approx(entry.logprob)
        assert {one.token: one.logprob for one in entry.top_logprobs}.items() <= {
            name: pytest.approx(value) for name, value in best.items()
        }.items()


def test_streamed_logprobs_are_those_of_the_whole_answer(client):
    fields = request(12, body={"seed": 4, "logprobs": 1}, block_length=4)
    whole = client.completions.create(**fields).choices[0].logprobs
    parts = [chunk.choices[0].logprobs for chunk in client.completions.create(**fields, stream=True)]
    assert [value for part in parts for value in part.token_logprobs] == pytest.approx(whole.token_logprobs)


def test_constraints_hold_over_http(client):
    digits = {str(token): 100.0 for token in range(22, 32)}  # 0 to 9, in logit_bias of which keys are strings
    assert complete(client, 10, body={"seed": 5, "logit_bias": digits}).isdigit()
    fields = {"seed": 5, "allowed_token_ids": [22, 23, 24], "bad_words": ["01", "000"]}
    text = complete(client, 10, body=fields)
    assert set(text) <= {"0", "1", "2"}
    assert "01" not in text
    assert "000" not in text


def test_structured_output_holds_over_both_endpoints(client):
    text = complete(client, 12, ignore_eos=False, body={"structured_outputs": {"regex": "[a-c]{2,4}-[0-9]+"}})
    assert re.fullmatch("[a-c]{2,4}-[0-9]+", text)
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    fields = chat_request(20, ignore_eos=False, body={"response_format": form})
    for stream in (False, True):
        answer = client.chat.completions.create(**fields, stream=stream)
        if stream:
            content = "".join(chunk.choices[0].delta.content or "" for chunk in answer if chunk.choices)
        else:
            content = answer.choices[0].message.content
        assert json.loads(content) in ({"ok": True}, {"ok": False})


PARAMETERS = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
ADD = {"type": "function", "function": {"name": "add", "parameters": PARAMETERS}}
STRICT = ADD | {"function": ADD["function"] | {"strict": True}}
LOWEST = {"type": "object", "properties": {"a": {"type": "integer", "minimum": 1}}, "required": ["a"]}
AT_LEAST_1 = ADD | {"function": {"name": "add", "parameters": LOWEST}}
FORCED = [
    {"tools": [ADD], "tool_choice": "required", "parallel_tool_calls": False},
    {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "add"}}},
]


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("body", FORCED, ids=["required", "named"])
def test_a_forced_call_has_arguments_of_its_schema(client, body, stream):
    answer = client.chat.completions.create(**chat_request(60, ignore_eos=False, body=body), stream=stream)
    if stream:
        deltas = [chunk.choices[0].delta for chunk in answer if chunk.choices]
        functions = [call.function for delta in deltas for call in delta.tool_calls or ()]
        assert not any(delta.content for delta in deltas)
    else:
        functions = [call.function for call in answer.choices[0].message.tool_calls]
    assert "".join(function.name or "" for function in functions) == "add"
    jsonschema.validate(json.loads("".join(function.arguments or "" for function in functions)), PARAMETERS)


def test_a_call_that_the_model_chose_is_parsed(client):
    form = {"regex": r'<tool_call>\{"name": "add", "arguments": \{"a": [0-9]\}\}</tool_call>'}
    fields = chat_request(70, ignore_eos=False, body={"tools": [ADD], "structured_outputs": form})
    (call,) = client.chat.completions.create(**fields).choices[0].message.tool_calls
    assert call.function.name == "add"
    jsonschema.validate(json.loads(call.function.arguments), PARAMETERS)


def test_a_message_that_must_use_a_tool_does(client):
    tool = {"name": "add", "input_schema": PARAMETERS}
    body = {"model": "tiny", "max_tokens": 60, "messages": [{"role": "user", "content": PROMPT}], "tools": [tool]}
    message = client.post("/messages", body=body | {"tool_choice": {"type": "tool", "name": "add"}}, cast_to=object)
    (used,) = message["content"]
    assert used["name"] == "add"
    jsonschema.validate(used["input"], PARAMETERS)


# Streaming.


def test_a_stream_sends_every_block_once_it_is_final(client):
    fields = request(16, body={"seed": 5, "return_token_ids": True}, block_length=4)
    whole = client.completions.create(**fields).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**fields, stream=True)]
    assert [len(chunk.token_ids) for chunk in chunks] == [4, 4, 4, 4]
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert chunks[-1].finish_reason == "length"


def test_a_chat_stream_sends_blocks_too(client):
    fields = chat_request(16, body={"seed": 5}, block_length=8)
    chunks = client.chat.completions.create(**fields, stream=True)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert len(texts) == 2
    assert "".join(texts) == client.chat.completions.create(**fields).choices[0].message.content


def test_a_client_that_leaves_mid_stream_frees_its_request(client, url):
    def begin():
        stream = client.completions.create(**request(900, block_length=1), stream=True)
        for _, chunk in zip(range(2), stream, strict=False):
            assert 1 <= len(chunk.choices[0].text) <= 4, "blocks of one token, up to four forwards between two chunks"
        return stream

    left_midway(url, begin, whole=900)


# The report and the server-wide defaults.


def test_the_report_comes_with_the_response(client):
    report = infogain_report(client.completions.create(**request(16, body={"seed": 1})))
    assert report.keys() == {
        "steps",
        "forwards",
        "refreshes",
        "rows",
        "canvas_positions",
        "candidate_rows",
        "candidates",
        "written",
        "bypassed_steps",
        "cumulative_entropy",
    }
    assert report["steps"] == 16
    assert report["rows"] >= report["forwards"] * (PROMPT_TOKENS + 16)
    assert report["cumulative_entropy"] > 0


def test_server_wide_defaults_hold_where_a_request_says_nothing(client):
    report = infogain_report(client.completions.create(**request(32, body={"seed": 1}, bypass_threshold=1)))
    assert report["steps"] < report["candidates"] <= 4 * report["steps"]


def test_a_request_overrides_the_server_wide_defaults(client):
    fewer = infogain_report(client.completions.create(**request(32, body={"seed": 1}, num_candidates=1)))
    more_wanted = request(32, body={"seed": 1}, num_candidates=32, bypass_threshold=1)
    more = infogain_report(client.completions.create(**more_wanted))
    assert fewer["candidates"] == 0
    assert more["candidates"] > 4 * more["steps"]


def test_a_negative_prompt_is_the_prompt_of_the_guide(client):
    greedy = {"body": {"temperature": 0}, "guidance_scale": 2}

    def text(**knobs) -> str:
        return client.completions.create(**request(12, **greedy, **knobs)).choices[0].text

    ids = [VOCAB[BOS], *map(VOCAB.__getitem__, "judge 1+2=3"), VOCAB[ANSWER]]
    as_ids = text(guidance_prompt_ids=ids)
    assert text(negative_prompt="judge 1+2=3") == as_ids != text()
    chat = client.chat.completions.create(**chat_request(12, **greedy, negative_prompt="judge 1+2=3"))
    assert chat.choices[0].message.content == as_ids, "a message is the same prompt as its text here"


# What is refused.

TOO_LONG = MODEL_LENGTH - PROMPT_TOKENS + 1
BAD = {  # parameter that the message must name, arguments of the request
    "an unknown sampler": ("sampler", request(sampler="best")),
    "an unknown key": ("candidates", request(candidates=4)),
    "text for a number": ("num_candidates", request(num_candidates="many")),
    "a list for a number": ("tokens_per_step", request(tokens_per_step=[1])),
    "a fraction for a whole number": ("block_length", request(block_length=1.5)),
    "no candidates": ("num_candidates", request(num_candidates=0)),
    "too many candidates": ("num_candidates", request(num_candidates=65)),
    "a negative temperature": ("temperature", request(body={"temperature": -1})),
    "no tokens per step": ("tokens_per_step", request(tokens_per_step=0)),
    "a negative block": ("block_length", request(block_length=-1)),
    "a block longer than the canvas": ("block_length", request(16, block_length=17)),
    "a canvas one too long": ("max_tokens", request(TOO_LONG, **WHOLE_CANVAS)),
    "an empty prompt": ("prompt", request(prompt="")),
    "an empty prompt among others": ("prompt=''", request(prompt=["a", ""])),
    "a prompt that leaves no room": ("leaves no room for a canvas", request(prompt="a" * (MODEL_LENGTH - 2))),
    "samples that would be the same": ("n=4", request(body={"n": 4, "temperature": 0}, sampler="ar")),
    "a width without a beam": ("beam_width", request(beam_width=2)),
    "almost a mask": ("<|mask7|>", request(prompt="a<|mask7|>")),
    "a turn before others": ("priority", request(body={"priority": -1})),
    "more logprobs than the server gives": ("logprobs", request(body={"logprobs": 21})),
    "min_p above 1": ("min_p", request(body={"min_p": 1.5})),
    "repetition_penalty": ("repetition_penalty", request(body={"repetition_penalty": 1.5})),
    "a presence penalty": ("presence_penalty", request(body={"presence_penalty": 0.5})),
    "a bias of no token": ("logit_bias", request(body={"logit_bias": {"999": 1.0}})),
    "no token allowed but the mask": ("allowed_token_ids", request(body={"allowed_token_ids": [3]})),
    "two tokens per step beside a word": ("tokens_per_step", request(body={"bad_words": ["ab"]}, tokens_per_step=2)),
    "a negative guidance": ("guidance_scale=-1", request(guidance_scale=-1)),
    "a huge guidance": ("guidance_scale=1e+300", request(guidance_scale=1e300)),
    "no number for guidance": ("guidance_scale", request(guidance_scale="NaN")),
    "a negative prompt that guides nothing": ("negative_prompt", request(negative_prompt="a")),
    "no text for a negative prompt": ("negative_prompt", request(guidance_scale=1, negative_prompt=7)),
    "a negative prompt twice": (
        "negative_prompt='a'",
        request(guidance_scale=1, negative_prompt="a", guidance_prompt_ids=[5]),
    ),
    "almost a mask in a negative prompt": ("negative_prompt", request(guidance_scale=1, negative_prompt="a<|mask7|>")),
    "too long a negative prompt": (
        "negative_prompt",
        request(guidance_scale=1, negative_prompt="a" * 2 * MODEL_LENGTH),
    ),
    "a guide outside the vocabulary": ("guidance_prompt_ids=999", request(guidance_scale=1, guidance_prompt_ids=[999])),
    "a name that vLLM no longer knows": ("guided_regex", request(body={"guided_regex": "ab"})),
    "any JSON object": ("response_format='json_object'", request(body={"response_format": {"type": "json_object"}})),
}
BAD_CHAT = {
    "a canvas one too long": ("max_tokens", chat_request(TOO_LONG, **WHOLE_CANVAS)),
    "a completion limit one too long": (
        "max_tokens",
        chat_request(body={"max_completion_tokens": TOO_LONG}, **WHOLE_CANVAS),
    ),
    "a prompt that leaves no room": ("leaves no room for a canvas", chat_request(content="a" * (MODEL_LENGTH - 2))),
    "a mask in the user's message": ("messages", chat_request(content="1+<|mask|>=3")),
    "an unknown sampler": ("sampler", chat_request(sampler="best")),
    "a strict tool that may not be called": (
        "tools.strict",
        chat_request(body={"tools": [STRICT]}),
    ),
    "a tool whose schema is not held to": (
        "tool_choice='required': cannot be compiled: 'minimum'",
        chat_request(body={"tools": [AT_LEAST_1], "tool_choice": "required"}),
    ),
    "a format that no automaton follows": (
        "response_format='structural_tag'",
        chat_request(body={"response_format": {"type": "structural_tag", "format": {"type": "any_text"}}}),
    ),
    "echoed": ("prompt_logprobs", chat_request(body={"logprobs": True, "echo": True})),
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_completion_is_refused_naming_the_parameter(client, what, stream):
    parameter, fields = BAD[what]
    assert_refused(client.completions.create, fields, parameter, stream)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("what", BAD_CHAT)
def test_a_bad_chat_is_refused_naming_the_parameter(client, what, stream):
    parameter, fields = BAD_CHAT[what]
    assert_refused(client.chat.completions.create, fields, parameter, stream)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_a_token_id_outside_the_vocabulary_is_refused(client, stream):
    assert_refused(client.completions.create, request(prompt=[5, 999999]), "vocabulary", stream)


def test_a_bad_parameter_is_refused_over_the_responses_endpoint(client):
    fields = {"model": "tiny", "input": PROMPT, "max_output_tokens": 16, "extra_body": {"vllm_xargs": {"sampler": "x"}}}
    assert_refused(client.responses.create, fields, "sampler", False)


def test_a_canvas_too_long_is_not_cut_down_over_the_responses_endpoint(client):
    fields = {"model": "tiny", "input": PROMPT, "max_output_tokens": MODEL_LENGTH - 4}
    assert_refused(client.responses.create, fields | {"extra_body": {"vllm_xargs": WHOLE_CANVAS}}, "max_tokens", False)


def test_vllms_beam_search_is_refused_over_both_endpoints(client):
    body = {"use_beam_search": True, "temperature": 0}
    assert_refused(client.completions.create, request(body=body), "use_beam_search", False)
    assert_refused(client.chat.completions.create, chat_request(body=body), "use_beam_search", False)


def test_bad_requests_do_not_touch_a_good_one_running_beside_them(client, url):
    good = request(96, body={"seed": 11})
    alone = client.completions.create(**good).choices[0].text
    beside, *refused = together(url, [good, *(fields for _, fields in BAD.values())])
    assert beside.choices[0].text == alone
    assert [type(error) for error in refused] == [openai.BadRequestError] * len(BAD)
    assert is_healthy(url)
    wait_for_running(url, 0)


# Every route that takes decoding parameters.

BOMB = "(a|b)*a(a|b){{90{:02}}}"  # takes more to compile than is served; each number makes another


def post(url: str, path: str, body: dict) -> httpx.Response:
    return httpx.post(url + path, json={"model": "tiny"} | body, timeout=PATIENCE)


@pytest.mark.parametrize("path", BODIES)
def test_parameters_reach_every_route_in_their_place(url, path):
    body = BODIES[path]
    assert post(url, path, body).status_code == 200
    if path == "/inference/v1/generate":
        bad = body | {"sampling_params": body["sampling_params"] | {"extra_args": {"sampler": "x"}}}
    else:
        bad = body | {"vllm_xargs": {"sampler": "x"}}
    answer = post(url, path, bad)
    assert answer.status_code == 400, answer.text
    assert "sampler='x'" in answer.json()["error"]["message"]


def test_constraints_too_large_to_compile_are_refused_on_every_route_while_others_are_served(url):
    asked = [(path, stream) for path in BODIES for stream in (False, True)]
    asked.remove(("/v1/chat/completions/batch", True))

    async def refused() -> int:
        looks = 0
        async with httpx.AsyncClient(base_url=url, timeout=PATIENCE) as http, asyncio.TaskGroup() as group:
            hostile = [
                group.create_task(
                    http.post(path, json={"model": "tiny", "stream": stream} | constrained(path, BOMB.format(index)))
                )
                for index, (path, stream) in enumerate(asked)
            ]
            while not all(task.done() for task in hostile):
                assert (await http.get("/health")).status_code == 200
                looks += 1
        for (path, _), answer in zip(asked, (task.result() for task in hostile), strict=True):
            assert answer.status_code == 400, (path, answer.text)
            assert re.search("structured_outputs.|response_format", answer.json()["error"]["message"])
        return looks

    # On the event loop each would let at most one look through, when it is done.
    looks = asyncio.run(refused())
    print(f"{looks} looks while {len(asked)} constraints were compiled")
    assert looks > len(asked) + 1
