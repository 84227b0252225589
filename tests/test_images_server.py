"""A real server of pictures: OpenAI's client, streams, edits, refusals, and clients that leave."""

import asyncio
import base64
import io
import json
import os
import random
import re
import shlex
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from browser import fill, open_browser, open_page, run, text_of
from checkpoints import write_magvit, write_mmada
from clients import client as http_client
from clients import wait_until_idle
from PIL import Image
from readme import PAGES, ROOT
from scrape import scrape, total
from selenium.webdriver.common.by import By
from server import openai_client, serve
from transformers import AutoTokenizer
from waiting import PATIENCE, wait_until

from vllm_infogain.embedded.tokenizer import ANSWER, BOS, VOCAB, encode
from vllm_infogain.engine.pictures import IN_THE_MODEL
from vllm_infogain.images.canvas import UNKNOWN
from vllm_infogain.images.magvit import Magvit, from_pixels, pixels
from vllm_infogain.images.reading import middle_square
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.serving.images import GENERATIONS

pytestmark = pytest.mark.engine

NAME, CODES_PER_SIDE, SIDE = "tiny-image", 8, 32
CODES = CODES_PER_SIDE**2
PROMPT = "a red circle"
FEW = {"sampler": "entropy", "schedule": "linear", "steps": 8}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mmada")
    write_mmada(path, codes_per_side=CODES_PER_SIDE)
    write_magvit(path / IN_THE_MODEL)
    return path


@pytest.fixture(scope="module")
def url(folder):
    with serve(
        str(folder), "--plugin", "infogain", "--dtype", "float32", "--block-size", "32", "--served-model-name", NAME,
        "--kv-cache-memory-bytes", "67108864", environment={"VLLM_PLUGINS": "infogain,infogain_page"},
    ) as address:  # fmt: skip
        yield address


@pytest.fixture(scope="module")
def client(url) -> openai.OpenAI:
    return openai_client(url)


@pytest.fixture(scope="module")
def tokenizer(folder) -> Magvit:
    return Magvit.from_checkpoint(folder / IN_THE_MODEL)


@pytest.fixture(scope="module")
def tokens(folder) -> ImageTokens:
    config = json.loads((folder / "config.json").read_text())
    return ImageTokens(**{name: value for name, value in config.items() if name in ImageTokens.__dataclass_fields__})


def opened(b64_json: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(b64_json)))


@torch.no_grad()
def assert_shows(b64_json: str, codes: list[int], tokenizer: Magvit) -> None:
    """A picture is what the tokenizer makes of these codes; fractions that are cut off may fall to either side."""
    grid = torch.tensor(codes).reshape(1, CODES_PER_SIDE, CODES_PER_SIDE)
    due = pixels(tokenizer.decode(grid.clamp(min=0), grid == UNKNOWN))[0].int()
    shown = torch.from_numpy(np.asarray(opened(b64_json).convert("RGB")).astype(np.int32))
    assert shown.shape == due.shape == (SIDE, SIDE, 3)
    assert (shown - due).abs().max() <= 1


def codes_of(report: dict[str, Any], start: list[int], steps: int | None = None) -> list[int]:
    """Codes after so many steps of a trajectory."""
    codes = list(start)
    for step in report["trajectory"][:steps]:
        for position, token in zip(step["positions"], step["tokens"], strict=True):
            codes[position] = token
    return codes


def generate(client: openai.OpenAI, prompt: str = PROMPT, **given: Any) -> Any:
    """By the unmodified client; what OpenAI does not have goes into `extra_body`."""
    extra = {name: given.pop(name) for name in ("seed", "temperature", "guidance_scale", "vllm_xargs") if name in given}
    return client.images.generate(model=NAME, prompt=prompt, extra_body=extra, **given)


@pytest.mark.parametrize("knobs", [FEW, {"num_candidates": 3, "steps": 6}, FEW | {"guidance_scale": 2}])
def test_a_picture_is_the_decode_of_the_codes_that_the_same_request_for_tokens_gives(
    knobs, client, folder, tokenizer, tokens
):
    answer = generate(client, n=2, seed=3, vllm_xargs=knobs)
    text = client.completions.with_raw_response  # token ids come beside the text
    words = httpx.post(
        f"{str(client.base_url).removesuffix('/v1/')}/tokenize",
        json={"model": NAME, "prompt": PROMPT, "add_special_tokens": False},
    ).json()["tokens"]
    raw = text.create(
        model=NAME, prompt=tokens.prompt(words), max_tokens=CODES, temperature=0.4, seed=3, n=2,
        extra_body={"vllm_xargs": knobs | {"image": 1}, "return_token_ids": True},
    ).http_response.json()  # fmt: skip
    assert len(answer.data) == 2
    assert answer.data[0].b64_json != answer.data[1].b64_json
    for picture, choice in zip(answer.data, raw["choices"], strict=True):
        assert_shows(picture.b64_json, [token - tokens.image_token_offset for token in choice["token_ids"]], tokenizer)
        assert picture.infogain["cumulative_entropy"] == choice["infogain"]["cumulative_entropy"]
    assert answer.usage.output_tokens == raw["usage"]["completion_tokens"] == 2 * CODES
    assert answer.usage.input_tokens == raw["usage"]["prompt_tokens"]


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_a_picture_comes_in_the_format_that_is_asked_for(output_format, client):
    answer = generate(client, output_format=output_format, response_format="b64_json", size="auto", vllm_xargs=FEW)
    picture = opened(answer.data[0].b64_json)
    assert (picture.format, picture.size) == (output_format.upper(), (SIDE, SIDE))
    assert (answer.output_format, answer.size) == (output_format, "32x32")


def test_a_stream_shows_the_canvas_half_filled(client, tokenizer, tokens):
    knobs = FEW | {"return_trajectory": 1}
    *looks, last = generate(client, stream=True, partial_images=3, seed=1, vllm_xargs=knobs)
    assert [event.type for event in looks] == ["image_generation.partial_image"] * 3
    assert last.type == "image_generation.completed"
    trajectory = last.infogain["trajectory"]
    assert len(trajectory) == 8
    unknown = [UNKNOWN + tokens.image_token_offset] * CODES
    for event, steps in zip((*looks, last), (2, 4, 6, 8), strict=True):
        codes = [token - tokens.image_token_offset for token in codes_of(last.infogain, unknown, steps)]
        assert_shows(event.b64_json, codes, tokenizer)
    whole = generate(client, seed=1, vllm_xargs=FEW)
    assert whole.data[0].b64_json == last.b64_json
    ((event),) = generate(client, stream=True, seed=1, vllm_xargs=FEW)
    assert (event.type, event.b64_json) == (last.type, last.b64_json)


def file_of(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "png")
    return file.getvalue()


@torch.no_grad()
def test_an_edit_draws_anew_what_the_mask_leaves_open_and_keeps_the_other_codes(client, tokenizer, tokens):
    given = opened(generate(client, seed=5, vllm_xargs=FEW).data[0].b64_json).convert("RGB")
    mask = Image.new("RGBA", (SIDE, SIDE), (255, 255, 255, 255))
    mask.paste((0, 0, 0, 0), (0, 0, SIDE // 2, SIDE))  # the left half
    answer = client.images.edit(
        model=NAME, prompt="a blue square", image=("a.png", file_of(given)), mask=("b.png", file_of(mask)),
        extra_body={"seed": 2, "vllm_xargs": FEW | {"return_trajectory": 1}},
    )  # fmt: skip
    raw = torch.from_numpy(np.asarray(given).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    kept = tokenizer.encode(raw).flatten().tolist()
    report = answer.data[0].infogain
    written = {place for step in report["trajectory"] for place in step["positions"]}
    assert written == {place for place in range(CODES) if place % CODES_PER_SIDE < CODES_PER_SIDE // 2}
    codes = codes_of(report, [code + tokens.image_token_offset for code in kept])
    assert_shows(answer.data[0].b64_json, [token - tokens.image_token_offset for token in codes], tokenizer)
    assert answer.usage.input_tokens_details.image_tokens == CODES // 2


# Chats about a picture.


def chat_about(shown: Image.Image, **given: Any) -> dict[str, Any]:
    url = f"data:image/png;base64,{base64.b64encode(file_of(shown)).decode()}"
    content = [{"type": "text", "text": "what is it"}, {"type": "image_url", "image_url": {"url": url}}]
    return {"model": NAME, "messages": [{"role": "user", "content": content}], "max_tokens": 12, **given}


@torch.no_grad()
def test_a_chat_about_a_picture_is_the_text_behind_the_pictures_codes(client, tokenizer, tokens):
    shown = Image.effect_noise((60, 40), 90).convert("RGB")
    body = chat_about(shown, temperature=0.7, seed=3, extra_body={"return_token_ids": True})
    chat = client.chat.completions.with_raw_response.create(**body).http_response.json()
    square = np.frombuffer(middle_square(shown, SIDE), np.uint8).reshape(1, SIDE, SIDE, 3)
    codes = tokenizer.encode(from_pixels(torch.from_numpy(square.copy()))).flatten().tolist()
    text = [VOCAB[BOS], *encode("what is it"), VOCAB[ANSWER]]
    assert chat["prompt_token_ids"] == tokens.shown(codes) + text
    assert chat["usage"]["prompt_tokens"] == CODES + 3 + len(text)
    alone = client.completions.create(
        model=NAME, prompt=chat["prompt_token_ids"], max_tokens=12, temperature=0.7, seed=3
    )  # fmt: skip
    (choice,) = chat["choices"]
    assert choice["message"]["content"] == alone.choices[0].text
    assert choice["infogain"]["cumulative_entropy"] == alone.choices[0].infogain["cumulative_entropy"]
    chunks = list(client.chat.completions.create(**chat_about(shown, temperature=0.7, seed=3, stream=True)))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == alone.choices[0].text
    words, part = body["messages"][0]["content"]
    parts = [
        {"type": "input_text", "text": words["text"]},
        {"type": "input_image", "image_url": part["image_url"]["url"], "detail": "auto"},
    ]
    reply = client.responses.create(model=NAME, max_output_tokens=12, input=[{"role": "user", "content": parts}])
    assert reply.usage.input_tokens == CODES + 3 + len(text)


@pytest.mark.parametrize("stream", [False, True])
def test_a_picture_that_cannot_be_read_is_refused_before_a_stream_begins(stream, client):
    chat = chat_about(Image.new("RGB", (8, 8)), stream=stream)
    chat["messages"][0]["content"][1]["image_url"]["url"] = "ftp://a/b.png"
    with pytest.raises(openai.BadRequestError, match="image_url='ftp") as refusal:
        client.chat.completions.create(**chat)
    assert refusal.value.param == "image_url"


REFUSED = {
    "size": {"size": "1024x1024"},
    "response_format": {"response_format": "url"},
    "quality": {"quality": "hd"},
    "prompt": {"prompt": "a" * 128},
    "partial_images": {"partial_images": 1},
    "guidance_scale": {"guidance_scale": 1e6},
    "vllm_xargs.image": {"vllm_xargs": {"image": 0}},
    "num_candidates": {"vllm_xargs": {"num_candidates": 65}},
    "tokens_per_step": {"vllm_xargs": {"tokens_per_step": 3, "schedule": "linear"}},
}


@pytest.mark.parametrize("named", REFUSED)
def test_a_request_that_cannot_be_served_is_refused_by_the_fields_name(named, client):
    with pytest.raises(openai.BadRequestError) as refusal:
        generate(client, **REFUSED[named])
    assert named in refusal.value.body["message"]


def test_a_refusal_of_the_engine_comes_before_a_stream_begins(client):
    with pytest.raises(openai.BadRequestError, match="num_candidates"):
        generate(client, stream=True, vllm_xargs={"num_candidates": 65})


def test_another_model_is_not_found(client):
    with pytest.raises(openai.NotFoundError):
        client.images.generate(model="other", prompt=PROMPT)


# Clients that leave.

ENDLESS = {"schedule": "fixed", "tokens_per_step": 1, "num_candidates": 64, "bypass_threshold": 1}


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_what_its_request_holds(stream, url):
    body = {"prompt": PROMPT, "vllm_xargs": ENDLESS}
    body |= {"stream": True, "partial_images": 3} if stream else {"n": 10}
    samples = 1 if stream else 10
    taken = 0.0

    async def ask_and_leave() -> None:
        async with http_client(url) as http:
            asking = asyncio.create_task(http.post(GENERATIONS, json=body))

            def runs() -> bool:
                return asking.done() or total(scrape(url), "vllm:num_requests_running") == samples

            await asyncio.to_thread(wait_until, runs, lambda: "it does not run")
            asking.cancel()

    def was_left() -> bool:
        """In its midst, whatever the machine: else it is asked again."""
        nonlocal taken
        wait_until_idle(url)
        before = total(scrape(url), "vllm:diffusion_num_denoising_steps_total")
        asyncio.run(ask_and_leave())
        wait_until_idle(url)
        taken = total(scrape(url), "vllm:diffusion_num_denoising_steps_total") - before
        return 0 < taken < samples * CODES

    wait_until(was_left, lambda: f"it ran to its end, in {taken:g} steps")


# The live page.


def test_the_live_page_draws_both_samplers_pictures(url, client):
    with open_browser() as browser, open_page(browser, url) as page:
        fill(page, tokens_per_step=16)
        run(page)
        prompt = page.find_element(By.ID, "prompt").get_attribute("value")
        pictures = page.find_elements(By.CSS_SELECTOR, ".panel .picture")
        shown = [picture.get_attribute("src").rpartition(",")[2] for picture in pictures]
        assert text_of(page, "shown") == "4 of 4"
    due = [
        generate(client, prompt, seed=1, temperature=0, vllm_xargs={"sampler": sampler, "tokens_per_step": 16})
        for sampler in ("entropy", "info_gain")
    ]
    assert shown == [answer.data[0].b64_json for answer in due]
    assert shown[0] != shown[1]


# The page of the documentation.


def examples(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES["vllm_infogain/serving/IMAGES.md"], re.MULTILINE | re.DOTALL)


def test_the_pages_examples_of_a_server_run_as_printed(url, capsys):
    (command,) = examples("bash")
    done = subprocess.run(
        shlex.split(command.replace("localhost:8000", url.removeprefix("http://"))), capture_output=True, check=True
    )
    assert [opened(one["b64_json"]).size for one in json.loads(done.stdout)["data"]] == [(SIDE, SIDE)] * 2
    for example in examples("py")[:3]:
        exec(example.replace("http://localhost:8000", url), {"SIDE": SIDE})
    *_, edited, read = capsys.readouterr().out.splitlines()
    assert (edited.endswith("codes kept"), int(read.split()[0]) > CODES) == (True, True)


@pytest.mark.slow
def test_the_pages_examples_without_a_server_run_as_printed(folder, capsys):
    offline, library = examples("py")[3:]
    exec(offline, {})
    assert capsys.readouterr().out.count("(32, 32)") == 4
    names = {"model": write_mmada(folder, codes_per_side=CODES_PER_SIDE), "FOLDER": folder / IN_THE_MODEL}
    exec(library, names | {"tokenizer": AutoTokenizer.from_pretrained(folder)})
    assert capsys.readouterr().out == "(32, 32)\n"


# Many at once.

CLIENTS, REQUESTS = 8, 200


def kinds_of_requests() -> list[tuple[str, dict[str, Any]]]:
    shown = Image.new("RGB", (40, 24), "red")
    drawn = [
        (GENERATIONS, {"prompt": PROMPT, "seed": seed, "vllm_xargs": FEW | {"sampler": sampler}, **more})
        for seed, (sampler, more) in enumerate(
            [("entropy", {}), ("uniform", {"n": 2}), ("confidence", {"stream": True, "partial_images": 2}),
             ("margin", {"guidance_scale": 1}), ("entropy", {"output_format": "webp"})]
        )
    ]  # fmt: skip
    stepwise = {"vllm_xargs": {"stream_mode": "canvas"}, "stream": True}
    text = {"model": NAME, "prompt": "multiply 6*7", "max_tokens": 16}
    texts = [("/v1/completions", text | {"seed": seed} | more) for seed, more in enumerate(({}, {}, stepwise))]
    chats = [("/v1/chat/completions", chat_about(shown, seed=5, **more)) for more in ({}, stepwise)]
    return [*drawn, *texts, *chats]


def shown_by(body: str) -> list[str]:
    """The pictures that a response shows, or its text, whole or streamed."""
    events = [json.loads(line[6:]) for line in body.split("\n") if line.startswith("data: {")] or [json.loads(body)]
    pictures = [one["b64_json"] for event in events for one in event.get("data", [event]) if "b64_json" in one]
    choices = [choice for event in events for choice in event.get("choices", ())]
    said = [choice.get("message") or choice.get("delta") or {"content": choice.get("text")} for choice in choices]
    return pictures or ["".join(one.get("content") or "" for one in said)]


class Heart(threading.Thread):
    """Asks /health again and again, beside the clients; `slowest` is how long one took, in seconds."""

    def __init__(self, url: str) -> None:
        super().__init__(daemon=True)
        self._url, self._done, self.took = url, threading.Event(), []

    def run(self) -> None:
        while not self._done.wait(0.02):
            asked = time.perf_counter()
            with urllib.request.urlopen(f"{self._url}/health", timeout=PATIENCE) as response:
                assert response.status == 200
            self.took.append(time.perf_counter() - asked)

    def stop(self) -> list[float]:
        self._done.set()
        self.join()
        return sorted(self.took)


@pytest.mark.slow
def test_pictures_and_texts_of_many_clients_are_each_answered_as_if_alone(url):
    """200 requests, a quarter of which are aborted, or left in the midst of their stream. How long /health takes
    meanwhile is printed."""
    rng = random.Random(1)
    kinds = kinds_of_requests()
    streams = [kind for kind in kinds if kind[1].get("stream")]
    manners: Counter[str] = Counter()

    async def answer(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> list[Any]:
        response = await http.post(path, json=body)
        assert response.status_code == 200, response.text
        return shown_by(response.text)

    async def abort(http: httpx.AsyncClient, path: str, body: dict[str, Any], after: float) -> None:
        asking = asyncio.create_task(answer(http, path, body))
        await asyncio.wait({asking}, timeout=after)
        asking.cancel()

    async def leave_in_mid_stream(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> None:
        async with http.stream("POST", path, json=body) as response:
            assert response.status_code == 200
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    return

    async def besiege() -> None:
        async with http_client(url) as http:
            due = [await answer(http, *kind) for kind in kinds]
            jobs = iter([(rng.randrange(len(kinds)), rng.random()) for _ in range(REQUESTS)])

            async def one_client() -> None:
                for kind, manner in jobs:
                    if manner < 0.12:
                        await abort(http, *kinds[kind], manner)
                        manners["aborted"] += 1
                    elif manner < 0.25:
                        await leave_in_mid_stream(http, *streams[kind % len(streams)])
                        manners["left"] += 1
                    else:
                        assert await answer(http, *kinds[kind]) == due[kind], kinds[kind]
                        manners["answered"] += 1

            await asyncio.gather(*(one_client() for _ in range(CLIENTS)))

    heart = Heart(url)
    heart.start()
    asyncio.run(besiege())
    took = heart.stop()
    wait_until_idle(url)
    load = os.getloadavg()[0]
    print(
        f"{dict(manners)}; of {len(took)} /health the slowest took {took[-1]:.3f} s, half {took[len(took) // 2]:.3f}; "
    )
    print(f"load {load:.1f}")
    assert manners.total() == REQUESTS
    assert min(manners[name] for name in ("aborted", "left", "answered")) > REQUESTS // 20


def test_pictures_are_exported_in_the_evaluators_layouts_and_none_is_asked_for_twice(url, tmp_path):
    lines = [json.dumps({"tag": "colors", "prompt": prompt}) for prompt in ("a red circle", "a blue cross")]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    common = ["--url", url, "--per-prompt", "2", "--knobs", json.dumps(FEW)]

    def export(*arguments: str) -> str:
        command = [sys.executable, "-m", "benchmarks.export_images", *arguments, *common]
        return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True, timeout=PATIENCE).stdout

    geneval = ("geneval", str(tmp_path / "pictures"), "--metadata", str(tmp_path / "metadata.jsonl"))
    assert "0 of 4 pictures are there already" in export(*geneval)
    for index, line in enumerate(lines):
        folder = tmp_path / "pictures" / f"{index:05}"
        assert (folder / "metadata.jsonl").read_text() == line + "\n"
        assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
    (tmp_path / "pictures" / "00001" / "samples" / "0001.png").unlink()
    assert "3 of 4 pictures are there already" in export(*geneval)
    export("npz", str(tmp_path / "all.npz"), "--prompts", str(tmp_path / "prompts.txt"))
    array = np.load(tmp_path / "all.npz")["arr_0"]
    assert (array.shape, array.dtype) == ((2, SIDE, SIDE, 3), np.uint8)
    first = Image.open(tmp_path / "pictures" / "00000" / "samples" / "0001.png")
    assert (array[1] == np.asarray(first.convert("RGB"))).all(), "the same prompt and seed"
