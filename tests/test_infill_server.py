"""Infilling as a client of `vllm serve --plugin infogain` sees it, on the embedded model."""

import random

import openai
import pytest
from knobs import fitting
from server import assert_refused, is_healthy
from waiting import PATIENCE

from vllm_infogain.embedded import SERVED_NAME
from vllm_infogain.embedded.tokenizer import EOS, MASK, MAX_LENGTH, VOCAB, encode, encode_prompt

pytestmark = pytest.mark.engine

M = VOCAB[MASK]
VLLMS_OWN = ("ignore_eos", "return_token_ids", "truncate_prompt_tokens")
GIVEN = "multiply 6*7<|answer|>6*7="
PROMPT = encode_prompt("multiply 6*7") + encode("6*7=")
QUESTION = {"role": "user", "content": "multiply 6*7"}
# Givens of a Sudoku, where they stand in the answer.
PUZZLE = "sudoku\n1...\n..2.\n.3..\n...4<|answer|>"
GRID = "1<|mask:3|>\n<|mask:2|>2<|mask|>\n<|mask|>3<|mask:2|>\n<|mask:3|>4"


@pytest.fixture(scope="module")
def url(embedded_url: str) -> str:
    return embedded_url


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        yield client


def fields(body: dict, **knobs) -> dict:
    """Arguments of the client: `knobs` are ours, the rest is OpenAI's or vLLM's."""
    extra = {name: body.pop(name) for name in list(body) if name in VLLMS_OWN}
    return {"model": SERVED_NAME, "temperature": 0, **body, "extra_body": {**extra, "vllm_xargs": knobs}}


def completion(prompt, _knobs=None, **body) -> dict:
    return fields({"prompt": prompt, **body}, **(_knobs or {}))


def chat(*messages: dict, _knobs=None, **body) -> dict:
    return fields({"messages": list(messages), **body}, **(_knobs or {}))


def answer(content) -> dict:
    return {"role": "assistant", "content": content}


def complete(client, *args, **kwargs) -> str:
    return client.completions.create(**completion(*args, **kwargs)).choices[0].text


# Prompts with masks.


def test_a_prompt_with_masks_is_completed_from_its_first_mask_on(client):
    response = client.completions.create(**completion(f"{GIVEN}<|mask:7|>"))
    assert response.choices[0].text == "0101010"
    assert response.choices[0].finish_reason == "length"
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (len(PROMPT), 7)


def test_text_between_masks_stays_where_it_is(client):
    rows = f"1{complete(client, PUZZLE + GRID)}".split("\n")
    assert [len(row) for row in rows] == [4, 4, 4, 4]
    assert (rows[0][0], rows[1][2], rows[2][1], rows[3][3]) == ("1", "2", "3", "4")
    assert {*"".join(rows)} == {*"1234"}, "a filled Sudoku"


def test_every_prompt_of_a_list_has_a_canvas_of_its_own(client):
    prompts = [f"{GIVEN}<|mask:7|>", "multiply 6*7", f"{GIVEN}0<|mask:2|>1<|mask:3|>"]
    response = client.completions.create(**completion(prompts))
    assert [choice.text for choice in response.choices] == ["0101010", "6*7=0101010", "101010"]


def test_masks_among_token_ids_are_filled_as_those_of_a_text(client):
    assert complete(client, [*PROMPT, *[M] * 7]) == "0101010"
    both = client.completions.create(**completion([[*PROMPT, M, *encode("1010"), M, M], [*PROMPT, *[M] * 7]]))
    assert [choice.text for choice in both.choices] == ["0101010", "0101010"]


def test_echo_gives_the_whole_text(client):
    assert complete(client, f"{GIVEN}<|mask:7|>", echo=True) == f"{GIVEN}0101010"


def test_samples_of_a_seeded_canvas_differ_and_keep_its_text(client):
    body = {"n": 3, "seed": 5, "temperature": 2.0}
    first, again = (client.completions.create(**completion("a<|mask:8|>bcd<|mask:4|>", **body)) for _ in range(2))
    texts = [choice.text for choice in first.choices]
    assert len(set(texts)) == 3
    assert texts == [choice.text for choice in again.choices]


def test_a_stream_of_a_canvas_is_the_whole_answer(client):
    request = completion(PUZZLE + GRID, _knobs={"block_length": 4}, return_token_ids=True)
    whole = client.completions.create(**request).choices[0]
    chunks = [chunk.choices[0] for chunk in client.completions.create(**request, stream=True)]
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [token for chunk in chunks for token in chunk.token_ids] == whole.token_ids
    assert len(chunks) > 1


def test_a_canvas_that_just_fits_the_models_length_is_served(client):
    room = MAX_LENGTH - len(PROMPT)
    response = client.completions.create(**completion(f"{GIVEN}<|mask:{room}|>", ignore_eos=True))
    assert response.usage.total_tokens == MAX_LENGTH
    response = client.completions.create(**completion([5] * 50 + [M] * 4 + [6] * 10, max_tokens=14))
    assert response.usage.total_tokens == MAX_LENGTH
    response = client.chat.completions.create(**chat(QUESTION, answer(f"6*7=<|mask:{room}|>"), ignore_eos=True))
    assert response.usage.total_tokens == MAX_LENGTH


# Chats.


@pytest.mark.parametrize("parts", [False, True], ids=["text", "parts"])
def test_a_last_message_of_the_assistant_is_completed_in_place(client, parts):
    content = "6*7=<|mask:7|>"
    response = client.chat.completions.create(
        **chat(QUESTION, answer([{"type": "text", "text": content}] if parts else content))
    )
    assert response.choices[0].message.role == "assistant"
    assert response.choices[0].message.content == "0101010"
    assert response.usage.prompt_tokens == len(PROMPT)


def test_a_chat_over_the_responses_endpoint_is_completed_in_place_too(client):
    response = client.responses.create(model=SERVED_NAME, input=[QUESTION, answer("6*7=<|mask:7|>")], temperature=0)
    assert response.output_text == "0101010"


def test_a_chat_over_the_responses_endpoint_is_the_same_prompt(client):
    question = {"role": "user", "content": "multiply 3*3"}
    response = client.responses.create(model=SERVED_NAME, input="multiply 3*3", temperature=0, max_output_tokens=12)
    completed = client.chat.completions.create(**chat(question, max_tokens=12))
    assert response.output_text == completed.choices[0].message.content == "3*3=0001001"
    assert response.usage.input_tokens == completed.usage.prompt_tokens == 14


def test_a_chats_canvas_is_streamed(client):
    request = chat(QUESTION, answer("6*7=<|mask:7|>"), _knobs={"block_length": 2})
    chunks = client.chat.completions.create(**request, stream=True)
    texts = [chunk.choices[0].delta.content for chunk in chunks if chunk.choices[0].delta.content]
    assert "".join(texts) == "0101010"
    assert len(texts) > 1


# The same by parameters.


def test_a_seed_canvas_gives_the_answer_its_length_and_keeps_what_is_pinned(client):
    seed = encode("9*9=0101011")
    places = {"diffusion_seed_canvas": seed, "diffusion_pinned": [1, 3]}
    text = complete(client, "multiply 6*7", _knobs=places)
    assert text == "6*7=0101010"
    canvas = {"diffusion_seed_canvas": [*encode("6*7="), *[M] * 7]}
    assert complete(client, "multiply 6*7", _knobs=canvas, max_tokens=11) == "6*7=0101010"
    response = client.chat.completions.create(**chat(QUESTION, _knobs=canvas))
    assert response.choices[0].message.content == "6*7=0101010"


# Text to insert.


def test_a_suffix_is_read_and_not_returned(client):
    request = completion(GIVEN, suffix="1010", max_tokens=3, ignore_eos=True)
    response = client.completions.create(**request)
    by_ids = complete(client, PROMPT, max_tokens=3, ignore_eos=True, _knobs={"suffix_token_ids": encode("1010")})
    assert response.choices[0].text == by_ids
    assert (response.usage.prompt_tokens, response.usage.completion_tokens) == (len(PROMPT), 3)
    chunks = client.completions.create(**request, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == by_ids


def test_a_suffix_changes_what_is_inserted(client):
    texts = {complete(client, f"judge 1+1=2{'<|answer|>'}", suffix=end, max_tokens=6) for end in ("yes", "no")}
    assert len(texts) == 2


def test_an_eos_ends_what_is_inserted(client):
    response = client.completions.create(**completion(GIVEN, suffix="\n", return_token_ids=True))
    (choice,) = response.choices
    assert choice.finish_reason == "stop"
    assert choice.token_ids[-1] == VOCAB[EOS]


def test_prompts_of_a_list_get_the_same_suffix_and_an_empty_one_changes_nothing(client):
    both = client.completions.create(**completion([GIVEN, "judge 1+1=2<|answer|>"], suffix="0", max_tokens=6))
    alone = [complete(client, prompt, suffix="0", max_tokens=6) for prompt in (GIVEN, "judge 1+1=2<|answer|>")]
    assert [choice.text for choice in both.choices] == alone
    assert complete(client, "multiply 6*7", suffix="") == complete(client, "multiply 6*7")


def test_a_suffix_that_just_fits_the_models_length_is_served(client):
    room = MAX_LENGTH - len(PROMPT) - 2
    response = client.completions.create(**completion(GIVEN, suffix="10", max_tokens=room, ignore_eos=True))
    assert response.usage.completion_tokens == room


# What is refused.

SEED = {"diffusion_seed_canvas": [M, 7, M]}
BAD = {  # what the message must name, arguments of the request
    "no masks in a mark": ("<|mask:0|>", completion("a<|mask:0|>")),
    "a mark without a number": ("<|mask:x|>", completion("a<|mask|><|mask:x|>")),
    "more masks than the model is long": (f"<|mask:{MAX_LENGTH + 1}|>", completion(f"a<|mask:{MAX_LENGTH + 1}|>")),
    "a canvas one too long": ("context length", completion(f"{GIVEN}<|mask:{MAX_LENGTH - len(PROMPT) + 1}|>")),
    "ids one too long": ("context length", completion([5] * 60 + [M] * 5)),
    "a seed one too long": ("max_tokens", completion([5] * 61, _knobs={"diffusion_seed_canvas": [M, 7, M, M]})),
    "a mask before everything": ("prompt", completion([M, 5])),
    "another max_tokens": ("max_tokens=5", completion(f"{GIVEN}<|mask:7|>", max_tokens=5)),
    "a stop string": ("stop", completion(f"{GIVEN}<|mask:6|>0", stop="1")),
    "an end of text in the middle": ("diffusion_seed_canvas", completion(f"{GIVEN}<|mask:6|>{EOS}0")),
    "masks and a seed": ("diffusion_seed_canvas", completion("a<|mask|>", _knobs=SEED)),
    "masks and places": ("diffusion_pinned", completion("a<|mask|>", _knobs={"diffusion_pinned": [0]})),
    "masks and a suffix": ("suffix", completion("a<|mask|>", suffix="b")),
    "masks in a suffix": ("suffix", completion("a", suffix="b<|mask:2|>")),
    "a suffix twice": ("suffix_token_ids", completion("a", suffix="b", _knobs={"suffix_token_ids": [7]})),
    "a suffix one too long": ("max_tokens=3", completion(GIVEN, suffix="0" * 44, max_tokens=3)),
    "a truncated canvas": ("truncate_prompt_tokens", completion("aaa<|mask|>", truncate_prompt_tokens=3)),
    "truncated ids": ("truncate_prompt_tokens", completion([5, M, 6, M, 7], truncate_prompt_tokens=4)),
    "text that cannot be spelt": ("prompt", completion("a<|mask|>é")),
    "a seed outside": ("diffusion_seed_canvas=999", completion("a", _knobs={"diffusion_seed_canvas": [999, M]})),
    "an empty seed": ("diffusion_seed_canvas=[]", completion("a", _knobs={"diffusion_seed_canvas": []})),
    "a full seed": ("diffusion_seed_canvas", completion("a", _knobs={"diffusion_seed_canvas": [7, 8]})),
    "text for a seed": ("diffusion_seed_canvas", completion("a", _knobs={"diffusion_seed_canvas": "7"})),
    "places of nothing": ("diffusion_pinned", completion("a", _knobs={"diffusion_pinned": [0]})),
    "a place outside": ("diffusion_pinned=3", completion("a", _knobs=SEED | {"diffusion_pinned": [1, 3]})),
    "a pinned mask": ("diffusion_pinned=0", completion("a", _knobs=SEED | {"diffusion_pinned": [0]})),
    "another max_tokens than a seed's": ("max_tokens=4", completion("a", max_tokens=4, _knobs=SEED)),
    "a mask in a suffix's ids": ("suffix_token_ids", completion("a", _knobs={"suffix_token_ids": [7, M]})),
}  # fmt: skip
BAD_CHAT = {
    "a user's mask": ("messages", chat({"role": "user", "content": "1+<|mask|>=3"})),
    "a user's masks": ("messages", chat({"role": "user", "content": "a<|mask:2|>"}, answer("<|mask|>"))),
    "no masks in a mark": ("<|mask:0|>", chat(QUESTION, answer("<|mask:0|>"))),
    "another max_tokens": ("max_tokens=5", chat(QUESTION, answer("6*7=<|mask:7|>"), max_tokens=5)),
    "another completion limit": ("max_tokens=5", chat(QUESTION, answer("<|mask:7|>"), max_completion_tokens=5)),
    "a stop string": ("stop", chat(QUESTION, answer("6*7=<|mask:6|>0"), stop="1")),
    "masks and a seed": ("diffusion_seed_canvas", chat(QUESTION, answer("<|mask|>"), _knobs=SEED)),
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("what", BAD)
def test_a_bad_canvas_is_refused_by_name(client, what, stream):
    name, request = BAD[what]
    assert_refused(client.completions.create, request, name, stream)


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("what", BAD_CHAT)
def test_a_bad_canvas_of_a_chat_is_refused_by_name(client, what, stream):
    name, request = BAD_CHAT[what]
    assert_refused(client.chat.completions.create, request, name, stream)


# Whatever is asked for.

SAMPLERS = (
    "info_gain", "lookum", "beam", "best_of_n", "entropy", "confidence", "margin", "uniform", "ar", "klass", "pc", "eb",
    "threshold", "factor",
)  # fmt: skip


def random_request(rng: random.Random) -> tuple[dict, list[int]]:
    """A request, and the canvas it starts from."""
    canvas = [M if rng.random() < 0.5 else rng.choice(encode("0123456789*+=,\n")) for _ in range(rng.randint(1, 24))]
    canvas[rng.randrange(len(canvas))] = M
    prompt = encode_prompt(rng.choice(("multiply 6*7", "judge 1+1=2", "sudoku\n1..4", "x")))
    knobs: dict = {
        "sampler": rng.choice(SAMPLERS),
        "block_length": rng.randint(0, len(canvas)),
        "tokens_per_step": rng.randint(1, 3),
        "cache": rng.choice(("none", "prefix", "dual")),
        "num_candidates": rng.randint(1, 6),
    }
    knobs = fitting(knobs)
    body = {"temperature": rng.choice((0.0, 0.7, 2.0)), "seed": rng.randrange(99), "return_token_ids": True}
    if rng.random() < 0.5:
        return completion([*prompt, M, *canvas], _knobs=knobs, **body), [M, *canvas]
    if rng.random() < 0.5:
        knobs["suffix_token_ids"] = encode("=7")
    return completion(prompt, _knobs=knobs | {"diffusion_seed_canvas": canvas}, **body), canvas


@pytest.mark.parametrize("seed", range(50))
def test_text_that_stands_always_comes_back_unchanged(client, seed):
    request, canvas = random_request(random.Random(seed))
    stream = client.completions.create(**request, stream=True)
    tokens = [token for chunk in stream for token in chunk.choices[0].token_ids or ()]
    last = max((place for place, token in enumerate(canvas) if token != M), default=-1)
    assert last < len(tokens) <= len(canvas)
    assert all(ours == given for ours, given in zip(tokens, canvas, strict=False) if given != M)
    assert M not in tokens
    assert VOCAB[EOS] not in tokens[:last]


def test_refused_and_infilled_requests_leave_ordinary_ones_as_they_are(client, url):
    request = completion("judge 12+7*3=33", max_tokens=26)
    before = client.completions.create(**request).choices[0].text
    for _, refused in BAD.values():
        with pytest.raises(openai.BadRequestError):
            client.completions.create(**refused)
    complete(client, PUZZLE + GRID)
    assert client.completions.create(**request).choices[0].text == before
    assert is_healthy(url)
