"""Reading single values: parsers of parameters and settings, and their error. Imports neither torch nor vLLM."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import field
from typing import Any


class ParameterError(ValueError):
    """A request parameter that cannot be served: which one, its value, and what to do about it."""

    def __init__(self, parameter: str, value: Any, remedy: str) -> None:
        super().__init__(f"{parameter}={value!r}: {remedy}")
        self.parameter = parameter
        self.value = value


# Beyond these no parameter means anything, and arithmetic in 32 bits, or vLLM's messages, would fail.
LARGEST_INTEGER = 2**31 - 1
LARGEST_NUMBER = 1e6


def integer(low: int, high: int = LARGEST_INTEGER) -> Callable[[str, Any], int]:
    span = f"from {low} to {high}" if high < LARGEST_INTEGER else f"of {low} or more, below 2^31"

    def parse(name: str, value: Any) -> int:
        # JSON has one kind of number: 4.0 is as good as 4.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise ParameterError(name, value, f"give a whole number {span}")
        return value

    return parse


def number(low: float, high: float = LARGEST_NUMBER) -> Callable[[str, Any], float]:
    span = f"from {low:g} to {high:g}"

    def parse(name: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or not low <= value <= high:
            raise ParameterError(name, value, f"give a finite number {span}")
        return float(value)

    return parse


def choice(*options: str) -> Callable[[str, Any], str]:
    def parse(name: str, value: Any) -> str:
        if value not in options:
            raise ParameterError(name, value, f"give one of {', '.join(options)}")
        return value

    return parse


def switch(name: str, value: Any) -> bool:
    # Over HTTP a boolean arrives as 0 or 1.
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise ParameterError(name, value, "give true or false")
    return bool(value)


def without_none(values: Mapping[str, Any] | None) -> dict[str, Any]:
    """What is given. None means not given: a table, such as Arrow's, fills its absent cells with it."""
    return {name: value for name, value in (values or {}).items() if value is not None}


def text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ParameterError(name, value, "give a text")
    return value


def whole_numbers(name: str, value: Any) -> tuple[int, ...]:
    """A list of token ids, or of places."""
    if not isinstance(value, list | tuple):
        raise ParameterError(name, value, "give a list of whole numbers of 0 or more")
    return tuple(integer(0)(name, element) for element in value)


def knob(default: Any, parse: Callable[[str, Any], Any], *, of: Collection[str] = ()) -> Any:
    """A field that a request may set by its name in `extra_args` / `vllm_xargs`.

    Args:
        of: the samplers that read it; none given: all do.
    """
    return field(default=default, metadata={"parse": parse, "of": frozenset(of)})
