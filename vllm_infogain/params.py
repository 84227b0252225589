"""Per-request decoding parameters: parsed and checked once, at admission, into one frozen record.

Everything downstream (scheduler, worker, sampler) reads `DecodingParams` and applies no default of its own.
This module imports neither torch nor vLLM.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

LOOKAHEAD_SAMPLERS = ("info_gain", "lookum", "beam")
# Write a number of positions that the schedule gives, the best by a score.
SCORE_SAMPLERS = ("entropy", "confidence", "margin", "uniform", "ar", "klass", "pc")
# Write as many positions as a bound on their uncertainty allows.
ADAPTIVE_SAMPLERS = ("eb", "threshold", "factor")
SAMPLERS = (*LOOKAHEAD_SAMPLERS, *SCORE_SAMPLERS, *ADAPTIVE_SAMPLERS, "best_of_n")
POSITION_SCORES = ("sampled", "confidence", "entropy", "margin")
MAX_CANDIDATES = 64
MAX_SEQUENCES = 256  # of one request at once: num_candidates x beam_width, or num_generations


class ParameterError(ValueError):
    """A request parameter that cannot be served: which one, its value, and what to do about it."""

    def __init__(self, parameter: str, value: Any, remedy: str) -> None:
        super().__init__(f"{parameter}={value!r}: {remedy}")
        self.parameter = parameter
        self.value = value


def integer(low: int, high: int | None = None) -> Callable[[str, Any], int]:
    span = f"from {low} to {high}" if high is not None else f"of {low} or more"

    def parse(name: str, value: Any) -> int:
        # JSON has one kind of number: 4.0 is as good as 4.
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or value < low or (high is not None and value > high):
            raise ParameterError(name, value, f"give a whole number {span}")
        return value

    return parse


def number(low: float, high: float = math.inf) -> Callable[[str, Any], float]:
    span = f"from {low:g} to {high:g}" if high < math.inf else f"of {low:g} or more"

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


def knob(default: Any, parse: Callable[[str, Any], Any]) -> Any:
    """A field that a request may set by its name in `extra_args` / `vllm_xargs`."""
    return field(default=default, metadata={"parse": parse})


@dataclass(frozen=True)
class DecodingParams:
    """How one canvas is decoded. Letters are those of the paper; probabilities and entropies at temperature 1."""

    sampler: str = knob("info_gain", choice(*SAMPLERS))
    # Which positions are written in a step, and how many.
    tokens_per_step: int = knob(1, integer(1))  # K, where the schedule is `fixed`
    schedule: str = knob("fixed", choice("fixed", "linear", "cosine", "dream"))
    steps: int | None = knob(None, integer(1))  # S, for the whole canvas; required by every schedule but fixed
    block_length: int = knob(32, integer(0))  # canvas positions per block; 0: the whole canvas is one block
    position_temperature: float | None = knob(None, number(0))  # tau_pos; None: `tau_position`
    # Look-ahead: which actions are compared, and by what.
    num_candidates: int = knob(8, integer(1, MAX_CANDIDATES))  # N
    position_score: str = knob("sampled", choice(*POSITION_SCORES))  # phi
    bypass_threshold: float = knob(0.8, number(0))  # gamma; 1 or more: never bypass
    bypass_mode: str = knob("fill", choice("fill", "only"))  # sure positions: fill the rest of K, or write only these
    state_uncertainty: str = knob("mean", choice("mean", "sum"))  # how H(z) joins the positions' entropies
    uncertainty_scope: str = knob("block", choice("block", "sequence"))  # masked positions that count for H(z)
    cost_weight: float = knob(1.0, number(0))  # J = IG - cost_weight x C
    prune: bool = knob(False, switch)  # evaluate the cheapest first, then only those whose cost leaves them a chance
    beam_width: int = knob(4, integer(1, 32))  # B, for `beam`
    num_generations: int = knob(4, integer(1, MAX_SEQUENCES))  # for `best_of_n`
    # Samplers without look-ahead.
    klass_epsilon: float = knob(5e-4, number(0))  # nats of KL to the previous step below which a position is stable
    pc_lambda: float = knob(0.25, number(0))
    pc_alpha: float = knob(10.0, number(0))
    entropy_bound: float = knob(0.1, number(0))  # nats, for `eb`
    threshold: float = knob(0.9, number(0, 1))  # probability, for `threshold`
    factor: float = knob(1.0, number(0))  # for `factor`
    # Keys and values of models with full attention: what is computed anew in every forward.
    cache: str = knob("none", choice("none", "prefix", "dual"))  # none: everything (exact); see sampling/extent.py
    cache_refresh: int = knob(0, integer(0))  # steps between two full forwards inside a block; 0: one per block
    # Tokens and output.
    eos_penalty: float = knob(0.0, number(0))  # subtracted once from the logit of every EOS token
    return_trajectory: bool = knob(False, switch)  # report every step

    # Taken from vLLM's own SamplingParams, and from the model.
    temperature: float = 1.0  # tau_token; 0: the most likely token
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    seed: int = 0
    canvas_length: int = 16  # max_tokens
    stop_ids: tuple[int, ...] = ()  # tokens after which the rest of the canvas is dropped
    eos_ids: tuple[int, ...] = ()  # the model's EOS tokens, for eos_penalty
    absolute_blocks: bool = False  # blocks end at multiples of block_length from the prompt's start, not the canvas's
    block_causal: bool = False  # a block attends to itself and to those before it; implies absolute_blocks
    shift: int = 0  # position p is read off row p - shift of the logits: 1 where a row predicts the next position

    @property
    def looks_ahead(self) -> bool:
        return self.sampler in LOOKAHEAD_SAMPLERS

    @property
    def tau_position(self) -> float:
        """`position_temperature` with its sampler's default filled in."""
        if self.position_temperature is None:
            # Generations that all take the best positions would, at token temperature 0, all be the same.
            return 0.1 if self.looks_ahead or self.sampler == "best_of_n" else 0.0
        return self.position_temperature

    @property
    def most_sequences(self) -> int:
        """The largest number of sequences that one step can ask to have evaluated."""
        if self.sampler == "best_of_n":
            return self.num_generations
        if not self.looks_ahead:
            return 1
        return self.num_candidates * (self.beam_width if self.sampler == "beam" else 1)

    @property
    def is_cached(self) -> bool:
        """Whether keys and values outlive a forward."""
        return self.block_causal or self.cache != "none"

    def window(self, prompt_length: int) -> int:
        """The most positions in which the candidates of one state can have K/V of their own."""
        if self.block_causal:
            return self.block_length
        block = self.block_length or self.canvas_length
        whole = prompt_length + self.canvas_length
        behind = {"none": whole, "prefix": self.canvas_length, "dual": min(block, self.canvas_length)}[self.cache]
        return behind + self.shift  # the row that the block's first position is read off lies before it

    @property
    def contexts(self) -> int:
        """The largest number of states whose keys and values are kept side by side; 1 also where none are kept."""
        if not self.is_cached:
            return 1
        return {"beam": self.beam_width, "best_of_n": self.num_generations}.get(self.sampler, 1)


PARSERS: dict[str, Callable[[str, Any], Any]] = {
    field.name: field.metadata["parse"] for field in fields(DecodingParams) if field.metadata
}


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
    top_k: int = 0,
    top_p: float = 1.0,
    stop_ids: tuple[int, ...] = (),
    eos_ids: tuple[int, ...] = (),
    absolute_blocks: bool = False,
    block_causal_size: int = 0,
    shift: int = 0,
) -> DecodingParams:
    """One request's record: its own keys over the server's defaults over the fields' defaults.

    Args:
        block_causal_size: positions per block of a model whose attention is causal over blocks, else 0.
        shift: rows of the logits by which the one that predicts a position lies before it, 0 or 1.

    Raises:
        ParameterError: for an unknown key, a value out of range, or values that do not go together.
    """
    assert not (shift and block_causal_size), "the row before a block is of the block before: no family does both"
    knobs = {**parse_knobs(defaults), **parse_knobs(given)}
    if block_causal_size:
        check_block_causal(knobs, block_causal_size)
        knobs["block_length"] = block_causal_size
    params = DecodingParams(
        **knobs,
        temperature=number(0)("temperature", temperature),
        top_k=max(0, integer(-1)("top_k", top_k)),  # vLLM's -1, too, means all tokens
        top_p=number(0, 1)("top_p", top_p),
        seed=seed,
        canvas_length=integer(1)("max_tokens", canvas_length),
        stop_ids=stop_ids,
        eos_ids=eos_ids,
        absolute_blocks=absolute_blocks or block_causal_size > 0,
        block_causal=block_causal_size > 0,
        shift=shift,
    )
    if "block_length" in given and not block_causal_size and params.block_length > canvas_length:
        raise ParameterError(
            "block_length", params.block_length, f"give at most max_tokens={canvas_length}, or 0 for the whole canvas"
        )
    if params.schedule != "fixed" and params.steps is None:
        raise ParameterError("steps", None, f"schedule={params.schedule!r} needs the number of steps; give 1 or more")
    if params.most_sequences > MAX_SEQUENCES:
        raise ParameterError(
            "beam_width", params.beam_width, f"num_candidates x beam_width must be at most {MAX_SEQUENCES}"
        )
    if params.sampler == "beam" and params.bypass_mode == "only" and params.bypass_threshold < 1:
        raise ParameterError(
            "bypass_mode",
            "only",
            "the hypotheses of a beam write equally many positions; give 'fill', or bypass_threshold 1",
        )
    if params.cache == "dual" and params.looks_ahead and params.uncertainty_scope == "sequence":
        raise ParameterError(
            "cache", "dual",
            "only the block's logits are computed, uncertainty_scope='sequence' needs those behind it; give 'prefix'",
        )  # fmt: skip
    if params.top_p == 0:
        raise ParameterError("top_p", 0, "give a number above 0, up to 1")
    return params


def check_block_causal(knobs: Mapping[str, Any], size: int) -> None:
    """Refuse what has no meaning for a model whose blocks of `size` attend to nothing behind them."""
    for name, fitting in (("block_length", size), ("cache", "none"), ("uncertainty_scope", "block")):
        if knobs.get(name, fitting) != fitting:
            raise ParameterError(
                name, knobs[name], f"the model attends block by block, {size} positions each; give {fitting!r}"
            )
