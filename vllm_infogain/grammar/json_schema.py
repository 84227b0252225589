"""From a JSON schema to a regular expression, by outlines; what that would pass over without a word is refused.

Outlines gets no schema as it is given, but one that says the same in what outlines holds to: references replaced by
what they name, since it writes `{}` for what lies more than three references deep. Whether a part is a valid schema
`jsonschema` says, what a reference names `referencing`. Both see one part at a time: MAX_PARTS bounds their work.
"""

import json
import re
from collections.abc import Callable
from itertools import islice
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from outlines_core.json_schema import build_regex_from_schema
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

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
PARTS = frozenset({"properties", "additionalProperties", "items", "allOf", "anyOf", "prefixItems"})  # hold parts
# Every schema is read as of this draft: no keyword that is served has another meaning in an older one.
VALIDATOR = Draft202012Validator(Draft202012Validator.META_SCHEMA)
MAX_COUNT = 1 << 32  # one above 64 bits outlines passes over
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
        self.references = Registry().with_resource("", DRAFT202012.create_resource(root)).resolver()
        self.parts = 0
        self.patterns = Nfa()  # all of them in one, so that one budget bounds them

    def part(self, schema: Any, depth: int = 0, references: tuple[str, ...] = ()) -> dict[str, Any]:
        """One part, `depth` parts deep, with all that it holds; it was reached by references."""
        self.parts += 1
        if self.parts > MAX_PARTS or depth > MAX_DEPTH:
            raise ValueError(f"its parts, with its references', are more than {MAX_PARTS}, or {MAX_DEPTH} deep")
        _check_valid(schema)
        if {"type", "anyOf"} <= schema.keys():
            schema = _typed(schema)
        form = _form(schema)
        _check_served(schema, form)
        if form == "$ref":
            reference = schema["$ref"]
            if reference in references:
                raise ValueError(f"{reference!r} is in itself, a recursion without end; write out how deep it may be")
            return self.part(self._found(reference), depth + 1, (*references, reference))
        if form in ("pattern", "format"):
            return {"type": "string", "pattern": self._pattern(schema, form)}
        if form == "properties":
            names = {name: _inside_quotes(name) for name in schema[form]}
            parts = {names[name]: self.part(part, depth + 1, references) for name, part in schema[form].items()}
            return {"type": "object", form: parts, "required": [names[name] for name in schema.get("required", ())]}
        if form in ("allOf", "anyOf", "prefixItems"):
            return {form: [self.part(part, depth + 1, references) for part in schema[form]]}
        if form is not None:
            return {form: _written(schema[form])}
        served = {keyword: value for keyword, value in schema.items() if keyword not in ANNOTATIONS}
        for keyword in served.keys() & {"items", "additionalProperties"}:
            served[keyword] = self.part(served[keyword], depth + 1, references)
        # Whatever is valid: alone outlines writes it as alternatives without parentheses around them.
        return served or {"anyOf": [{}]}

    def _found(self, reference: str) -> Any:
        """The part that a reference names."""
        try:
            # By a pointer: for any other the whole of the schema would be looked through, however large.
            if reference == "#" or reference.startswith("#/"):
                return self.references.lookup(reference).contents
        except (Unresolvable, AttributeError, TypeError, LookupError, ValueError):
            pass  # it leads through what is no schema
        raise ValueError(f"reference {reference!r} names no part of the schema; give one such as '#/$defs/name'")

    def _pattern(self, schema: dict[str, Any], form: str) -> str:
        """A text that ends its JSON string early, or begins an escape, would not be JSON."""
        if form == "pattern":
            text = NEGATED.sub(lambda found: found[0].replace(r"\s", rf"\s{SPACES}"), whole(schema[form]))
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


def _check_valid(schema: Any) -> None:
    """Refuse a part that is no valid schema; the parts inside it are checked when their turn comes."""
    if not isinstance(schema, dict):
        raise ValueError(f"{json.dumps(schema)} is no schema that is served; write it as an object")
    alone = {keyword: _alone(keyword, value) for keyword, value in schema.items() if keyword not in ANNOTATIONS}
    # The first error only: to find all takes time by the square of a list's length.
    if error := best_match(islice(VALIDATOR.iter_errors(alone), 1)):
        raise ValueError(f"{'.'.join(map(str, error.absolute_path))!r} is invalid: {error.message}")


def _alone(keyword: str, value: Any) -> Any:
    """What a keyword says, of a size that can be checked at once: without the parts inside."""
    if keyword in PARTS and isinstance(value, dict):
        return {}
    if keyword in PARTS and isinstance(value, list):
        return [{}] if value else []
    return value[:8] if keyword == "type" and isinstance(value, list) else value  # there are seven types


def _form(schema: dict[str, Any]) -> str | None:
    """The keyword that a part is read by, None where that is its type alone."""
    form = next((keyword for keyword in READ_WITH if keyword in schema), None)
    if form is None and schema.get("type") == "string":
        # One of them: with a format or a length outlines reads no pattern.
        form = next((keyword for keyword in ("format", "pattern") if keyword in schema), None)
    return form


def _check_served(schema: dict[str, Any], form: str | None) -> None:
    """Refuse what a valid part says and outlines would not hold to."""
    kind = schema.get("type")
    if form is None:
        read = {"type", *(READ_WITH_TYPE.get(kind, ()) if isinstance(kind, str) else ())}
    else:
        read = {form, *READ_WITH.get(form, {"type"})}
    for keyword in schema.keys() - ANNOTATIONS - read:
        raise ValueError(f"{keyword!r}{f' beside {form!r}' if form else ''} is not served; leave it out")
    for keyword, check in CHECKS.items():
        if keyword in schema and (fault := check(schema[keyword], schema)):
            raise ValueError(f"{keyword!r} {fault}")


# Of one keyword each: what is wrong with its value, in a schema that has no others than those read with it.


def _count(value: Any, schema: dict[str, Any]) -> str | None:
    # 1.0 is valid too, but outlines passes over it.
    served = isinstance(value, int) and value <= MAX_COUNT
    return None if served else f"is {value!r}; give a whole number from 0 to {MAX_COUNT}"


def _count_below(most: str) -> "Check":
    def check(value: Any, schema: dict[str, Any]) -> str | None:
        above = f"is above {most!r}, which nothing is valid by" if value > schema.get(most, MAX_COUNT) else None
        return _count(value, schema) or above

    return check


def _properties_count(value: Any, schema: dict[str, Any]) -> str | None:
    above = "above 1 is not served: names may repeat; name the properties" if value > 1 else None
    return _count(value, schema) or above


def _required(names: list[str], schema: dict[str, Any]) -> str | None:
    absent = [name for name in names if name not in schema["properties"]]
    return f"names {absent}, which must be among 'properties'" if absent else None


def _enum(values: list[Any], schema: dict[str, Any]) -> str | None:
    return None if values else "is empty, which nothing is valid by"


def _all_of(parts: list[Any], schema: dict[str, Any]) -> str | None:
    return "of several schemas is not served; write them as one" if len(parts) > 1 else None


def _type(kind: str | list[str], schema: dict[str, Any]) -> str | None:
    kinds = kind if isinstance(kind, list) else [kind]
    examples: dict[str, list[Any]] = {"properties": [{}], "prefixItems": [[]], "const": [schema.get("const")]}
    examples["enum"] = schema.get("enum", [])
    for form in examples.keys() & schema.keys():
        for value in examples[form]:
            if not any(VALIDATOR.TYPE_CHECKER.is_type(value, one) for one in kinds):
                return f"{kind!r} does not go with {form!r}, of which it excludes {value!r}"
    return None


Check = Callable[[Any, dict[str, Any]], str | None]
CHECKS: dict[str, Check] = {
    "minLength": _count_below("maxLength"),
    "maxLength": _count,
    "minItems": _count_below("maxItems"),
    "maxItems": _count,
    "minProperties": _properties_count,
    "required": _required,
    "enum": _enum,
    "allOf": _all_of,
    "type": _type,
}


def _typed(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with `anyOf` whose `type` is said by each of the alternatives, as far as they say none."""
    kind, parts = schema["type"], schema["anyOf"]
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
