"""The routes of pictures before an engine that says what a test has it say: responses, streams, and what is refused."""

import asyncio
import base64
import io
import json
from argparse import Namespace
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from PIL import Image
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.middleware.authenticate import AuthenticationMiddleware
from vllm.plugins import load_endpoint_plugins
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin

from vllm_infogain.images.canvas import UNKNOWN
from vllm_infogain.serving.images import EDITS, GENERATIONS, LARGEST_FORM, Pictures
from vllm_infogain.serving.progress import Progress

SIDE, CODES, OFFSET, MASK = 4, 4, 100, 99
CONFIG = {
    "codebook_size": 8, "image_token_offset": OFFSET, "image_codes_per_side": 2, "bos_token_id": 1, "eos_token_id": 2,
    "soi_token_id": 3, "eoi_token_id": 4, "t2i_token_id": 5, "mask_token_id": MASK,
}  # fmt: skip
ORDER = (2, 0, 3, 1)  # in which the engine writes codes


class FakeConfig:
    additional_config: dict[str, Any] = {}
    model_config: Any


class FakeEngine:
    """Writes the code of each place's own number, a place per step; a token of a text is its character's number."""

    def __init__(self, ends_early: bool = False, side: int | None = SIDE, **config: Any) -> None:
        self.vllm_config = FakeConfig()  # one that settings can be remembered by
        hf_config = SimpleNamespace(**(CONFIG | config))
        self.vllm_config.model_config = SimpleNamespace(hf_config=hf_config, max_model_len=20)
        self.renderer = self
        self.default_cmpl_tok_params = SimpleNamespace(with_kwargs=lambda **_: None)
        self.ends_early, self.side = ends_early, side
        self.asked: list[tuple[Any, Any]] = []

    async def render_cmpl_async(self, prompts, _):
        return [{"prompt_token_ids": [ord(character) - 90 for character in prompt["prompt"]]} for prompt in prompts]

    async def collective_rpc(self, method, args=()):
        answers = {
            "picture_side": lambda: self.side,
            # Every pixel of the first row says a code: 0 is UNKNOWN, 1 code 0.
            "decode_images": lambda codes: bytes(3 * [code + 1 for code in codes[0]] + [0] * (3 * SIDE * SIDE - 12)),
            "encode_images": lambda _: [7, 6, 5, 4],
        }
        return [None, answers[method](*args)]

    def generate(self, prompt, params, request_id):
        self.asked.append((prompt["prompt_token_ids"], params))
        return self._outputs(params)

    async def _outputs(self, params):
        seed = params.extra_args.get("diffusion_seed_canvas", [MASK] * CODES)
        tokens = [OFFSET + place if seed[place] == MASK else seed[place] for place in range(CODES)]
        progress = Progress()
        for place in (place for place in ORDER if seed[place] == MASK):
            steps = [{"positions": [place], "tokens": [tokens[place]]}]
            progress.update({"report": {"steps": 4}, "steps": steps})
            yield SimpleNamespace(outputs=[SimpleNamespace(index=0, token_ids=[], infogain=progress)])
            await asyncio.sleep(0)
        written = tokens[:2] if self.ends_early else tokens
        yield SimpleNamespace(outputs=[
            SimpleNamespace(index=index, token_ids=written, infogain=progress) for index in reversed(range(params.n))
        ])  # fmt: skip


def app_of(engine: FakeEngine) -> FastAPI:
    app = FastAPI()
    app.state.args = Namespace(log_error_stack=False)
    app.state.engine_client = engine
    app.state.openai_serving_models = SimpleNamespace(is_base_model="tiny".__eq__)
    Pictures().attach_router(app)
    init_exception_handler(app)
    return app


def post(engine: FakeEngine, path: str = GENERATIONS, **request: Any) -> httpx.Response:
    async def answer() -> httpx.Response:
        transport = httpx.ASGITransport(app_of(engine), raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
            return await http.post(path, **request)

    return asyncio.run(answer())


def codes_of(b64_json: str) -> list[int]:
    picture = Image.open(io.BytesIO(base64.b64decode(b64_json)))
    return [value - 1 for value in picture.convert("RGB").tobytes()[:CODES]]


def events_of(response: httpx.Response) -> list[tuple[str, dict[str, Any]]]:
    assert response.headers["content-type"].startswith("text/event-stream")
    parts = (event.split("\n") for event in response.text.strip().split("\n\n"))
    return [(kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for kind, data in parts]


def picture_file(mode: str = "RGB", transparent: tuple[int, int] | None = None) -> bytes:
    picture, file = Image.new(mode, (SIDE, SIDE), "white"), io.BytesIO()
    if transparent is not None:
        picture.putpixel(transparent, (0, 0, 0, 0))
    picture.save(file, "png")
    return file.getvalue()


def test_vllm_finds_the_plugin_where_it_is_named(monkeypatch):
    monkeypatch.setenv("VLLM_PLUGINS", "infogain,infogain_images")
    (plugin,) = load_endpoint_plugins(("generate",))
    assert isinstance(plugin, Pictures)
    assert isinstance(plugin, EndpointPlugin)


def test_a_response_has_every_sample_its_report_and_the_tokens_used():
    engine = FakeEngine()
    answer = post(engine, json={"prompt": "ab", "model": "tiny", "n": 3, "seed": 7}).json()
    assert [codes_of(one["b64_json"]) for one in answer["data"]] == [[0, 1, 2, 3]] * 3
    assert [one["infogain"] for one in answer["data"]] == [{"steps": 4}] * 3
    assert (answer["size"], answer["output_format"], answer["background"]) == ("4x4", "png", "opaque")
    usage = answer["usage"]
    assert (usage["input_tokens"], usage["output_tokens"], usage["total_tokens"]) == (6, 12, 18)
    ((prompt, params),) = engine.asked
    assert prompt == [5, 1, 7, 8, 2, 3]
    assert (params.n, params.seed, params.max_tokens, params.detokenize) == (3, 7, CODES, False)
    assert params.extra_args == {"image": True}


def test_what_a_request_says_reaches_the_engine():
    engine = FakeEngine()
    body = {"prompt": "a", "temperature": 1, "top_p": 0.5, "guidance_scale": 2, "num_inference_steps": 3,
            "negative_prompt": "b", "vllm_xargs": {"sampler": "entropy"}}  # fmt: skip
    assert post(engine, json=body).status_code == 200
    assert post(engine, json={"prompt": "a", "negative_prompt": "", "guidance_scale": 1}).status_code == 200
    (_, params), (_, plain) = engine.asked
    assert params.extra_args == {
        "sampler": "entropy", "guidance_scale": 2.0, "steps": 3, "image": True, "guidance_prompt_ids": [5, 1, 8, 2, 3]
    }  # fmt: skip
    assert (params.temperature, params.top_p) == (1.0, 0.5)
    assert plain.extra_args["guidance_prompt_ids"] == [5, 1, 2, 3], "nothing in particular"
    assert plain.temperature == 0.4


def test_a_stream_shows_the_picture_half_filled_and_then_whole():
    (*looks, last) = events_of(post(FakeEngine(), json={"prompt": "a", "stream": True, "partial_images": 3}))
    assert [kind for kind, _ in looks] == ["image_generation.partial_image"] * 3
    assert [(fields["partial_image_index"], fields["infogain_step"]) for _, fields in looks] == [(0, 1), (1, 2), (2, 3)]
    assert [codes_of(fields["b64_json"]) for _, fields in looks] == [
        [UNKNOWN, UNKNOWN, 2, UNKNOWN], [0, UNKNOWN, 2, UNKNOWN], [0, UNKNOWN, 2, 3]
    ]  # fmt: skip
    kind, fields = last
    assert kind == fields["type"] == "image_generation.completed"
    assert codes_of(fields["b64_json"]) == [0, 1, 2, 3]
    assert fields["usage"]["output_tokens"] == CODES
    assert fields["infogain"] == {"steps": 4}
    for _, one in (*looks, last):
        assert {"size": "4x4", "quality": "auto", "background": "opaque", "output_format": "png"}.items() <= one.items()


def test_a_stream_without_partial_pictures_is_the_whole_one():
    engine = FakeEngine()
    ((kind, fields),) = events_of(post(engine, json={"prompt": "a", "stream": True, "output_format": "webp"}))
    assert (kind, fields["output_format"]) == ("image_generation.completed", "webp")
    assert "stream_mode" not in engine.asked[0][1].extra_args


def test_a_request_that_is_ended_early_has_no_picture_and_says_why():
    response = post(FakeEngine(ends_early=True), json={"prompt": "a"})
    assert response.status_code == 503
    assert "request_timeout" in response.json()["error"]["message"]
    *_, (kind, fields) = events_of(post(FakeEngine(ends_early=True), json={"prompt": "a", "stream": True}))
    assert kind == "error"
    assert "request_timeout" in fields["error"]["message"]


@pytest.mark.parametrize(("engine", "said"), [
    (FakeEngine(codebook_size=None), "writes text only"), (FakeEngine(side=None), "image_tokenizer"),
])  # fmt: skip
def test_an_engine_that_makes_no_pictures_says_what_it_lacks(engine, said):
    for request in ({"json": {"prompt": "a"}}, {"path": EDITS, "files": {"image": picture_file()}}):
        response = post(engine, **request)
        assert response.status_code == 501
        assert said in response.json()["error"]["message"]


REFUSED = {
    "size": {"size": "1024x1024"},
    "output_format": {"output_format": "gif"},
    "n": {"n": 11},
    "style": {"style": "vivid"},
    "partial_images": {"partial_images": 4, "stream": True},
    "prompt": {"prompt": "a" * 12},
    "negative_prompt": {"negative_prompt": "a" * 12, "guidance_scale": 1},
    "guidance_scale": {"guidance_scale": -1},
}
UNGUIDED = {"negative_prompt": "b"}, {"negative_prompt": "b", "guidance_scale": 0}


@pytest.mark.parametrize("named", REFUSED)
def test_a_refusal_names_the_field_and_nothing_is_asked_of_the_engine(named):
    engine = FakeEngine()
    response = post(engine, json={"prompt": "a"} | REFUSED[named])
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == named
    assert error["message"].startswith(named)
    assert engine.asked == []


@pytest.mark.parametrize("fields", UNGUIDED)
def test_a_negative_prompt_without_guidance_is_refused(fields):
    error = post(FakeEngine(), json={"prompt": "a"} | fields).json()["error"]
    assert (error["param"], "guidance_scale" in error["message"]) == ("negative_prompt", True)


def test_a_prompt_holds_as_much_text_as_fits_beside_a_picture_and_is_not_cut():
    assert post(FakeEngine(), json={"prompt": "a" * 11}).status_code == 200  # of 20: 5 around it, 4 codes
    assert "at most 11" in post(FakeEngine(), json={"prompt": "a" * 12}).json()["error"]["message"]


def test_a_mask_token_in_a_prompt_is_refused():
    assert "mask token" in post(FakeEngine(), json={"prompt": chr(MASK + 90)}).json()["error"]["message"]


def test_pictures_are_behind_the_api_key():
    async def answer(path: str) -> httpx.Response:
        guarded = AuthenticationMiddleware(app_of(FakeEngine()), tokens=["a-key"])
        async with httpx.AsyncClient(transport=httpx.ASGITransport(guarded), base_url="http://server") as http:
            return await http.post(path, json={"prompt": "a"})

    for path in (GENERATIONS, EDITS):
        assert asyncio.run(answer(path)).status_code == 401


def test_another_model_is_not_found():
    assert post(FakeEngine(), json={"prompt": "a", "model": "other"}).status_code == 404


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"3"])
def test_a_body_that_is_no_object_of_fields_is_refused(content):
    response = post(FakeEngine(), content=content, headers={"content-type": "application/json"})
    assert response.status_code == 400, response.text


# Edits.


def test_an_edit_keeps_the_codes_that_its_mask_covers():
    engine = FakeEngine()
    files = {"image": picture_file(), "mask": picture_file("RGBA", transparent=(3, 0))}
    answer = post(engine, EDITS, files=files, data={"prompt": "a", "vllm_xargs[sampler]": "entropy"})
    assert answer.status_code == 200, answer.text
    ((_, params),) = engine.asked
    assert params.extra_args["diffusion_seed_canvas"] == [107, MASK, 105, 104]
    assert params.extra_args["sampler"] == "entropy"
    assert codes_of(answer.json()["data"][0]["b64_json"]) == [7, 1, 5, 4]
    details = answer.json()["usage"]["input_tokens_details"]
    assert details == {"text_tokens": 5, "image_tokens": 3}


def test_without_a_mask_the_picture_is_drawn_anew_where_it_is_transparent():
    engine = FakeEngine()
    files = {"image": picture_file("RGBA", transparent=(0, 3))}
    assert post(engine, EDITS, files=files, data={"prompt": "a"}).status_code == 200
    assert engine.asked[0][1].extra_args["diffusion_seed_canvas"] == [107, 106, MASK, 104]


def test_an_edits_events_have_names_of_their_own():
    files = {"image[]": picture_file("RGBA", transparent=(0, 3))}
    data = {"prompt": "a", "stream": "true", "partial_images": "1"}
    events = events_of(post(FakeEngine(), EDITS, files=files, data=data))
    assert [kind for kind, _ in events] == ["image_edit.completed"], "one code is drawn: nothing is half done"


@pytest.mark.parametrize(("request_", "named"), [
    ({"files": {"mask": picture_file("RGBA", (0, 0))}, "data": {"prompt": "a"}}, "image"),
    ({"files": {"image": picture_file()}, "data": {"prompt": "a"}}, "image"),
    ({"files": {"image": picture_file(), "mask": b"no picture"}, "data": {"prompt": "a"}}, "mask"),
    ({"files": [("image[]", picture_file()), ("image[]", picture_file())], "data": {"prompt": "a"}}, "image[]"),
    ({"files": {"image": picture_file(), "other": b""}, "data": {"prompt": "a"}}, "other"),
    ({"files": {"image": picture_file()}, "data": {"prompt": "a", "n": "many"}}, "n"),
    ({"data": {"prompt": "a"}}, "content-type"),
    ({"json": {"prompt": "a"}}, "content-type"),
    ({"content": b"", "headers": {"content-length": str(LARGEST_FORM + 1)}}, "content-length"),
])  # fmt: skip
def test_an_edit_that_cannot_be_read_is_refused(request_, named):
    response = post(FakeEngine(), EDITS, **request_)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == named
