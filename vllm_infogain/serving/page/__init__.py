"""A page at `/infogain` that shows two samplers filling one canvas, side by side, from the server's own stream.

Group `vllm.endpoint_plugins`: vLLM loads it only where `VLLM_PLUGINS` names `infogain_page`. The page talks to
`/v1/completions` like any client; these routes hand out files, say what the samplers are and judge the answer to a
puzzle. They never reach the engine.
"""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.request.params import READERS, SAMPLERS, parse_params
from vllm_infogain.serving.page.puzzles import is_solved

ROUTE = "/infogain"
MEDIA_TYPES = {"html": "text/html", "css": "text/css", "js": "text/javascript", "json": "application/json"}
SCRIPTS = ("page.js", "api.js", "canvas.js", "charts.js", "form.js", "picture.js", "playback.js")
FILES = {  # route: file in this folder
    ROUTE: "index.html",
    **{f"{ROUTE}/{name}": name for name in ("page.css", *SCRIPTS, "recorded.json")},
}
POLICY = (
    # Nothing but the page's own files, and requests to this server only. Text of a model can be anything: with trusted
    # types the browser refuses whatever would read it as HTML.
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
LONGEST_CHECK = 4096  # bytes of a request to judge an answer; no puzzle has half as many
SAMPLER_LINES = {  # what each is, for a reader who has not met it
    "info_gain": "compares N next steps: what each takes from the rest's uncertainty, less its own.",
    "lookum": "compares N next steps by the uncertainty that each leaves, whatever its own.",
    "adaptive": "writes all sure places at once, and compares N next steps where no place is sure.",
    "beam": "keeps several Info-Gain runs and returns that of the lowest total entropy.",
    "entropy": "writes where the entropy is lowest, without look-ahead.",
    "confidence": "writes where its token is most probable, without look-ahead.",
    "margin": "writes where the two best tokens lie furthest apart, without look-ahead.",
    "uniform": "writes at random places.",
    "ar": "writes from left to right.",
    "klass": "writes confident places first whose distribution has stopped to move.",
    "pc": "writes confident places of rare tokens first, and those near the start.",
    "maskgit": "writes confident places first, with less and less chance in it.",
    "eb": "writes as many places per step as a bound on their entropies allows.",
    "threshold": "writes all places per step that are surer than a threshold.",
    "factor": "writes more places per step the surer they are.",
    "best_of_n": "makes several whole answers and returns that of the lowest total entropy.",
}


class Page:
    """An `EndpointPlugin` of vLLM, by its protocol."""

    name = "infogain_page"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        for route, name in FILES.items():
            app.add_api_route(route, sender(name), methods=["GET"], include_in_schema=False)
        app.add_api_route(f"{ROUTE}/samplers", samplers, methods=["GET"], include_in_schema=False)
        app.add_api_route(f"{ROUTE}/check", check, methods=["POST"], include_in_schema=False)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Nothing: the page needs no engine."""


def sender(name: str) -> Any:
    """A route's function that answers with one file of this folder, read once."""
    content = (Path(__file__).parent / name).read_bytes()
    media_type = MEDIA_TYPES[name.rpartition(".")[2]]

    async def send() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return send


async def samplers(request: Request) -> Response:
    """`{"samplers": [{"name", "line", "knobs": names of its parameters, "streams_canvas"}], "writes_pictures"}`, the
    samplers as in `SAMPLERS`."""
    known = [
        {
            "name": name,
            "line": SAMPLER_LINES[name],
            "knobs": [knob for knob, readers in READERS.items() if name in readers],
            "streams_canvas": streams_canvas(name),
        }
        for name in SAMPLERS
    ]
    return JSONResponse({"samplers": known, "writes_pictures": writes_pictures(request.app.state)}, headers=HEADERS)


def writes_pictures(state: Any) -> bool:
    """Whether a server's model does."""
    engine = getattr(state, "engine_client", None)
    return engine is not None and ImageTokens.of(engine.vllm_config.model_config.hf_config) is not None


def streams_canvas(sampler: str) -> bool:
    """Whether a request may ask for every step while it runs; what admission says, asked of admission's own check."""
    knobs = {"sampler": sampler, "stream_mode": "canvas"}
    try:
        parse_params(knobs, defaults={}, temperature=0.0, canvas_length=1)
    except ParameterError:
        return False
    return True


async def check(request: Request) -> Response:
    """Of `{"prompt", "text"}`: `{"solved": true, false, or null where the prompt is no puzzle of the embedded model}`.

    It asks for no key, as the page's files do not, so it reads no more than a puzzle needs.
    """
    length = request.headers.get("content-length")
    if length is None or int(length) > LONGEST_CHECK:
        return JSONResponse({"solved": None}, headers=HEADERS)
    try:
        body = json.loads(await request.body())
        prompt, text = str(body["prompt"]), str(body["text"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return JSONResponse({"error": {"message": "give prompt and text"}}, status_code=400, headers=HEADERS)
    return JSONResponse({"solved": is_solved(prompt, text)}, headers=HEADERS)
