"""Tools and response formats: the constraint that the fields of a request ask for; what is refused, by its field."""

import json
import random

import jsonschema
import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.parser.parser_manager import ParserManager
from vllm.v1.structured_output.backend_types import StructuredOutputOptions
from vllm_infogain.patches.tool_calls import parser_of_ours

from vllm_infogain import ParameterError
from vllm_infogain.embedded.tokenizer import EOS, VOCAB, build_tokenizer
from vllm_infogain.grammar.automaton import allowed
from vllm_infogain.grammar.backend import ModelTokens, automaton_of, pattern_of
from vllm_infogain.grammar.token_dfa import Spelling
from vllm_infogain.grammar.vocabulary import text_tokens
from vllm_infogain.serving.admission import RequestError
from vllm_infogain.serving.tools import asked_by, check_calls, check_tools

TOKENIZER = PreTrainedTokenizerFast(tokenizer_object=build_tokenizer(), eos_token=EOS)
PLACE = {"type": "object", "properties": {"$ref": {"$ref": "#/$defs/n"}}, "required": ["$ref"]}
FUNCTIONS = [
    {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}},
    {"name": "find", "parameters": PLACE | {"$defs": {"n": {"enum": ["x", 1]}}}},
    {"name": "stop"},
]
NAMED = {"type": "function", "function": {"name": "add"}}
FORMAT = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "null"}}}


def chat(**fields) -> ChatCompletionRequest:
    tools = [{"type": "function", "function": function} for function in fields.pop("functions", FUNCTIONS)]
    return ChatCompletionRequest(messages=[{"role": "user", "content": "?"}], **({"tools": tools} | fields))


def response(**fields) -> ResponsesRequest:
    tools = [{"type": "function", **function} for function in fields.pop("functions", FUNCTIONS[:2])]
    return ResponsesRequest(input="?", **({"tools": tools} | fields))


def parsed_by(name: str, request):
    """A request as the parser of calls of a server of ours leaves it."""
    parser = parser_of_ours(ParserManager.get_parser(tool_parser_name=name, enable_auto_tools=True))
    return parser(TOKENIZER, request.tools).adjust_request(request)


@pytest.mark.parametrize("make", [chat, response])
def test_a_forced_call_asks_for_json_of_its_tools_and_goes_by_its_field(make):
    for choice in ("required", NAMED if make is chat else {"type": "function", "name": "add"}):
        request = parsed_by("hermes", make(tool_choice=choice))
        assert request.extract_structured_outputs().json
        assert asked_by(request) == ("tool_choice", "required" if choice == "required" else "add")


def test_whatever_is_written_of_a_forced_call_is_a_call_of_the_tools():
    request = parsed_by("hermes", chat(tool_choice="required", parallel_tool_calls=False))
    schema = request.extract_structured_outputs().json
    tokens = ModelTokens(Spelling.of(text_tokens(TOKENIZER, len(VOCAB)), len(VOCAB)), (VOCAB[EOS],))
    automaton = automaton_of(pattern_of(StructuredOutputOptions.JSON, json.dumps(schema)), tokens)
    called = set()
    for seed in range(8):
        rng, mask = random.Random(seed), VOCAB["<|mask|>"]
        canvas = np.full(60, mask)
        for place in rng.sample(range(60), 60):
            (classes,) = allowed(automaton, canvas[None], mask, np.array([[place]]))[0]
            canvas[place] = rng.choice(np.flatnonzero(classes[automaton.class_of]).tolist())
        (call,) = json.loads(TOKENIZER.decode(canvas[canvas != VOCAB[EOS]]))
        called.add(call["name"])
        (function,) = (function for function in FUNCTIONS if function["name"] == call["name"])
        jsonschema.validate(call["parameters"], function.get("parameters", {"maxProperties": 0}))
    assert len(called) > 1


@pytest.mark.parametrize("choice", ["auto", "none"])
def test_a_call_that_is_not_forced_leaves_the_text_free(choice):
    request = chat(tool_choice=choice)
    assert asked_by(request) is None
    assert parsed_by("hermes", request).extract_structured_outputs() is None
    formatted = parsed_by("hermes", chat(tool_choice=choice, response_format=FORMAT))
    assert formatted.extract_structured_outputs().json == {"type": "null"}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (chat(tool_choice="auto", functions=[FUNCTIONS[0] | {"strict": True}]), r"tools\.strict=True"),
        (response(tool_choice="auto", functions=[FUNCTIONS[0] | {"strict": True}]), r"tools\.strict=True"),
        (chat(tool_choice="required", response_format=FORMAT), "tool_choice='required'.* leave out response_format"),
        (
            chat(tool_choice="required", structured_outputs={"regex": "a"}),
            "tool_choice=.required.*leave out structured_outputs",
        ),
    ],
)
def test_what_no_call_is_held_to_is_refused_by_the_name_of_its_field(request_, message):
    with pytest.raises(ParameterError, match=message):
        check_tools(request_)


def test_strict_tools_may_be_forced():
    check_tools(chat(tool_choice="required", functions=[FUNCTIONS[0] | {"strict": True}]))


def test_calls_are_read_as_json_where_they_are_forced_and_as_the_parser_does_where_not():
    parser = parser_of_ours(ParserManager.get_parser(tool_parser_name="hermes", enable_auto_tools=True))
    texts = {
        "required": '[{"name": "add", "parameters": {"a": 1}}]',
        "auto": '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>',
    }
    for choice, text in texts.items():
        request = chat(tool_choice=choice)
        (call,) = parser(TOKENIZER, request.tools).parse(text, request, enable_auto_tools=True)[2]
        assert (call.name, json.loads(call.arguments)) == ("add", {"a": 1})


def test_a_forced_call_in_a_format_of_the_parsers_own_is_refused(monkeypatch):
    monkeypatch.setattr(ParserManager.get_tool_parser("hermes", True), "engine_based_streaming", True)
    with pytest.raises(RequestError, match="tool_choice='required': the server's tool_call_parser"):
        parsed_by("hermes", chat(tool_choice="required"))
    assert parsed_by("hermes", chat(tool_choice="auto"))


def test_a_server_that_promises_strict_calls_to_all_is_named():
    from vllm.tool_parsers.tool_strict_level import ToolStrictLevel

    with pytest.raises(ParameterError, match="tool_strict_level='parameter'"):
        check_calls(chat(), ToolStrictLevel.PARAMETER)


@pytest.mark.parametrize(
    ("request_", "by"),
    [
        (chat(response_format={"type": "json_object"}), ("response_format", "json_object")),
        (chat(response_format=FORMAT), ("response_format", "json_schema")),
        (chat(structured_outputs={"regex": "a"}), None),
        (response(text={"format": {"type": "json_object"}}), ("text.format", "json_object")),
        (chat(response_format={"type": "text"}), None),
    ],
)
def test_a_constraint_goes_by_the_field_that_asks_for_it(request_, by):
    assert asked_by(request_) == by
