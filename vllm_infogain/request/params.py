"""Per-request decoding parameters: parsed and checked once, at admission, into one frozen record.

Everything downstream (scheduler, worker, sampler) reads `DecodingParams` and applies no default of its own.
This module imports neither torch nor vLLM.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from vllm_infogain.request.constraints import Constraints
from vllm_infogain.request.fields import (
    ParameterError,
    choice,
    integer,
    knob,
    number,
    switch,
    text,
    whole_numbers,
    without_none,
)
from vllm_infogain.request.image_tokens import TEXT_ONLY, ImageTokens, picture_knobs
from vllm_infogain.request.presets import PRESETS, of_preset

LOOKAHEAD_SAMPLERS = ("info_gain", "lookum", "adaptive", "beam")
# Write a number of positions that the schedule gives, the best by a score.
SCORE_SAMPLERS = ("entropy", "confidence", "margin", "uniform", "ar", "klass", "pc", "maskgit")
# Write as many positions as a bound on their uncertainty allows.
ADAPTIVE_SAMPLERS = ("adaptive", "eb", "threshold", "factor")
SAMPLERS = tuple(dict.fromkeys((*LOOKAHEAD_SAMPLERS, *SCORE_SAMPLERS, *ADAPTIVE_SAMPLERS, "best_of_n")))
# Defaults of one sampler that are not those of all, below the server's.
SAMPLER_DEFAULTS: dict[str, dict[str, Any]] = {
    "adaptive": {"bypass_threshold": 0.9, "entropy_bound": 0.5, "num_candidates": 3, "state_uncertainty": "sum"},
}
POSITION_SCORES = ("sampled", "confidence", "entropy", "margin")
MAX_CANDIDATES = 64
MAX_STEPS = 1 << 16
MAX_GUIDANCE = 100
MAX_SEQUENCES = 256  # of one request at once: num_candidates x beam_width, or num_generations


@dataclass(frozen=True)
class DecodingParams:
    """How one canvas is decoded. Letters are those of the paper; probabilities and entropies at temperature 1."""

    preset: str | None = knob(None, choice(*PRESETS))  # stands for several of the knobs below; see presets.py
    sampler: str = knob("info_gain", choice(*SAMPLERS))
    # Which positions are written in a step, and how many.
    tokens_per_step: int = knob(1, integer(1))  # K, where the schedule is `fixed`
    schedule: str = knob("fixed", choice("fixed", "linear", "cosine", "maskgit", "dream", "per_block"))
    steps: int | None = knob(
        None, integer(1, MAX_STEPS)
    )  # S, the most for the whole canvas, or per block; not for `fixed`
    # Positions per block; 0: the whole canvas is one. Of a block-causal model also how it attends.
    block_length: int = knob(32, integer(0))
    position_temperature: float | None = knob(None, number(0))  # tau_pos; None: `tau_position`
    # Look-ahead: which actions are compared, and by what.
    num_candidates: int = knob(8, integer(1, MAX_CANDIDATES), of=LOOKAHEAD_SAMPLERS)  # N
    position_score: str = knob("sampled", choice(*POSITION_SCORES), of=LOOKAHEAD_SAMPLERS)  # phi
    bypass_threshold: float = knob(0.8, number(0), of=LOOKAHEAD_SAMPLERS)  # gamma; 1 or more: never bypass
    # Sure positions: fill the rest of K, or write only these.
    bypass_mode: str = knob("fill", choice("fill", "only"), of=LOOKAHEAD_SAMPLERS)
    # How H(z) joins the positions' entropies, and which masked positions count for it: the active block's, as the
    # paper's text has it, or the canvas's, as its authors' scorer.
    state_uncertainty: str = knob("mean", choice("mean", "sum"), of=LOOKAHEAD_SAMPLERS)
    uncertainty_scope: str = knob("block", choice("block", "sequence"), of=LOOKAHEAD_SAMPLERS)
    cost_weight: float = knob(1.0, number(0), of=("info_gain", "adaptive", "beam"))  # J = IG - cost_weight x C
    # Evaluate the cheapest first, then only those whose cost leaves them a chance.
    prune: bool = knob(False, switch, of=("info_gain", "lookum", "adaptive"))
    beam_width: int = knob(4, integer(1, 32), of=("beam",))  # B
    num_generations: int = knob(4, integer(1, MAX_SEQUENCES), of=("best_of_n",))
    # Samplers without look-ahead.
    # Nats of KL to the previous step below which a position is stable.
    klass_epsilon: float = knob(5e-4, number(0), of=("klass",))
    pc_lambda: float = knob(0.25, number(0), of=("pc",))
    pc_alpha: float = knob(10.0, number(0), of=("pc",))
    entropy_bound: float = knob(0.1, number(0), of=("eb", "adaptive"))  # nats
    threshold: float = knob(0.9, number(0, 1), of=("threshold",))  # probability
    factor: float = knob(1.0, number(0), of=("factor",))
    # Keys and values of models with full attention: what is computed anew in every forward.
    cache: str = knob("none", choice("none", "prefix", "dual"))  # none: everything (exact); see ForwardWindow
    cache_refresh: int = knob(0, integer(0))  # steps between two full forwards inside a block; 0: one per block
    # Infilling: what the canvas holds from the start; see canvas.py.
    diffusion_seed_canvas: tuple[int, ...] | None = knob(None, whole_numbers)  # [canvas] token ids
    diffusion_pinned: tuple[int, ...] | None = knob(None, whole_numbers)  # its places that are kept; None: all it fills
    suffix_token_ids: tuple[int, ...] = knob((), whole_numbers)  # text behind the canvas: read, never returned
    # Guidance: logits are (1 + g) times those of the sequence less g times those of its guide; see guidance.py.
    guidance_scale: float = knob(0.0, number(0, MAX_GUIDANCE))  # g; 0: there is no guide
    guidance_prompt_ids: tuple[int, ...] | None = knob(None, whole_numbers)  # of the guide; None: the prompt, masked
    negative_prompt: str | None = knob(None, text)  # the same as text; whoever has a tokenizer makes ids of it
    image: bool = knob(False, switch)  # the canvas holds the codes of a picture
    # Tokens and output.
    eos_penalty: float = knob(0.0, number(0, 1e4))  # subtracted once from the logit of every EOS token
    eos_last: bool = knob(False, switch)  # write tokens that end the text only where the block has no others to write
    return_trajectory: bool = knob(False, switch)  # report every step
    stream_mode: str = knob("block", choice("block", "canvas"))  # what a stream holds: finished blocks, or every step

    # Taken from vLLM's own SamplingParams, and from the model.
    temperature: float = 1.0  # tau_token; 0: the most likely token
    top_k: int = 0  # 0: all tokens
    top_p: float = 1.0
    min_p: float = 0.0
    logprobs: int | None = None  # alternatives reported beside each written token; None: no log-probabilities
    logprob_token_ids: tuple[int, ...] = ()  # these are the alternatives, not the most likely ones
    constraints: Constraints = field(default_factory=Constraints)
    is_structured: bool = False  # the canvas must match a grammar
    seed: int = 0
    canvas_length: int = 16  # max_tokens
    stop_ids: tuple[int, ...] = ()  # tokens after which the rest of the canvas is dropped
    eos_ids: tuple[int, ...] = ()  # the model's EOS tokens, for eos_penalty and eos_last
    absolute_blocks: bool = False  # blocks end at multiples of block_length from the prompt's start, not the canvas's
    columns: tuple[int, int] | None = None  # the only tokens, from the first up to the second, that are read; None: all
    block_causal: bool = False  # a block attends to itself and to those before it; implies absolute_blocks
    shift: int = 0  # position p is read off row p - shift of the logits: 1 where a row predicts the next position

    @property
    def looks_ahead(self) -> bool:
        return self.sampler in LOOKAHEAD_SAMPLERS

    @property
    def tau_position(self) -> float:
        """`position_temperature` with its sampler's default filled in."""
        if self.position_temperature is None:
            if self.sampler in ("maskgit", "adaptive"):
                return 1.0  # maskgit's to begin with: it falls from step to step
            # Generations that all take the best positions would, at token temperature 0, all be the same.
            return (0.4 if self.image else 0.1) if self.looks_ahead or self.sampler == "best_of_n" else 0.0
        # So low a temperature takes the best score all the same, and scores divided by it could overflow.
        return self.position_temperature if self.position_temperature > 1e-6 else 0.0

    @property
    def most_sequences(self) -> int:
        """The largest number of sequences that one step can ask to have evaluated."""
        if self.sampler == "best_of_n":
            return self.num_generations
        if not self.looks_ahead:
            return 1
        return self.num_candidates * (self.beam_width if self.sampler == "beam" else 1)

    @property
    def writes_one(self) -> bool:
        """Whether a step may write one position only."""
        return is_joint(self.is_structured, self.constraints)

    @property
    def end_ids(self) -> tuple[int, ...]:
        """Tokens that end the text: EOS, and the request's own stop tokens."""
        return tuple({*self.eos_ids, *self.stop_ids})

    @property
    def keeps_steps(self) -> bool:
        return self.return_trajectory or self.stream_mode == "canvas"

    @property
    def is_cached(self) -> bool:
        """Whether keys and values outlive a forward."""
        return self.block_causal or self.cache != "none"

    @property
    def is_guided(self) -> bool:
        return self.guidance_scale > 0

    def prompt_lengths(self, prompt_length: int) -> tuple[int, ...]:
        """Of a sequence and, if it is guided, of its guide."""
        if not self.is_guided:
            return (prompt_length,)
        return prompt_length, prompt_length if self.guidance_prompt_ids is None else len(self.guidance_prompt_ids)

    def length(self, prompt_length: int) -> int:
        """Positions of one sequence: prompt, canvas and suffix."""
        return prompt_length + self.canvas_length + len(self.suffix_token_ids)

    def context_lengths(self, prompt_length: int) -> list[int]:
        """Positions of all whose K/V a request holds from its start to its end: cached states, then their guides."""
        lengths = [self.length(prompt) for prompt in self.prompt_lengths(prompt_length)]
        return [length for length in lengths for _ in range(self.num_cached_states)]

    def windows(self, prompt_length: int) -> list[int]:
        """`window` of a sequence and, if it is guided, of its guide; never more than there are positions."""
        return [min(self.window(prompt), self.length(prompt)) for prompt in self.prompt_lengths(prompt_length)]

    def window(self, prompt_length: int) -> int:
        """The most positions in which the candidates of one state can have K/V of their own."""
        if self.block_causal:
            return self.block_length
        block = self.block_length or self.canvas_length
        whole = self.length(prompt_length)
        behind = {"none": whole, "prefix": whole - prompt_length, "dual": min(block, self.canvas_length)}[self.cache]
        return behind + self.shift  # the row that the block's first position is read off lies before it

    @property
    def num_cached_states(self) -> int:
        """The largest number of states whose keys and values are cached side by side; 1 also where none are."""
        if not self.is_cached:
            return 1
        return {"beam": self.beam_width, "best_of_n": self.num_generations}.get(self.sampler, 1)


PARSERS: dict[str, Callable[[str, Any], Any]] = {
    one.name: one.metadata["parse"] for one in fields(DecodingParams) if one.metadata
}
# Samplers that read a parameter; the others have no use for it.
READERS: dict[str, frozenset[str]] = {
    one.name: one.metadata["of"] or frozenset(SAMPLERS) for one in fields(DecodingParams) if one.metadata
}


def parse_knobs(given: Mapping[str, Any]) -> dict[str, Any]:
    """Check the keys and values of `extra_args` (or of the server-wide defaults); None is as left out.

    Raises:
        ParameterError: naming the key, its value and what is accepted.
    """
    given = without_none(given)
    for name in given:
        if name not in PARSERS:
            raise ParameterError(str(name), given[name], f"unknown parameter; known are {', '.join(PARSERS)}")
    return {name: PARSERS[name](name, value) for name, value in given.items()}


def parse_params(
    given: Mapping[str, Any],
    *,
    defaults: Mapping[str, Any],
    temperature: float,
    canvas_length: int,
    block_causal_size: int = 0,
    absolute_blocks: bool = False,
    image_tokens: ImageTokens | None = None,
    **own: Any,
) -> DecodingParams:
    """One request's record: its own keys over those of its preset, the server's defaults, and the fields' defaults.

    Args:
        given, defaults: the request's knobs and the server's.
        temperature, canvas_length: checked here; vLLM's `temperature` and `max_tokens`.
        block_causal_size: of a model whose attention is causal over blocks, the default `block_length`; else 0.
        image_tokens: of a model that writes pictures.
        own: the record's other fields that are no knobs.

    Raises:
        ParameterError: for an unknown key, a value out of range, or values that do not go together.
    """
    assert not (own.get("shift") and block_causal_size), "the row before a block is of the block before"
    asked, below = parse_knobs(given), parse_knobs(defaults)
    writes_one = is_joint(own.get("is_structured", False), own.get("constraints", Constraints()))
    kind = {"writes_one": writes_one, "image": asked.get("image", False)}
    preset = of_preset(asked, **kind)
    below = below if preset else of_preset(below, **kind) | below
    own_defaults = SAMPLER_DEFAULTS.get((below | preset | asked).get("sampler", DecodingParams.sampler), {})
    below = own_defaults | below
    knobs = below | preset | asked
    if knobs.get("image"):
        knobs = picture_knobs(preset | asked, below, image_tokens)
        assert image_tokens is not None, "else it is refused"
        if writes_one:  # said by its name, before its steps are
            name = "structured_outputs" if own.get("is_structured") else "bad_words"
            raise ParameterError(name, "asked for", TEXT_ONLY)
        # Nothing but codes is ever written: no token of them ends anything.
        own |= {"columns": image_tokens.columns, "stop_ids": (), "eos_ids": ()}
    if block_causal_size:
        knobs.setdefault("block_length", block_causal_size)
        check_block_causal(knobs)
    own["top_k"] = max(0, integer(-1)("top_k", own.get("top_k", 0)))  # vLLM's -1, too, means all tokens
    own["top_p"] = number(0, 1)("top_p", own.get("top_p", 1.0))
    params = DecodingParams(
        **knobs,
        **own,
        temperature=number(0)("temperature", temperature),
        canvas_length=integer(1)("max_tokens", canvas_length),
        absolute_blocks=absolute_blocks or block_causal_size > 0,
        block_causal=block_causal_size > 0,
    )
    if "block_length" in asked and not block_causal_size and params.block_length > canvas_length:
        raise ParameterError(
            "block_length", params.block_length, f"give at most max_tokens={canvas_length}, or 0 for the whole canvas"
        )
    check_together(params)
    plain = DecodingParams(**below)
    check_read({name: value for name in asked if (value := knobs[name]) != getattr(plain, name)}, params)
    if preset and not any(params.sampler in READERS[name] for name in preset.keys() - asked.keys()):
        raise ParameterError(
            "preset", params.preset, f"nothing of it is left beside sampler={params.sampler!r}; leave one of them out"
        )
    return params


def is_joint(is_structured: bool, constraints: Constraints) -> bool:
    """Whether what one position may hold depends on the others: then a step writes one of them."""
    return is_structured or bool(constraints.banned_words)


def check_read(asked: Mapping[str, Any], params: DecodingParams) -> None:
    """Refuse what a request asks for and its decoding would not heed.

    Args:
        asked: the request's own parameters whose values are not the server's defaults: those ask for nothing.
    """
    for name, value in asked.items():
        readers = READERS[name]
        if params.sampler not in readers:
            names = ", ".join(sampler for sampler in SAMPLERS if sampler in readers)
            raise ParameterError(
                name, value,
                f"belongs to {names}; sampler={params.sampler!r} has no use for it; leave it out, or make it the "
                "server's default",
            )  # fmt: skip
    if "steps" in asked and params.schedule == "fixed":
        raise ParameterError(
            "steps", params.steps, "schedule='fixed' writes tokens_per_step positions per step; give another schedule"
        )
    if "tokens_per_step" in asked and params.schedule != "fixed":
        raise ParameterError(
            "tokens_per_step", params.tokens_per_step,
            f"schedule={params.schedule!r} spreads the canvas over steps; leave it out, or give schedule='fixed'",
        )  # fmt: skip
    if "guidance_prompt_ids" in asked and not params.is_guided:
        raise ParameterError(
            "guidance_prompt_ids", list(params.guidance_prompt_ids or ()),
            "nothing is guided; give guidance_scale above 0 too, or leave it out",
        )  # fmt: skip
    if "cache_refresh" in asked and (params.cache == "none" or params.block_causal):
        raise ParameterError(
            "cache_refresh",
            params.cache_refresh,
            "nothing that ages is kept; leave it out, or give cache another value",
        )


def check_together(params: DecodingParams) -> None:
    """Refuse values that do not go together, each of which is fine by itself."""
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
    if params.guidance_prompt_ids == ():
        raise ParameterError("guidance_prompt_ids", [], "give at least one token, or leave it out")
    if params.negative_prompt is not None:
        remedy = "here is no tokenizer to make token ids of it; give them as guidance_prompt_ids"
        raise ParameterError("negative_prompt", params.negative_prompt, remedy)
    if params.eos_last and not params.end_ids:
        raise ParameterError("eos_last", True, "no EOS token is known; name one, or give stop_token_ids")
    if params.top_p == 0:
        raise ParameterError("top_p", 0, "give a number above 0, up to 1")
    if params.stream_mode == "canvas" and params.sampler in ("beam", "best_of_n"):
        raise ParameterError(
            "stream_mode", "canvas", f"nothing that sampler={params.sampler!r} writes is sure to stay; give 'block'"
        )
    if params.writes_one:
        reason = "structured output and banned words of several tokens allow one position per step"
        if params.sampler in ADAPTIVE_SAMPLERS:
            raise ParameterError("sampler", params.sampler, f"{reason}, and it writes several; give another")
        if params.schedule != "fixed":
            raise ParameterError("schedule", params.schedule, f"{reason}; give 'fixed'")
        if params.tokens_per_step > 1:
            raise ParameterError("tokens_per_step", params.tokens_per_step, f"{reason}; give 1")


def check_block_causal(knobs: Mapping[str, Any]) -> None:
    """Refuse what has no meaning for a model whose blocks attend to nothing behind them."""
    fitting = {"cache": "none", "uncertainty_scope": "block", "suffix_token_ids": ()}
    for name, value in fitting.items():
        if knobs.get(name, value) != value:
            raise ParameterError(name, knobs[name], f"the model attends block by block; give {value!r}")
    if knobs["block_length"] == 0:
        raise ParameterError(
            "block_length", 0, "the model attends block by block, counted from the prompt's start; give 1 or more"
        )
