"""Every route of the server's app: none passes over what it cannot honour. No engine runs: that is asked after."""

import asyncio
from types import SimpleNamespace

import httpx
import pytest
from routes import BODIES, RENDERING, routes_with_parameters
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm_infogain.patches.route_check import known_fields, post_routes

from vllm_infogain import plugin
from vllm_infogain.compat import (
    ChatCompletionRequest,
    CompletionRequest,
    OpenAIServingChat,
    OpenAIServingCompletion,
    api_server_entry,
)
from vllm_infogain.engine import identity
from vllm_infogain.request.params import PARSERS
from vllm_infogain.request.settings import SETTINGS
from vllm_infogain.serving.admission import RequestError

EVERY_ROUTE = BODIES | RENDERING
MISPLACED = {
    "sampler": "ar",
    "tokens_per_step": 2,
    "num_candidate": 2,
    "extra_args": {"sampler": "ar"},
    "extra_body": {"vllm_xargs": {"sampler": "ar"}},
    "best_of": 2,
    "guided_regex": "a",
    "request_timeout": 3,
}


def model_config(architecture: str) -> SimpleNamespace:
    return SimpleNamespace(architectures=[architecture], get_pooling_task=lambda _: None)


@pytest.fixture(scope="module")
def app():
    """As the API server builds it; of its engine it knows that our scheduler is its."""
    plugin.register()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(["--enable-scale-out"])
    app = api_server_entry.build_app(args, ("generate",), model_config("MMadaModelLM"))
    ours = SimpleNamespace(scheduler_config=SimpleNamespace(scheduler_cls=identity.SCHEDULER))
    app.state.engine_client = SimpleNamespace(vllm_config=ours)
    return app


def refusal(app, path: str, body: dict) -> str:
    """The message of HTTP 400."""

    async def post() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://server") as http:
            return await http.post(path, json={"model": "tiny"} | body)

    answer = asyncio.run(post())
    assert answer.status_code == 400, answer.text
    return answer.json()["error"]["message"]


def test_every_post_route_of_the_server_is_checked(app):
    routes = {route.path: route for route in app.routes if "POST" in (getattr(route, "methods", None) or ())}
    assert {"/v1/completions", "/v1/messages", "/inference/v1/generate", "/invocations"} <= routes.keys()
    assert {"/v1/images/generations", "/v1/images/edits"} <= routes.keys()
    for path, route in routes.items():
        assert route.dependant.call._wrapped_by_infogain, path
        assert route.dependant.request_param_name, f"{path} cannot be checked: it does not see its request"
        takes_names = route.body_field is not None or path == "/invocations"
        assert bool(known_fields(route)) == takes_names, path


@pytest.mark.parametrize("model", [None, "LlamaForCausalLM"])
def test_a_server_of_another_model_has_no_routes_of_pictures(model):
    plugin.register()
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    paths = {
        getattr(route, "path", "")
        for route in api_server_entry.build_app(args, ("generate",), model and model_config(model)).routes
    }
    assert "/v1/completions" in paths
    assert not {path for path in paths if path.startswith("/v1/images")}


def test_the_names_of_a_body_are_those_of_its_model(app):
    known = {route.path: known_fields(route) for route in post_routes(app)}
    assert "structured_outputs" in known["/v1/completions"]
    assert "structured_outputs" not in known["/v1/messages"]
    assert {"prompt", "messages"} <= known["/invocations"], "a completion or a chat"
    assert "vllm_xargs" in known["/v1/chat/completions/batch"], "what it does not know goes to its chats"
    assert "stream" not in known["/v1/chat/completions/batch"]
    assert {"prompt", "messages"} <= known["/tokenize"], "one of two models"
    for path, names in known.items():
        assert not names & (PARSERS.keys() | SETTINGS.keys()), f"{path} has a field of the name of a parameter of ours"


def test_no_route_that_takes_decoding_parameters_is_missing_here(app):
    found = routes_with_parameters(app.openapi())
    assert found | {"/invocations"} == set(EVERY_ROUTE), "a route that these tests do not know"


@pytest.mark.parametrize("path", EVERY_ROUTE)
def test_no_route_passes_over_a_name_of_ours(app, path):
    for name, value in MISPLACED.items():
        assert refusal(app, path, EVERY_ROUTE[path] | {name: value}).startswith(f"{name}="), name


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("/v1/chat/completions/batch", {"stream": True}, "stream"),
        ("/v1/messages", {"seed": 4}, "seed"),
        ("/v1/messages", {"structured_outputs": {"regex": "a"}}, "structured_outputs"),
        ("/v1/responses", {"max_tokens": 4}, "max_tokens"),
        ("/v1/completions", {"max_completion_tokens": 4}, "max_completion_tokens"),
        ("/inference/v1/generate", {"sampling_params": {"sampler": "ar"}}, "sampling_params.sampler"),
    ],
)
def test_a_route_does_not_pass_over_what_it_cannot_do(app, path, fields, name):
    assert refusal(app, path, BODIES[path] | fields).startswith(f"{name}=")


# What comes by no route: `vllm run-batch` and Ray Serve ask the endpoints' servers themselves.


@pytest.mark.parametrize("name", MISPLACED)
def test_what_is_asked_without_a_route_is_checked_too(app, name):
    serving = SimpleNamespace(engine_client=app.state.engine_client)
    given = {name: MISPLACED[name]}
    with pytest.raises(RequestError, match=name):
        asyncio.run(OpenAIServingChat.create_chat_completion(serving, ChatCompletionRequest(messages=[], **given)))
    with pytest.raises(RequestError, match=name):
        asyncio.run(OpenAIServingCompletion.create_completion(serving, CompletionRequest(prompt="1", **given)))
