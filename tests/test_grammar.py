"""Structured output: from a constraint to an automaton over the tokens of a model, and what admission refuses."""

import itertools
import json
import random
import re
import threading
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
from engines import MASK_ID
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.structured_output.backend_types import StructuredOutputOptions

from vllm_infogain import ParameterError
from vllm_infogain.embedded.tokenizer import VOCAB, encode
from vllm_infogain.grammar import backend as grammar
from vllm_infogain.grammar import regex as regular
from vllm_infogain.grammar import token_dfa as spelling
from vllm_infogain.grammar.automaton import TokenAutomaton, allowed, is_completable
from vllm_infogain.grammar.backend import CanvasGrammar, ModelTokens, automaton_of, compiled, model_tokens, pattern_of
from vllm_infogain.grammar.token_dfa import Spelling
from vllm_infogain.serving.structured_outputs import check_structured_outputs

END, BLANK = 0, 1
PIECES = ["a", "b", "c", "ab", "bc", "aab", "é", '"', "{", "}", ":", "1", "-", ".", "e+", "ok", "true", " ", "1.5"]
# Of some characters only parts are tokens, as in byte-level vocabularies.
PIECE_OF = dict(enumerate([*(text.encode() for text in PIECES), b"\xe2", b"\x82", b"\xac", b"\x82\xac"], start=2))
TOKENS = ModelTokens(Spelling.of({text: [token] for token, text in PIECE_OF.items()}, 40), (END,))
SCHEMA = {
    "type": "object",
    "properties": {"ok": {"type": "boolean"}, "e": {"type": "number"}, "a": {"enum": ["a", "ab"]}},
    "required": ["ok"],
    "additionalProperties": False,
}


def text_of(canvas) -> str:
    """The canvas as text; end tokens stand at its end only."""
    tokens = list(canvas)
    while tokens and tokens[-1] == END:
        tokens.pop()
    return b"".join(PIECE_OF[token] for token in tokens).decode()


def fits(automaton, tokens) -> bool:
    return is_completable(automaton, np.array(tokens, dtype=int), BLANK)


PATTERNS = [
    "a(bc)?", "a|ab", "(ab|a)(c|bc)*", "[^b]{1,3}", "(a|b)*abb", "a*?b??", "(€|é)+", ".*", '"[^"]*"',
    "-?1(\\.1+)?(e\\+1)?",
    "(|a|ab)c", "(?i)OK( true)?",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("seed", range(5))
def test_random_tokens_at_random_places_always_end_in_a_text_that_matches(pattern, seed):
    rng = random.Random(f"{pattern} {seed}")
    automaton = automaton_of(pattern, TOKENS)
    canvas = np.full(automaton.shortest + rng.randrange(8), BLANK)
    for place in rng.sample(range(len(canvas)), len(canvas)):
        (classes,) = allowed(automaton, canvas[None], BLANK, np.array([[place]]))[0]
        canvas[place] = rng.choice(np.flatnonzero(classes[automaton.class_of]).tolist())
    assert re.fullmatch(pattern, text_of(canvas)), (pattern, text_of(canvas))


@pytest.mark.parametrize("pattern", PATTERNS)
def test_every_text_that_matches_can_be_written_token_by_token(pattern):
    automaton = automaton_of(pattern, TOKENS)
    for size in range(4):
        for tokens in itertools.product(PIECE_OF, repeat=size):
            spelled = b"".join(map(PIECE_OF.get, tokens)).decode(errors="replace")
            matches = "\ufffd" not in spelled and re.fullmatch(pattern, spelled) is not None
            assert fits(automaton, tokens) == matches, spelled


def test_a_json_schema_is_filled_to_json_of_the_schema():
    automaton = automaton_of(pattern_of(StructuredOutputOptions.JSON, json.dumps(SCHEMA)), TOKENS)
    for seed in range(10):
        rng, canvas = random.Random(seed), np.full(24, BLANK)
        for place in rng.sample(range(24), 24):
            (classes,) = allowed(automaton, canvas[None], BLANK, np.array([[place]]))[0]
            canvas[place] = rng.choice(np.flatnonzero(classes[automaton.class_of]).tolist())
        value = json.loads(text_of(canvas))
        assert value["ok"] is True  # no token spells "false"
        assert value.keys() <= {"ok", "e", "a"}


def test_a_choice_is_one_of_its_texts_literally():
    automaton = automaton_of(pattern_of(StructuredOutputOptions.CHOICE, '["a", "ab", "1.1"]'), TOKENS)
    strings = {text_of(t) for n in range(4) for t in itertools.product(PIECE_OF, repeat=n) if fits(automaton, t)}
    assert strings == {"a", "ab", "1.1"}


def test_the_scheduler_s_check_takes_a_canvas_in_blocks_with_its_end_tokens_and_nothing_else():
    finished = CanvasGrammar(automaton_of("a(bc)?", TOKENS))
    a, bc = 2, 6
    assert finished.accept_tokens("", [a])
    assert finished.is_terminated()
    assert finished.accept_tokens("", [bc, END])
    assert finished.accept_tokens("", [END, END])
    assert not finished.accept_tokens("", [a])
    assert not finished.is_terminated()


def of_regex(pattern: str) -> TokenAutomaton:
    return automaton_of(pattern_of(StructuredOutputOptions.REGEX, pattern), TOKENS)


@pytest.mark.parametrize("pattern", ["a(?=b)", "(a)\\1", "(", "a)|(b", "a$b", "a|(^b)", "\\bab\\b", "a*+", "(?>a)"])
def test_what_is_no_regular_expression_of_a_whole_text_is_refused(pattern):
    with pytest.raises(ValueError):
        of_regex(pattern)


@st.composite
def regexes(draw, depth=3):
    """Over a few characters of one to four bytes, with classes, flags, and repetitions of whatever."""
    kind = draw(st.sampled_from("cccs|*g" if depth else "c"))
    if kind == "c":
        return draw(st.sampled_from(CHARACTERS_OF_A_PATTERN))
    inner = [draw(regexes(depth - 1)) for _ in range(draw(st.integers(1, 3)))]
    if kind == "s":
        return "".join(inner)
    if kind == "*":
        return f"(?:{inner[0]}){draw(st.sampled_from(['*', '+', '?', '*?', '{2}', '{1,}', '{0,2}', '{1,3}?']))}"
    return f"({'?i:' if kind == 'g' else ''}{'|'.join(inner)})"


CHARACTERS_OF_A_PATTERN = [
    "a", "b", "é", "ß", "K", "\U0001f600", ".", "[^a]", "[a-c€]", "[^é€]", r"\d", r"\w", r"\W", r"\S", r"[^\s\d]", "",
    "[À-Þ]", "(?a:\\w)", "(?s:.)",
]  # fmt: skip
NO_TEXT = 0xFFFD  # what decoders write for bytes that are no character; no text may end with it
# With cases by rules of their own: the sign of Kelvin, the long s, the dotted I.
TEXTS = ["", *"abcAB1٣éÉ€ßẞsKk\u212a\u017f\u0130 \n\U0001f600\U0010ffff"]


@settings(max_examples=150)
@given(regexes(), st.data())
def test_a_text_is_followed_to_a_final_state_exactly_if_the_whole_of_it_matches(pattern, data):
    automaton = regular.over_bytes(pattern)
    for _ in range(20):
        text = "".join(data.draw(st.lists(st.sampled_from(TEXTS), max_size=4)))
        follows = is_completable(automaton, np.array(list(text.encode()), dtype=int), -1)
        assert follows == (re.fullmatch(pattern, text) is not None), text


@pytest.mark.parametrize(
    "pattern",
    ["(?i)[a-zß-ÿ]", "(?i)[^k\u017f\u0131]", r"(?i)\w", r"[^\W\d_]", "(?i)ǆ", "(?ai)[k-s]", r"(?a)\W",
     r"(?a)(?u:\w)", r"(?i)[\s\dk]", r"(?i)[^\W\u017f-\u024f]"],
)  # fmt: skip
def test_a_class_holds_the_characters_that_it_holds_for_python(pattern):
    automaton = regular.over_bytes(pattern)
    for code in {*range(0x3000), *range(0xA640, 0xABC0), *range(0xFF00, 0x10500), 0x10FFFF} - {NO_TEXT}:
        follows = is_completable(automaton, np.array(list(chr(code).encode()), dtype=int), -1)
        assert follows == (re.fullmatch(pattern, chr(code)) is not None), hex(code)


@pytest.mark.parametrize("pattern", [".", "[^a]", "[\ufff0-\uffff]", "\ufffd"])
def test_no_text_holds_the_sign_for_bytes_that_are_none(pattern):
    automaton = regular.over_bytes(pattern)
    for character in "\ufffc\ufffd\ufffe":
        follows = is_completable(automaton, np.array(list(character.encode()), dtype=int), -1)
        assert follows == (character != "\ufffd" and re.fullmatch(pattern, character) is not None)


@pytest.mark.parametrize(
    ("anchored", "plain"), [("^ab$", "ab"), ("a|b$", "a|b"), (r"a\\$", r"a\\"), (r"^\$?", r"\$?"), (r"a\$", r"a\$")]
)
def test_anchors_at_the_ends_say_nothing_and_an_escaped_dollar_is_text(anchored, plain):
    assert pattern_of(StructuredOutputOptions.REGEX, anchored) == plain


@pytest.mark.parametrize(
    ("module", "limit"),
    [(regular, "MAX_STEPS"), (spelling, "MAX_MOVES"), (spelling, "MAX_READ"), (grammar, "MAX_MOVES")],
)
def test_a_grammar_too_large_to_serve_is_refused(monkeypatch, module, limit):
    assert automaton_of("a{200}", TOKENS)
    monkeypatch.setattr(module, limit, 100)
    with pytest.raises(ValueError, match=r"more than 100 |at most 100 "):
        automaton_of("a{200}", TOKENS)


STRING = {"type": "string"}
SCHEMAS = [
    SCHEMA,
    {"type": "array", "items": {"enum": [1, "a", None, {"b": [1.5]}]}, "minItems": 1, "maxItems": 3},
    {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 1, "maxLength": 3}, {"const": {"a": True}}]},
    {"type": "object", "anyOf": [{"properties": {"a": {"type": "null"}}, "required": ["a"]}, {"type": "object"}]},
    {"type": ["number", "null", "boolean"], "title": "a title", "default": None},
    {"type": "object", "additionalProperties": {"type": "integer"}, "minProperties": 1},
    {"properties": {"a": {}, "b": {"title": "anything"}}, "required": ["b"]},
    {"type": "array", "prefixItems": [{}, {"type": "integer"}]},
    {"properties": {"a": {"$ref": "#/$defs/A"}, "b": STRING}, "required": ["a"], "$defs": {"A": {"type": "null"}}},
    {"type": "array", "prefixItems": [{"type": "integer"}, {"type": "string", "pattern": "^[abc]{2,3}|d$"}]},
    {"type": "string", "pattern": "ab|c[x-z]"},
    {"allOf": [{"type": "string", "format": "date"}]},
    {"properties": {'"': {"const": {'a"b': 1, "x.y": None}}, "\\": {"enum": ["\n"]}}, "required": ['"', "\\"]},
    {"$ref": "#/$defs/0", "$defs": {
        str(depth): {"properties": {"a": {"$ref": f"#/$defs/{depth + 1}"}}, "required": ["a"]} for depth in range(6)
    } | {"6": {"type": "null"}}},
]  # fmt: skip
CHARACTERS = ModelTokens(Spelling.of({bytes([byte]): [byte] for byte in range(32, 127)}, 128), (END,))


@pytest.mark.parametrize("schema", SCHEMAS)
def test_whatever_is_written_is_valid_by_the_schema(schema):
    automaton = automaton_of(pattern_of(StructuredOutputOptions.JSON, json.dumps(schema)), CHARACTERS)
    for seed in range(5):
        rng = random.Random(seed)
        canvas = np.full(automaton.shortest + rng.randrange(12), BLANK)
        for place in rng.sample(range(len(canvas)), len(canvas)):
            (classes,) = allowed(automaton, canvas[None], BLANK, np.array([[place]]))[0]
            canvas[place] = rng.choice(np.flatnonzero(classes[automaton.class_of]).tolist())
        jsonschema.validate(json.loads(bytes(canvas[canvas != END].tolist())), schema)


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "integer", "minimum": 3}, "minimum"),
        ({"type": "array", "items": STRING, "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "a", "minLength": 3}, "minLength"),
        ({"type": "string", "pattern": "a", "format": "date"}, "pattern"),
        ({"oneOf": [STRING, {"type": "null"}]}, "oneOf"),
        ({"allOf": [{"minLength": 2}]}, "minLength"),
        ({"allOf": [STRING, STRING]}, "allOf"),
        ({"type": "object", "properties": {"a": {"type": "array", "contains": STRING}}}, "contains"),
        ({"type": "object", "properties": {"a": STRING}, "required": ["b"]}, "'b'"),
        ({"type": "object", "properties": {"a": STRING}, "minProperties": 1}, "minProperties"),
        ({"$ref": "#/$defs/A", "$defs": {"A": {"type": "number", "multipleOf": 2}}}, "multipleOf"),
        ({"type": "array", "items": False}, "false"),
        ({"type": "string", "pattern": ".*"}, "quotes"),
        ({"type": "string", "format": "email"}, "quotes"),
        ({"type": "string", "pattern": "a)|(b"}, "unbalanced"),
        ({"type": "string", "format": "ipv4"}, "ipv4"),
        ({"$ref": "#"}, "recursion"),
        ({"$ref": "#/$defs/B", "$defs": {"A": STRING}}, "#/\\$defs/B"),
        ({"$ref": "#/default", "default": {"type": "integer", "minimum": 2}}, "minimum"),
        ({"type": "null", "enum": [None, 1]}, "excludes 1"),
        ({"type": "integer", "const": True}, "excludes True"),
        ({"type": "array", "properties": {}}, "'type'"),
        ({"type": "object", "anyOf": [{"properties": {}}, {"type": "integer"}]}, "excludes"),
        ({"type": "object", "anyOf": [{"minLength": 1}]}, "minLength"),
        ({"enum": []}, "empty"),
        ({"type": []}, "empty"),
        ({"type": "array", "items": STRING, "minItems": 1.0}, "minItems"),
        ({"type": "object", "additionalProperties": STRING, "minProperties": 2}, "minProperties"),
        ({"type": "object", "additionalProperties": STRING, "maxProperties": 1}, "maxProperties"),
        ({"type": "array", "items": STRING, "minItems": 2, "maxItems": 0}, "minItems"),
        ({"type": "string", "minLength": 1 << 64}, "minLength"),
        ({"properties": [STRING]}, "properties"),
        ({"properties": {"a": STRING}, "required": ["a", "a"]}, "non-unique"),
        ({"type": "text"}, "'type' is invalid"),
    ],
)
def test_what_a_schema_says_and_no_expression_would_hold_to_is_refused(schema, named):
    with pytest.raises(ValueError, match=named):
        pattern_of(StructuredOutputOptions.JSON, json.dumps(schema))


def test_white_space_that_a_class_excludes_is_that_of_json_schemas_not_of_ascii():
    pattern = pattern_of(
        StructuredOutputOptions.JSON, json.dumps({"type": "string", "pattern": r'^[^\s"\\\x00-\x1f]$'})
    )
    excluded = " \xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
    assert [re.fullmatch(pattern, f'"{character}"') is not None for character in excluded + "é\u200b"] == [
        *[False] * len(excluded), True, True
    ]  # fmt: skip


def optional(depth: int):
    """Objects in one another, none of whose properties is required."""
    others = {f"p{index}": {"type": "null"} for index in range(19)}
    return {"properties": {"a": optional(depth - 1), **others}} if depth else {"type": "null"}


def doubled(depth: int):
    """Parts that each name the next one twice."""
    parts = {str(at): {"prefixItems": [{"$ref": f"#/$defs/{at + 1}"}] * 2} for at in range(depth)}
    return {"$ref": "#/$defs/0", "$defs": parts | {str(depth): STRING}}


@pytest.mark.parametrize("schema", [optional(6), doubled(20), {"type": "string", "pattern": "(a{1000}){1000}"}])
def test_a_short_schema_of_a_huge_expression_is_refused_before_it_is_written_out(schema):
    assert len(json.dumps(schema)) < 4000
    with pytest.raises(ValueError, match="more than"):
        pattern_of(StructuredOutputOptions.JSON, json.dumps(schema))


@pytest.mark.parametrize(
    "pattern",
    [
        "(a|b)*a(a|b){30}", "(((a{100}){100}){100}){100}", r"\w{1000}", "((){1000}){1000}", ".*a" * 300,
        "(" + "|" * 2000 + "){100000}",
        "(?:(" + "|" * 4000 + ")(a|b))*a(a|b){13}",
        "[" + "".join(map(chr, range(0x4E00, 0x5600))) + "]{50000}",
        "(?i)" + "".join(f"[{chr(first)}-\uffff]" for first in range(0x100, 0x600)),
    ],
)  # fmt: skip
def test_what_costs_too_much_to_compile_is_refused_at_the_same_step_every_time(pattern):
    # In a thread that is given up and goes on, it would take all memory there is.
    before = threading.active_count()
    for _ in range(2):
        with pytest.raises(ValueError, match="steps to compile"):
            regular.over_bytes(pattern)
    assert threading.active_count() == before


@pytest.mark.parametrize("opening", ["(", "(?:", "(?i:"])
def test_what_is_nested_so_deeply_that_a_deeper_stack_might_not_parse_it_is_refused_on_any_stack(opening):
    assert regular.over_bytes(opening * 100 + "a" + ")" * 100 + r"\([(]" * 200)
    with pytest.raises(ValueError, match="nested"):
        regular.over_bytes(opening * 101 + "a" + ")" * 101)


@pytest.mark.parametrize("specification", ["[" * 8000, '{"const": ' + "[" * 900 + "]" * 900 + "}"])
def test_json_nested_without_end_is_refused_as_any_other_that_cannot_be_compiled(specification):
    with pytest.raises(ValueError):
        compiled(StructuredOutputOptions.JSON, specification, TOKENS)


def test_neither_a_constraint_nor_its_refusal_is_compiled_twice(monkeypatch):
    constraints = [(StructuredOutputOptions.REGEX, "[ab]+1"), (StructuredOutputOptions.JSON, '{"minimum": 1}')]
    first = compiled(*constraints[0], TOKENS)
    with pytest.raises(ValueError, match="minimum"):
        compiled(*constraints[1], TOKENS)
    monkeypatch.delattr(grammar, "pattern_of")
    assert compiled(*constraints[0], TOKENS) is first
    with pytest.raises(ValueError, match="minimum"):
        compiled(*constraints[1], TOKENS)


def test_many_different_grammars_take_no_more_memory_than_they_are_given(monkeypatch):
    large = SimpleNamespace(moves=range(grammar.MAX_MOVES), class_of=range(150_000))
    monkeypatch.setattr(grammar, "automaton_of", lambda pattern, tokens: large)
    for index in range(50):
        compiled(StructuredOutputOptions.REGEX, f"[ab]{{{index}}}", TOKENS)
    kept = list(grammar._compiled.cache.values())
    grammar._compiled.cache.clear()
    assert 0 < sum(len(automaton.moves) for automaton in kept) <= grammar.MAX_CACHED


# Admission.


@pytest.fixture(scope="module")
def served(checkpoint):
    from test_admission import config

    return config(checkpoint)


def check(served, canvas=None, size=20, params=None, **constraint):
    canvas = [MASK_ID] * size if canvas is None else canvas
    structured = StructuredOutputsParams(**constraint)
    check_structured_outputs(
        SamplingParams(max_tokens=len(canvas), structured_outputs=structured, **(params or {})), canvas, served
    )


def test_what_fits_the_canvas_is_let_in(served):
    check(served, regex="[0-9]{20}")
    check(served, choice=["no", "none", "not at all"])
    check(served, size=40, json=SCHEMA)
    check(served, canvas=[*encode("no"), MASK_ID, *encode("e"), MASK_ID], choice=["no", "none"])
    check(served, regex="a", params={"stop_token_ids": [VOCAB["b"]], "logit_bias": {7: 1.0}})


def test_tokens_that_end_a_text_by_any_of_the_model_s_configs_are_end_tokens(served, monkeypatch):
    eos = model_tokens(served).end_ids
    config = {"eos_token_id": [*eos, VOCAB["~"]]}
    monkeypatch.setattr(type(served.model_config), "try_get_generation_config", lambda self: config)
    assert set(model_tokens(served).end_ids) == {*eos, VOCAB["~"]} != set(eos)
    check(served, regex="[a~]", params={"stop_token_ids": [VOCAB["~"]]})


@pytest.mark.parametrize(
    ("constraint", "more", "message"),
    [
        ({"grammar": "root ::= 'a'"}, {}, "structured_outputs.grammar"),
        ({"structural_tag": "{}"}, {}, "structured_outputs.structural_tag"),
        ({"json_object": True}, {}, "structured_outputs.json_object"),
        ({"choice": []}, {}, "structured_outputs.choice"),
        ({"json": SCHEMA, "whitespace_pattern": " "}, {}, "whitespace_pattern"),
        ({"json": "{"}, {}, "structured_outputs.json='{': cannot be compiled"),
        ({"json": {"type": "integer", "minimum": 1}}, {}, "'minimum'"),
        ({"regex": "a(?=b)"}, {}, "structured_outputs.regex"),
        ({"regex": "a{21}"}, {}, "max_tokens=20: the shortest text that matches takes 21 tokens"),
        ({"regex": "é"}, {}, "no tokens of this model spell"),
        ({"regex": "b+"}, {"canvas": [MASK_ID, VOCAB["a"]]}, "cannot be completed"),
        ({"regex": "b+"}, {"params": {"allowed_token_ids": [7]}}, "allowed_token_ids"),
        ({"regex": "b+"}, {"params": {"bad_words": ["b"]}}, "bad_words"),
        ({"regex": "b+"}, {"params": {"min_tokens": 2}}, "min_tokens=2"),
        ({"regex": "b+"}, {"params": {"stop_token_ids": [VOCAB["b"]]}}, "stop_token_ids"),
    ],
)
def test_what_the_canvas_cannot_be_held_to_is_refused_by_name(served, constraint, more, message):
    with pytest.raises(ParameterError, match=re.escape(message)):
        check(served, **more, **constraint)


def test_a_server_whose_settings_would_alter_the_constraint_is_named(checkpoint):
    from test_admission import config
    from vllm.config import StructuredOutputsConfig

    with pytest.raises(ParameterError, match=r"structured_outputs_config\.backend='auto'"):
        check(config(checkpoint, structured_outputs_config=StructuredOutputsConfig(backend="auto")), regex="a")
