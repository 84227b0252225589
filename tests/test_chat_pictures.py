"""A chat's picture before an engine that says what a test has it say: its pixels, its tokens, and what is refused."""

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import write_llada, write_magvit, write_mmada
from PIL import Image
from test_admission import config
from transformers import AutoTokenizer
from vllm.renderers import ChatParams, renderer_from_config

from vllm_infogain import InfoGainSampler, ParameterError
from vllm_infogain.compat import VLLMValidationError
from vllm_infogain.embedded.tokenizer import ANSWER, BOS, MASK, VOCAB, encode
from vllm_infogain.images import reading_prompt
from vllm_infogain.images.magvit import from_pixels
from vllm_infogain.images.reading import MOST_OBLONG, middle_square

SIDE, CODES = 16, 16
FIRST_CODE = len(VOCAB)
AROUND = [VOCAB["|"], VOCAB["~"]], [VOCAB["}"]]  # <|mmu|> <|soi|>, <|eoi|>: as write_mmada has them
QUESTION = "what is it"
ASKED = [VOCAB[BOS], *encode(QUESTION), VOCAB[ANSWER]]


def picture(width: int = SIDE, height: int = SIDE) -> Image.Image:
    coarse = np.random.default_rng(0).choice(np.array([0, 255], np.uint8), (4, 4, 3))
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)


def data_url(shown: Image.Image, file_format: str = "png") -> str:
    file = io.BytesIO()
    shown.save(file, file_format)
    return f"data:image/{file_format};base64,{base64.b64encode(file.getvalue()).decode()}"


def columns(pixels: bytes, side: int) -> list[int]:
    """Of a square, the red of its first row."""
    return np.frombuffer(pixels, np.uint8).reshape(side, side, 3)[0, :, 0].tolist()


# Pixels.


@pytest.mark.parametrize(("width", "first"), [(10, 0), (20, 5), (21, 6), (23, 6), (24, 7)])
def test_a_picture_is_cut_to_its_middle_where_torchvision_cuts_it(width, first):
    """Of these the shorter side is right already; the first column kept is round((width - side) / 2), to even."""
    ramp = Image.fromarray(np.tile(np.arange(width, dtype=np.uint8)[:, None], (10, 1, 3)))
    assert columns(middle_square(ramp, 10), 10) == list(range(first, first + 10))
    tall = middle_square(ramp.transpose(Image.Transpose.TRANSPOSE), 10)
    rows = np.frombuffer(tall, np.uint8).reshape(10, 10, 3)[:, 0, 0].tolist()
    assert rows == list(range(first, first + 10))


def test_a_picture_is_scaled_until_its_shorter_side_fits():
    wide = Image.new("RGB", (80, 40), "red")
    wide.paste((0, 0, 255), (30, 0, 50, 40))  # the middle quarter: half of the square that is kept
    square = np.frombuffer(middle_square(wide, 20), np.uint8).reshape(20, 20, 3)
    assert (square[:, 7:13] == (0, 0, 255)).all()
    assert (square[:, :3] == (255, 0, 0)).all()
    assert (square[:, -3:] == (255, 0, 0)).all()


def test_a_picture_is_turned_upright_and_its_transparency_left_out():
    given, upright = Image.new("RGB", (8, 8), "white"), io.BytesIO()
    given.putpixel((0, 0), (9, 0, 0))
    exif = given.getexif()
    exif[0x0112] = 3  # upside down
    given.save(upright, "png", exif=exif)
    read = np.frombuffer(middle_square(Image.open(upright), 8), np.uint8).reshape(8, 8, 3)
    assert read[7, 7].tolist() == [9, 0, 0]
    clear = Image.new("RGBA", (8, 8), (1, 2, 3, 0))
    assert middle_square(clear, 8) == bytes([1, 2, 3]) * 64


def test_a_strip_is_refused():
    assert len(middle_square(Image.new("RGB", (MOST_OBLONG, 1)), 4)) == 48
    with pytest.raises(ParameterError, match=f"picture='{MOST_OBLONG + 1}x1 pixels'"):
        middle_square(Image.new("RGB", (MOST_OBLONG + 1, 1)), 4)


# Chats.


class Engine:
    """Its one tokenizer of pictures is MAGVIT; the second worker answers."""

    def __init__(self, magvit: Any) -> None:
        self.magvit = magvit
        self.pixels: list[bytes] = []

    def collective_rpc(self, method: str, args: tuple = ()) -> list[Any]:
        if self.magvit is None:
            return [None]
        if method == "picture_side":
            return [None, SIDE]
        assert method == "encode_images"
        self.pixels += args
        return [None, codes_of(self.magvit, args[0])]


class AsyncEngine(Engine):
    async def collective_rpc(self, method: str, args: tuple = ()) -> list[Any]:  # type: ignore[override]
        await asyncio.sleep(0)
        return super().collective_rpc(method, args)


def codes_of(magvit: Any, pixels: bytes) -> list[int]:
    import torch

    raw = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(1, SIDE, SIDE, 3)
    with torch.inference_mode():
        return magvit.encode(from_pixels(raw)).flatten().tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("mmada")
    write_mmada(path)
    return path


@pytest.fixture(scope="module")
def magvit(tmp_path_factory):
    return write_magvit(tmp_path_factory.mktemp("magvit"))


@pytest.fixture(scope="module")
def vllm_config(folder):
    return config(folder)


Ask = Callable[..., list[int]]


@pytest.fixture(params=[Engine, AsyncEngine])
def ask(request, vllm_config, magvit):
    """Renders a chat as `LLM.chat`, or as a server does."""
    made = []

    def ask(messages: list, *, vllm_config=vllm_config, magvit=magvit, engine: Any = True, **given: Any) -> list[int]:
        renderer = renderer_from_config(vllm_config)
        made.append(renderer)
        renderer.engine = request.param(magvit) if engine is True else engine
        truncate = given.pop("truncate_prompt_tokens", None)
        given.setdefault("chat_template_kwargs", {"tokenize": False})  # as vLLM's server and `LLM.chat` give it
        tokens = replace(renderer.default_chat_tok_params, truncate_prompt_tokens=truncate)
        arguments = [messages], ChatParams(**given), tokens
        if request.param is AsyncEngine:
            _, (prompt,) = asyncio.run(renderer.render_chat_async(*arguments))
        else:
            _, (prompt,) = renderer.render_chat(*arguments)
        return prompt["prompt_token_ids"]

    yield ask
    for renderer in made:
        renderer.shutdown()


def about(part: dict[str, Any], *further: dict[str, Any]) -> list[dict[str, Any]]:
    """A chat about a picture."""
    return [{"role": "user", "content": [{"type": "text", "text": QUESTION}, part, *further]}]


def published(codes: list[int], text: list[int]) -> list[int]:
    """The prompt that MMaDA's released script makes for understanding."""
    before, behind = AROUND
    return before + [FIRST_CODE + code for code in codes] + behind + text


FORMS = {
    "chat": lambda url: {"type": "image_url", "image_url": {"url": url}},
    "chat, detail": lambda url: {"type": "image_url", "image_url": {"url": url, "detail": "auto"}},
    "responses": lambda url: {"type": "input_image", "image_url": url, "detail": "auto"},
    "vLLM's short form": lambda url: {"image_url": url},
    "vLLM's, with a uuid": lambda url: {"type": "image_url", "image_url": {"url": url}, "uuid": "1"},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_chat_with_a_picture_is_the_published_prompt(ask: Ask, magvit, form):
    shown = picture(40, 24)
    ids = ask(about(FORMS[form](data_url(shown))))
    assert ids == published(codes_of(magvit, middle_square(shown, SIDE)), ASKED)
    assert len(set(ids[2 : 2 + CODES])) > 1, "a random tokenizer tells parts of it apart"


@pytest.mark.parametrize("file_format", ["jpeg", "webp", "gif", "bmp"])
def test_files_of_other_formats_are_read(ask: Ask, magvit, file_format):
    url = data_url(picture(), file_format)
    shown = Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))
    assert ask(about(FORMS["chat"](url))) == published(codes_of(magvit, middle_square(shown, SIDE)), ASKED)


def test_pillows_pictures_are_read_offline(ask: Ask, magvit):
    ids = ask(about({"type": "image_pil", "image_pil": picture()}))
    assert ids == published(codes_of(magvit, picture().tobytes()), ASKED)


def test_the_picture_comes_first_whichever_message_it_is_in_and_text_keeps_its_order(ask: Ask, magvit):
    turns = "{% for message in messages %}<{{ message.role }}>{{ message.content }}</>{% endfor %}"
    part, text = FORMS["chat"](data_url(picture())), {"type": "text", "text": "b"}
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "x"},
        {"role": "user", "content": [part, text]},
    ]
    due = published(codes_of(magvit, picture().tobytes()), encode("<user>a</><assistant>x</><user>b</>"))
    assert ask(messages, chat_template=turns) == due
    alone = [{"role": "user", "content": [part]}]
    assert ask(alone, chat_template=turns) == [*due[: CODES + 3], *encode("<user></>")]


def test_an_answer_about_a_picture_is_completed_in_place(ask: Ask, magvit):
    messages = [*about(FORMS["chat"](data_url(picture()))), {"role": "assistant", "content": "a<|mask:2|>"}]
    assert ask(messages) == published(codes_of(magvit, picture().tobytes()), [*ASKED, *encode("a"), *[VOCAB[MASK]] * 2])


def test_a_chat_without_a_picture_asks_the_engine_for_nothing(ask: Ask):
    text = [{"type": "text", "text": QUESTION}]
    assert ask([{"role": "user", "content": text}], engine=None) == ASKED
    assert ask([{"role": "user", "content": QUESTION}], engine=None) == ASKED


def test_a_url_is_fetched_from_where_the_server_allows(ask: Ask, magvit, folder, tmp_path):
    picture().save(tmp_path / "a.png")
    quiet = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(quiet, directory=str(tmp_path))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        due = published(codes_of(magvit, picture().tobytes()), ASKED)
        allowed = config(folder, allowed_media_domains=["127.0.0.1"], allowed_local_media_path=str(tmp_path))
        assert ask(about(FORMS["chat"](url)), vllm_config=allowed) == due
        assert ask(about(FORMS["chat"](f"file://{tmp_path}/a.png")), vllm_config=allowed) == due
        with pytest.raises(ValueError, match=r"image_url='http.*allowed domains"):
            ask(about(FORMS["chat"](url)), vllm_config=config(folder, allowed_media_domains=["example.org"]))
        server.shutdown()
    with pytest.raises(ValueError, match=r"image_url='file.*allowed-local-media-path"):
        ask(about(FORMS["chat"](f"file://{tmp_path}/a.png")))


def url_part(url: Any, **more: Any) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url, **more}}


PNG = data_url(picture())
REFUSED = {
    "two pictures": ("image_url='2 pictures'", about(url_part(PNG), url_part(PNG))),
    "two in two messages": ("image_url='2 pictures'", about(url_part(PNG)) * 2),
    "a size": ("detail='high'", about(url_part(PNG, detail="high"))),
    "no URL": ("image_url=None", about({"type": "image_url", "image_url": {}})),
    "a number": ("image_url=3", about(url_part(3))),
    "a text": ("image_url='a red circle", about(url_part("a red circle"))),
    "another scheme": ("image_url='ftp:", about(url_part("ftp://a/b.png"))),
    "no picture": ("image_url='data:", about(url_part("data:image/png;base64,AAAA"))),
    "half a picture": ("image_url='data:", about(url_part(PNG[: len(PNG) // 2 // 4 * 4]))),
    "no base64": ("image_url='data:", about(url_part("data:image/png;base64,*"))),
    "not base64": ("image_url='data:", about(url_part("data:image/svg+xml,<svg/>"))),
    "a data URL cut": ("image_url='data:", about(url_part("data:image/png"))),
    "a strip": ("image_url='99x2 pixels'", about(url_part(data_url(picture(99, 2))))),
    "a bomb": ("image_url='data:", about(url_part(data_url(Image.new("1", (20_000, 20_000)))))),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_picture_for_the_model_is_refused_by_its_field(ask: Ask, what):
    said, messages = REFUSED[what]
    with pytest.raises(ValueError, match=said) as refusal:
        ask(messages)
    assert refusal.value.parameter == said.partition("=")[0]
    assert len(str(refusal.value)) < 400, "not the whole file"


@pytest.mark.parametrize("by_template", [False, True])
def test_a_prompt_with_a_picture_is_not_truncated_whoever_made_its_tokens(ask: Ask, magvit, by_template):
    made = {"chat_template_kwargs": {"tokenize": by_template}}
    assert ask(about(url_part(PNG)), **made) == published(codes_of(magvit, picture().tobytes()), ASKED)
    with pytest.raises(ValueError, match="truncate_prompt_tokens=20: would cut the picture"):
        ask(about(url_part(PNG)), truncate_prompt_tokens=20, **made)


def test_a_picture_counts_for_the_models_length(ask: Ask, folder):
    assert len(ask(about(url_part(PNG)), vllm_config=config(folder, max_model_len=CODES + 3 + len(ASKED))))
    with pytest.raises(VLLMValidationError, match=f"{CODES + 3 + len(ASKED)} input tokens"):
        ask(about(url_part(PNG)), vllm_config=config(folder, max_model_len=CODES + 2 + len(ASKED)))


def test_who_reads_no_pictures_says_so(ask: Ask, folder, tmp_path):
    with pytest.raises(NotImplementedError, match="image_tokenizer"):
        ask(about(url_part(PNG)), magvit=None)
    with pytest.raises(ValueError, match="image_url='a picture': here is no engine"):
        ask(about(url_part(PNG)), engine=None)
    write_llada(tmp_path / "text")
    with pytest.raises(ValueError, match="image_url='a picture': this model reads text only"):
        ask(about(url_part(PNG)), vllm_config=config(tmp_path / "text"))
    write_mmada(tmp_path / "writes")
    stated = json.loads((tmp_path / "writes/config.json").read_text())
    (tmp_path / "writes/config.json").write_text(json.dumps(stated | {"mmu_token_id": None}))
    with pytest.raises(ValueError, match="image_url='a picture': this model reads text only"):
        ask(about(url_part(PNG)), vllm_config=config(tmp_path / "writes"))


# The library.


def test_the_librarys_prompt_is_the_same(folder, magvit, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    sampler = InfoGainSampler(write_mmada(tmp_path), tokenizer)
    shown = picture(40, 24)
    due = published(codes_of(magvit, middle_square(shown, SIDE)), ASKED)
    assert reading_prompt(sampler, shown, QUESTION, tokenizer=magvit) == due
    assert reading_prompt(sampler, shown, [{"role": "user", "content": QUESTION}], tokenizer=magvit) == due
    text_only = InfoGainSampler(write_llada(tmp_path), tokenizer)
    with pytest.raises(ParameterError, match="text only"):
        reading_prompt(text_only, shown, QUESTION, tokenizer=magvit)
