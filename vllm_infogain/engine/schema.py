"""From a JSON schema to a regular expression, by outlines; what that would pass over without a word is refused."""

import json
from typing import Any

from outlines_core.json_schema import build_regex_from_schema

from vllm_infogain.engine.regular import over_bytes, whole
from vllm_infogain.sampling.automaton import NEVER

# Say nothing of what is valid, or are looked up by `$ref`.
ANNOTATIONS = frozenset({
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "deprecated",
    "readOnly", "writeOnly",
})  # fmt: skip
# Outlines reads a schema by the first of these keywords that it has, and with it the others of its row only. Of an
# object with `properties` it writes no others, of an array with `prefixItems` no further items: as valid as any.
READ_WITH = {
    "properties": {"type", "required", "additionalProperties"},
    "allOf": set(),
    "anyOf": set(),
    "prefixItems": {"type", "items"},
    "enum": {"type"},
    "const": {"type"},
    "$ref": set(),
}
READ_WITH_TYPE = {
    "string": {"minLength", "maxLength"},
    "array": {"items", "minItems", "maxItems"},
    "object": {"additionalProperties", "minProperties", "maxProperties"},
}
MAX_PATTERNS = 16  # each is compiled by itself
# In a JSON string only as parts of escapes, which a pattern knows nothing of.
NEVER_IN_STRINGS = frozenset({*range(0x20), ord('"'), ord("\\")})


def schema_pattern(specification: str) -> str:
    """The regular expression of a JSON schema, given as JSON: one of the ways to write each value that is valid.

    Raises:
        ValueError: the schema is invalid, or says what the expression would not hold to.
    """
    if (patterns := specification.count('"pattern"')) > MAX_PATTERNS:
        raise ValueError(f"it has {patterns} patterns; at most {MAX_PATTERNS} are served")
    schema = json.loads(specification)
    _check(schema)
    return build_regex_from_schema(json.dumps(schema))


def _check(schema: Any) -> None:
    """Of a schema and its parts; makes each pattern one that stands by itself between quotes."""
    if not isinstance(schema, dict):
        raise ValueError(f"{json.dumps(schema)} is no schema that is served; write it as an object")
    form = next((keyword for keyword in READ_WITH if keyword in schema), None)
    kind = schema.get("type")
    if form is not None:
        read = {form, *READ_WITH[form]}
    elif kind == "string" and not schema.keys().isdisjoint({"pattern", "format"}):
        # One of them: with a format or a length outlines reads no pattern.
        form = "format" if "format" in schema else "pattern"
        read = {"type", form}
    else:
        read = {"type", *(READ_WITH_TYPE.get(kind, ()) if isinstance(kind, str) else ())}
    for keyword in schema.keys() - ANNOTATIONS - read:
        raise ValueError(f"{keyword!r}{f' beside {form!r}' if form else ''} is not served; leave it out")
    if form in ("pattern", "format"):
        _check_text(schema, form)
    if len(schema.get("allOf", ())) > 1:
        raise ValueError("'allOf' of several schemas is not served; write them as one")
    if absent := set(schema.get("required", ())) - schema.get("properties", {}).keys():
        raise ValueError(f"{sorted(absent)} of 'required' must be among 'properties'")
    for keyword in ("properties", "$defs", "definitions"):
        for part in schema.get(keyword, {}).values():
            _check(part)
    for keyword in ("allOf", "anyOf", "prefixItems"):
        for part in schema.get(keyword, ()):
            _check(part)
    if form is None:
        for keyword in ("items", "additionalProperties"):
            if keyword in schema:
                _check(schema[keyword])


def _check_text(schema: dict[str, Any], form: str) -> None:
    """A text that ends its JSON string early, or begins an escape, would not be JSON."""
    if form == "pattern":
        text = schema["pattern"] = f"(?:{whole(schema['pattern'])})"
    else:
        text = build_regex_from_schema(json.dumps({"type": "string", "format": schema["format"]}))[1:-1]
    automaton = over_bytes(text)
    if any(automaton.class_of[byte] != NEVER for byte in NEVER_IN_STRINGS):
        raise ValueError(
            f"{form} {schema[form]!r} lets quotes, backslashes or control characters into a JSON string; exclude them, "
            'as [^"\\\\\\x00-\\x1f] does'
        )
