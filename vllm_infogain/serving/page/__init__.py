"""A page at `/infogain` that shows two samplers filling one canvas, side by side, from the server's own stream.

Group `vllm.endpoint_plugins`: vLLM loads it only where `VLLM_PLUGINS` names `infogain_page`. The page talks to
`/v1/completions` like any client; these routes hand out files and the samplers' names, and never reach the engine.
"""

from argparse import Namespace
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response

from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.params import SAMPLERS, parse_params

ROUTE = "/infogain"
FILES = {  # route: file in this folder, media type
    ROUTE: ("index.html", "text/html"),
    f"{ROUTE}/page.css": ("page.css", "text/css"),
    f"{ROUTE}/page.js": ("page.js", "text/javascript"),
    f"{ROUTE}/api.js": ("api.js", "text/javascript"),
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


class Page:
    """An `EndpointPlugin` of vLLM, by its protocol."""

    name = "infogain_page"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        for route, (name, media_type) in FILES.items():
            app.add_api_route(route, sender(name, media_type), methods=["GET"], include_in_schema=False)
        app.add_api_route(f"{ROUTE}/samplers", samplers, methods=["GET"], include_in_schema=False)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Nothing: the page needs no engine."""


def sender(name: str, media_type: str) -> Any:
    """A route's function that answers with one file of this folder, read once."""
    content = (Path(__file__).parent / name).read_bytes()

    async def send() -> Response:
        return Response(content, media_type=media_type, headers=HEADERS)

    return send


async def samplers() -> Response:
    """`{"samplers": [{"name": ..., "streams_canvas": ...}]}`, in the order of `SAMPLERS`."""
    known = [{"name": name, "streams_canvas": streams_canvas(name)} for name in SAMPLERS]
    return JSONResponse({"samplers": known}, headers=HEADERS)


def streams_canvas(sampler: str) -> bool:
    """Whether a request may ask for every step while it runs; what admission says, asked of admission's own check."""
    knobs = {"sampler": sampler, "stream_mode": "canvas"}
    try:
        parse_params(knobs, defaults={}, temperature=0.0, canvas_length=1)
    except ParameterError:
        return False
    return True
