"""Per-request decoding parameters: parsed and checked once, at admission, into one frozen record.

Everything downstream (scheduler, worker, sampler) reads `DecodingParams` and applies no default of its own.
This module imports neither torch nor vLLM.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

LOOKAHEAD_SAMPLERS = ("info_gain", "lookum")
GREEDY_SAMPLERS = ("entropy", "confidence", "margin", "uniform", "ar")
SAMPLERS = LOOKAHEAD_SAMPLERS + GREEDY_SAMPLERS
POSITION_SCORES = ("sampled", "confidence", "entropy", "margin")
STATE_UNCERTAINTIES = ("mean", "sum")
MAX_CANDIDATES = 64


class ParameterError(ValueError):
    """A request parameter that cannot be served: which one, its value, and what to do about it."""

    def __init__(self, parameter: str, value: Any, remedy: str) -> None:
        super().__init__(f"{parameter}={value!r}: {remedy}")
        self.parameter = parameter
        self.value = value


@dataclass(frozen=True)
class DecodingParams:
    """How one canvas is decoded. Field names are the keys of `extra_args` / `vllm_xargs`, but for the last three."""

    sampler: str = "info_gain"  # one of SAMPLERS
    num_candidates: int = 8  # N: candidate actions proposed per step
    position_temperature: float | None = None  # tau_pos; None: 0.1 with look-ahead, 0 without
    position_score: str = "sampled"  # phi, for look-ahead samplers: one of POSITION_SCORES
    bypass_threshold: float = 0.8  # gamma, a probability; 1 or more: never bypass
    tokens_per_step: int = 1  # K
    block_length: int = 32  # canvas positions per block; 0: the whole canvas is one block
    state_uncertainty: str = "mean"  # how H(z) joins the entropies of the masked positions
    return_trajectory: bool = False  # report every step: positions, tokens, entropies, J of the candidates

    # Taken from vLLM's own SamplingParams.
    temperature: float = 1.0  # tau_token; 0: the most likely token
    seed: int = 0
    canvas_length: int = 16  # max_tokens

    @property
    def looks_ahead(self) -> bool:
        return self.sampler in LOOKAHEAD_SAMPLERS

    @property
    def tau_position(self) -> float:
        """`position_temperature` with its sampler's default filled in."""
        if self.position_temperature is None:
            return 0.1 if self.looks_ahead else 0.0
        return self.position_temperature


def _integer(low: int, high: int | None = None) -> Callable[[str, Any], int]:
    span = f"from {low} to {high}" if high is not None else f"of {low} or more"

    def parse(name: str, value: Any) -> int:
        # HTTP has no integers of its own: JSON's 4.0 is as good as 4.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise ParameterError(name, value, f"give a whole number {span}")
        return value

    return parse


def _number(low: float) -> Callable[[str, Any], float]:
    def parse(name: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < low:
            raise ParameterError(name, value, f"give a finite number of {low:g} or more")
        return float(value)

    return parse


def _choice(options: tuple[str, ...]) -> Callable[[str, Any], str]:
    def parse(name: str, value: Any) -> str:
        if value not in options:
            raise ParameterError(name, value, f"give one of {', '.join(options)}")
        return value

    return parse


def _switch(name: str, value: Any) -> bool:
    # Over HTTP a boolean arrives as 0 or 1.
    if not isinstance(value, bool | int | float) or value not in (0, 1):
        raise ParameterError(name, value, "give true or false")
    return bool(value)


PARSERS: dict[str, Callable[[str, Any], Any]] = {
    "sampler": _choice(SAMPLERS),
    "num_candidates": _integer(1, MAX_CANDIDATES),
    "position_temperature": _number(0),
    "position_score": _choice(POSITION_SCORES),
    "bypass_threshold": _number(0),
    "tokens_per_step": _integer(1),
    "block_length": _integer(0),
    "state_uncertainty": _choice(STATE_UNCERTAINTIES),
    "return_trajectory": _switch,
}
assert set(PARSERS) == {field.name for field in fields(DecodingParams)} - {"temperature", "seed", "canvas_length"}


def parse_knobs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys and values of `extra_args` (or of the server-wide defaults).

    Raises:
        ParameterError: naming the key, its value and what is accepted.
    """
    for name in given:
        if name not in PARSERS:
            raise ParameterError(str(name), given[name], f"unknown parameter; known are {', '.join(PARSERS)}")
    return {name: PARSERS[name](name, value) for name, value in given.items()}


def parse_params(
    given: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    temperature: float,
    seed: int,
    canvas_length: int,
) -> DecodingParams:
    """One request's record: its own keys over the server's defaults over the fields' defaults.

    Raises:
        ParameterError: for an unknown key or a value out of range.
    """
    knobs = {**parse_knobs(defaults), **parse_knobs(given)}
    block_length = knobs.get("block_length", DecodingParams.block_length)
    if "block_length" in given and block_length > canvas_length:
        raise ParameterError(
            "block_length", block_length, f"give at most max_tokens={canvas_length}, or 0 for the whole canvas"
        )
    temperature = _number(0)("temperature", temperature)
    return DecodingParams(**knobs, temperature=temperature, seed=seed, canvas_length=canvas_length)
