"""From a JSON schema to a regular expression, by outlines; what that would pass over without a word is refused.

Outlines gets no schema as it is given, but one that says the same in what outlines holds to: references replaced by
what they name, since it writes `{}` for what lies more than three references deep.
"""

import json
import re
from typing import Any
from urllib.parse import unquote

from outlines_core.json_schema import build_regex_from_schema

from vllm_infogain.grammar.regex import Nfa, whole

# Say nothing of what is valid, or are looked up by `$ref`.
ANNOTATIONS = frozenset({
    "$schema", "$id", "$comment", "$defs", "definitions", "title", "description", "default", "examples", "deprecated",
    "readOnly", "writeOnly",
})  # fmt: skip
# A schema is read by the first of these keywords that it has, and with it the others of its row only. Of an object
# with `properties` no others are written, of an array with `prefixItems` no further items: as valid as any.
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
    "object": {"additionalProperties", "minProperties"},  # of maxProperties outlines reads only 0
}
# Of what type is what these write, in an example.
WRITTEN: dict[str | None, Any] = {"properties": {}, "prefixItems": [], "enum": None, "const": None}
COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties"})
MAX_COUNT = 1 << 32  # one above 64 bits outlines passes over
TYPES: dict[str, type | tuple[type, ...]] = {
    "string": str, "number": (int, float), "integer": int, "boolean": bool, "null": type(None), "object": dict,
    "array": list,
}  # fmt: skip
MAX_PARTS = 1000  # a few references can name each other's parts more often than there is memory for
MAX_DEPTH = 50
MAX_EXPRESSION = 1 << 16  # characters; where no property is required, outlines writes out who may come first
NEGATED = re.compile(r"\[\^\]?(?:\\.|[^\]\\])*", re.DOTALL)  # a class of all characters but some
# In a JSON string only as parts of escapes, which a pattern knows nothing of.
NEVER_IN_STRINGS = frozenset({*range(0x20), ord('"'), ord("\\")})
SPACES = "\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"  # of \s in JSON schemas, beside those of ASCII


def schema_pattern(specification: str) -> str:
    """The regular expression of a JSON schema, given as JSON: one of the ways to write each value that is valid.

    Raises:
        ValueError: the schema is invalid, or says what the expression would not hold to.
    """
    root = json.loads(specification)
    served = _Served(root).part(root)
    if _length(served) > MAX_EXPRESSION:
        raise ValueError(f"its expression has more than {MAX_EXPRESSION} characters; name properties as required")
    return build_regex_from_schema(json.dumps(served))


class _Served:
    """A schema's parts as outlines is to read them."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.parts = 0
        self.patterns = Nfa()  # all of them in one, so that one budget bounds them

    def part(self, schema: Any, depth: int = 0, references: tuple[str, ...] = ()) -> dict[str, Any]:
        """One part, `depth` parts deep, with all that it holds; it was reached by references."""
        self.parts += 1
        if self.parts > MAX_PARTS or depth > MAX_DEPTH:
            raise ValueError(f"its parts, with its references', are more than {MAX_PARTS}, or {MAX_DEPTH} deep")
        if isinstance(schema, dict) and {"type", "anyOf"} <= schema.keys():
            schema = _typed(schema)
        form = _check_keywords(schema)
        if form == "$ref":
            reference = schema["$ref"]
            if reference in references:
                raise ValueError(f"{reference!r} is in itself, a recursion without end; write out how deep it may be")
            return self.part(self._found(reference), depth + 1, (*references, reference))
        if form in ("pattern", "format"):
            return {"type": "string", "pattern": self._pattern(schema, form)}
        served = {key: value for key, value in schema.items() if key not in ANNOTATIONS}
        if form == "properties":
            names = {name: _inside_quotes(name) for name in _of(dict, served, form)}
            required = _of(list, served, "required") if "required" in served else []
            if absent := [name for name in required if name not in names]:
                raise ValueError(f"{absent} of 'required' must be among 'properties'")
            parts = {names[name]: self.part(part, depth + 1, references) for name, part in served[form].items()}
            served = {"type": "object", form: parts, "required": [names[name] for name in required]}
        elif form in ("allOf", "anyOf", "prefixItems"):
            served[form] = [self.part(part, depth + 1, references) for part in _of(list, served, form)]
        elif form is None:
            for keyword in served.keys() & {"items", "additionalProperties"}:
                served[keyword] = self.part(served[keyword], depth + 1, references)
            # Whatever is valid: alone outlines writes it as alternatives without parentheses around them.
            served = served or {"anyOf": [{}]}
        else:
            served = {form: _written(served[form])}
        return served

    def _found(self, reference: Any) -> Any:
        """The part that a reference names."""
        found = self.root
        try:
            first, *steps = reference.split("/")
            for step in steps:
                step = unquote(step).replace("~1", "/").replace("~0", "~")
                found = found[int(step) if isinstance(found, list) else step]
        except (AttributeError, TypeError, LookupError, ValueError):
            first = None
        if first != "#":
            raise ValueError(f"reference {reference!r} names no part of the schema; give one such as '#/$defs/name'")
        return found

    def _pattern(self, schema: dict[str, Any], form: str) -> str:
        """A text that ends its JSON string early, or begins an escape, would not be JSON."""
        if form == "pattern":
            text = NEGATED.sub(lambda found: found[0].replace(r"\s", rf"\s{SPACES}"), whole(_of(str, schema, form)))
        else:
            text = build_regex_from_schema(json.dumps({"type": "string", "format": schema[form]}))[1:-1]
        # As in JSON schemas, digits and letters are those of ASCII.
        text = f"(?a:{text})"
        start = self.patterns.state()
        self.patterns.read(text, start)
        read = {(low, high) for edges in self.patterns.edges[start:] for low, high, _ in edges}
        if any(low <= byte <= high for low, high in read for byte in NEVER_IN_STRINGS):
            raise ValueError(
                f"{form} {schema[form]!r} lets quotes, backslashes or control characters into a JSON string; exclude "
                'them, as [^"\\\\\\x00-\\x1f] does'
            )
        return text


def _check_keywords(schema: Any) -> str | None:
    """Refuse what a part says and outlines would not hold to; returns what it is read by, None for its type alone."""
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
    for keyword in COUNTS & schema.keys():
        count = schema[keyword]
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MAX_COUNT:
            raise ValueError(f"{keyword!r} is {count!r}; give a whole number from 0 to {MAX_COUNT}")
    for of in ("Length", "Items"):
        if schema.get(f"min{of}", 0) > schema.get(f"max{of}", MAX_COUNT):
            raise ValueError(f"'min{of}' is above 'max{of}', which nothing is valid by")
    if schema.get("minProperties", 0) > 1:
        raise ValueError("'minProperties' above 1 is not served: names may repeat; name the properties")
    if kind == [] or (form in ("allOf", "anyOf", "enum") and not _of(list, schema, form)):
        raise ValueError(f"{form or 'type'!r} is empty, which nothing is valid by")
    if form == "allOf" and len(schema[form]) > 1:
        raise ValueError("'allOf' of several schemas is not served; write them as one")
    if kind is not None and form in WRITTEN:
        kinds = kind if isinstance(kind, list) else [kind]
        values = schema["enum"] if form == "enum" else [schema["const"]] if form == "const" else [WRITTEN[form]]
        for value in values:
            if not any(_is_of(value, one) for one in kinds):
                raise ValueError(f"'type' {kind!r} does not go with {form!r}, of which it excludes {value!r}")
    return form


def _typed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with `anyOf` whose `type` is said by each of the alternatives, as far as they say none."""
    kind, parts = schema["type"], _of(list, schema, "anyOf")
    for part in parts:
        if not isinstance(part, dict) or part.get("type", kind) != kind:
            raise ValueError(f"'type' {kind!r} does not go with 'anyOf', of which it excludes {json.dumps(part)}")
    rest = {key: value for key, value in schema.items() if key not in ("type", "anyOf")}
    return rest | {"anyOf": [{"type": kind} | part for part in parts]}


def _written(value: Any) -> Any:
    """A constant: outlines writes the names in it, and only these, as they are, as part of the expression."""
    if isinstance(value, dict):
        return {re.escape(_inside_quotes(name)): _written(inner) for name, inner in value.items()}
    return [_written(inner) for inner in value] if isinstance(value, list) else value


def _inside_quotes(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _of(kind: type, schema: dict[str, Any], keyword: str) -> Any:
    if not isinstance(schema[keyword], kind):
        raise ValueError(f"{keyword!r} is {schema[keyword]!r}, no {kind.__name__}")
    return schema[keyword]


def _is_of(value: Any, kind: Any) -> bool:
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    is_boolean = isinstance(value, bool)
    return isinstance(kind, str) and isinstance(value, TYPES.get(kind, ())) and is_boolean == (kind == "boolean")


def _length(served: dict[str, Any]) -> int:
    """Characters of the expression that outlines makes of a part, or more."""
    if "properties" in served:
        lengths = [len(name) + 40 + _length(part) for name, part in served["properties"].items()]
        # Where none is required, each may be the last, and all before it may or may not be there.
        return sum(lengths if served["required"] else (nth * own for nth, own in enumerate(reversed(lengths), 1)))
    for keyword in ("allOf", "anyOf", "prefixItems"):
        if keyword in served:
            return sum(map(_length, served[keyword]))
    inner = [_length(served[keyword]) for keyword in ("items", "additionalProperties") if keyword in served]
    plain = {key: value for key, value in served.items() if key not in ("items", "additionalProperties")}
    return sum(2 * one + 200 for one in inner) or len(build_regex_from_schema(json.dumps(plain)))
