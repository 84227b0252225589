"""Every route of the server: its body is checked before it is served, and its response waits for the checks.

Why: vLLM passes over names it does not know, such as `guided_json` or a decoding parameter beside `vllm_xargs` instead
    of in it; some endpoints even over `stream`. And what is checked when the engine is asked, see `admission_check`,
    may take a second, in a thread: a stream must not begin before.
How: wrap `build_app` as the API server calls it. Every POST route of the finished app has its endpoint wrapped, whoever
    added it: no list of endpoints is kept. `vllm run-batch` and Ray Serve have no such app; for them what makes a chat
    or a completion is wrapped too: a request keeps the names that it does not know. Where the scheduler is not ours
    nothing is checked.
Upstream: none; FastAPI takes dependencies for a whole app, but only while it is made, and they end before the endpoint.
Remove when: vLLM refuses unknown names, and checks constraints beside the event loop.
"""

from functools import partial
from typing import Any, get_args

from vllm_infogain.patches import of_server, wrap_once


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.api_server_entry, "build_app", _with_checked_routes)
    wrap_once(compat.OpenAIServingChat, "create_chat_completion", _checked_request, of_server)
    wrap_once(compat.OpenAIServingCompletion, "create_completion", _checked_request, of_server)


def _with_checked_routes(build_app):
    def wrapper(*args, **kwargs):
        app = build_app(*args, **kwargs)
        for route in post_routes(app):
            wrap_once(
                route.dependant,
                "call",
                partial(_checked, route),
                partial(_config_of, route.dependant.request_param_name),
            )
        return app

    return wrapper


def post_routes(app) -> list[Any]:
    """Those that take a body."""
    return [route for route in app.routes if hasattr(route, "dependant") and "POST" in route.methods]


def _config_of(request_name, **values):
    """Of the engine that a route's endpoint serves; None where it serves none."""
    request = values.get(request_name)
    engine = None if request is None else getattr(request.app.state, "engine_client", None)
    return None if engine is None else engine.vllm_config


def _checked(route, endpoint):
    async def wrapper(**values):
        from vllm_infogain.serving.checking import after_checks

        await _check_names(route, values[route.dependant.request_param_name])
        return await after_checks(partial(endpoint, **values))

    return wrapper


async def _check_names(route, request) -> None:
    from vllm_infogain.serving.admission import SAMPLING_DEFAULTS, refusing
    from vllm_infogain.serving.bodies import check_body, check_sampling_body

    fields = known_fields(route)
    if not fields:
        return
    body = await request.json()  # read before, and kept
    if isinstance(body, dict):
        with refusing():
            check_body(body, fields, SAMPLING_DEFAULTS)
            if isinstance(given := body.get("sampling_params"), dict):
                check_sampling_body(given, SAMPLING_DEFAULTS)


def _checked_request(create):
    async def wrapper(self, request, *args, **kwargs):
        from vllm_infogain.serving.admission import SAMPLING_DEFAULTS, refusing
        from vllm_infogain.serving.bodies import check_body
        from vllm_infogain.serving.checking import after_checks

        given = {name: getattr(request, name) for name in request.model_fields_set}
        with refusing():
            check_body(given, type(request).model_fields, SAMPLING_DEFAULTS)
        return await after_checks(partial(create, self, request, *args, **kwargs))

    return wrapper


def known_fields(route) -> frozenset[str]:
    """Names that an endpoint's body may have; none if it has no body of named fields."""
    from vllm_infogain import compat

    if route.body_field is None:
        # Amazon's name for completions and chats: which of them a body is, is found out by the endpoint.
        models: tuple = ()
        if route.path == "/invocations":
            models = (compat.CompletionRequest, compat.ChatCompletionRequest)
    else:
        annotation = route.body_field.field_info.annotation
        models = get_args(annotation) or (annotation,)
    names = {
        name
        for model in models
        for field, info in getattr(model, "model_fields", {}).items()
        for name in (field, info.alias)
        if name
    }
    if compat.BatchChatCompletionRequest in models:  # the names that it does not know are its chats'
        names |= compat.ChatCompletionRequest.model_fields.keys() - {"stream"}
    return frozenset(names)
