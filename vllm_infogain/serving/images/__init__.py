"""`/v1/images/generations` and `/v1/images/edits`, as OpenAI's client asks for pictures, of models that write them.

Group `vllm.endpoint_plugins`: `infogain_images`. `patches/image_routes.py` adds the routes to every server of our
models, where vLLM would wait for `VLLM_PLUGINS` to name the plugin. Runs in the API server's process. A request for
pictures becomes one of the engine's, whose canvas is the codes of a picture; the worker makes pixels of them, and a
thread a file.
"""

from argparse import Namespace
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Request
from fastapi.responses import Response, StreamingResponse

from vllm_infogain.compat import load_aware_call, validate_json_request, with_cancellation, with_sse_keep_alive
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.serving.admission import refusing
from vllm_infogain.serving.images.fields import PictureRequest, form_body, picture_request
from vllm_infogain.serving.images.generation import Asked, PictureServer, picture_server

GENERATIONS, EDITS = "/v1/images/generations", "/v1/images/edits"
LARGEST_FORM = 50 << 20  # bytes, as at OpenAI
FILES = ("image", "mask")


class Pictures:
    """An `EndpointPlugin` of vLLM, by its protocol."""

    name = "infogain_images"
    required_tasks = ("generate",)

    def attach_router(self, app: FastAPI) -> None:
        needs_json = [Depends(validate_json_request)]
        app.add_api_route(GENERATIONS, generations, methods=["POST"], dependencies=needs_json, response_model=None)
        app.add_api_route(EDITS, edits, methods=["POST"], response_model=None)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Nothing: the engine is asked about its pictures when the first are."""


# A body is read before the response is waited for: from then on vLLM listens for a client that leaves.


async def json_body(raw_request: Request) -> Any:
    with refusing():
        try:
            return await raw_request.json()
        except (ValueError, RecursionError) as error:
            raise ParameterError("body", f"{len(await raw_request.body())} bytes", f"no JSON: {error}") from None


async def form(raw_request: Request) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A form's fields, and its files by name."""
    with refusing():
        length = raw_request.headers.get("content-length", "")
        if not length.isdecimal() or int(length) > LARGEST_FORM:
            raise ParameterError("content-length", length, f"a form says its length, at most {LARGEST_FORM} bytes")
        if not raw_request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise ParameterError("content-type", raw_request.headers.get("content-type"), "give multipart/form-data")
        fields, files = [], {}
        for name, value in (await raw_request.form()).multi_items():
            if isinstance(value, str):
                fields.append((name, value))
            elif (plain := name.removesuffix("[]")) in FILES and plain not in files:
                files[plain] = await value.read()
            else:
                raise ParameterError(name, value.filename, "give one image and one mask")
        if "image" not in files:
            raise ParameterError("image", None, "give the picture to edit, as a file")
        return form_body(fields), files


@with_cancellation
@load_aware_call
async def generations(body: Annotated[Any, Depends(json_body)], raw_request: Request) -> Response:
    server = await picture_server(raw_request.app.state)
    with refusing():
        request = picture_request(body)
    return await _respond(server, request, await server.asked(request), raw_request)


@with_cancellation
@load_aware_call
async def edits(given: Annotated[Any, Depends(form)], raw_request: Request) -> Response:
    server = await picture_server(raw_request.app.state)
    body, files = given
    with refusing():
        request = picture_request(body)
    return await _respond(server, request, await server.asked(request, **files), raw_request)


async def _respond(server: PictureServer, request: PictureRequest, asked: Asked, raw_request: Request) -> Response:
    outputs = server.outputs(asked, raw_request.headers.get("X-Request-Id"))  # refuses what cannot be served
    if not request.stream:
        return Response(await server.answer(request, asked, outputs), media_type="application/json")
    interval = float(getattr(raw_request.app.state.args, "sse_keep_alive_interval", 0))
    lines = with_sse_keep_alive(server.events(request, asked, outputs), interval)
    return StreamingResponse(lines, media_type="text/event-stream")
