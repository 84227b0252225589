"""Requests that differ in everything, valid and not, drawn from a seed: what a public server is sent.

They are for the embedded model, of 64 positions. `Call` is what is sent, `Answer` what a client can compare.
"""

import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from knobs import fitting

from vllm_infogain.embedded import SERVED_NAME
from vllm_infogain.embedded.tokenizer import MASK, MAX_LENGTH, VOCAB
from vllm_infogain.request.params import ADAPTIVE_SAMPLERS, POSITION_SCORES, SAMPLERS

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
LONGEST_CANVAS = 32
TEXTS = (
    "sudoku\n1...\n..2.\n.3..\n...4", "countdown 3 7 8 = 29", "countdown 2 5 9 = 43", "multiply 6*7", "multiply 3*4",
    "judge 12+7*3=33", "judge 1+1=3", "7", " ", "naïve ☃ é",
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    path: str
    body: dict[str, Any]  # without `stream`: the same answer is due either way
    refused: str | None = None  # the parameter that a refusal must name; None: valid

    def __str__(self) -> str:
        return f"POST {self.path} {self.body!r}" + (f", to be refused for {self.refused}" if self.refused else "")


def valid_call(rng: random.Random) -> Call:
    """A request that must be served, always with the same answer: seeded, or at temperature 0."""
    kind = rng.choice((plain_call, plain_call, plain_call, _constrained_call, _structured_call, _infilling_call))
    return kind(rng)


def plain_call(rng: random.Random) -> Call:
    path = rng.choice((COMPLETIONS, COMPLETIONS, CHAT))
    prompt = _prompt(rng, path)
    length = rng.randint(1, min(LONGEST_CANVAS, MAX_LENGTH - 2 - len(prompt)))
    temperature = rng.choice((0, 0, 0.3, 1, 1.5))
    samples = rng.choice((1, 1, 1, 2, 3)) if temperature else 1  # vLLM: "n must be 1 when using greedy sampling"
    body = {"model": SERVED_NAME, "max_tokens": length, "temperature": temperature, "n": samples}
    body["return_token_ids"] = True
    body |= {"prompt": prompt} if path == COMPLETIONS else {"messages": [{"role": "user", "content": prompt}]}
    if temperature or rng.random() < 0.3:
        body["seed"] = rng.randrange(1 << 31)
    optional = {
        "top_k": rng.choice((-1, 0, 1, 5)), "top_p": rng.choice((0.1, 0.9, 1.0)), "min_p": rng.choice((0.0, 0.1)),
        "ignore_eos": rng.random() < 0.7, "stop": rng.choice(("=", ["yes", "no"], "\n")),
        "stop_token_ids": [VOCAB["1"]], "skip_special_tokens": False,
    }  # fmt: skip
    body |= _some_of(rng, optional, 0.25)
    body["vllm_xargs"] = _knobs(rng, length)
    return Call(path, body)


def _constrained_call(rng: random.Random) -> Call:
    """One whose tokens are restricted or whose probabilities are asked for."""
    call = plain_call(rng)
    digits = [VOCAB[digit] for digit in string.digits]
    optional = {
        "logit_bias": {str(rng.choice(digits)): rng.choice((-100, 3.5))}, "bad_words": ["1", "+"],
        "min_tokens": rng.randint(1, call.body["max_tokens"]), "allowed_token_ids": [*digits, VOCAB[","]],
    }  # fmt: skip
    asked = {"logprobs": rng.randint(0, 3)} if call.path == COMPLETIONS else {"logprobs": True, "top_logprobs": 2}
    return Call(call.path, call.body | _some_of(rng, optional, 0.4) | rng.choice((asked, {})))


def _structured_call(rng: random.Random) -> Call:
    """One whose text must match a grammar, which allows one position per step."""
    call = plain_call(rng)
    body = {name: value for name, value in call.body.items() if name not in ("stop", "stop_token_ids")}
    grammar = {"regex": "[0-9]{1,3}(,[0-9])*"}, {"choice": ["yes", "no", "maybe"]}, {"regex": "a*"}
    knobs = {name: value for name, value in body["vllm_xargs"].items() if name not in ("schedule", "steps")}
    knobs |= {"tokens_per_step": 1, "sampler": rng.choice([name for name in SAMPLERS if name not in ADAPTIVE_SAMPLERS])}
    body |= {"structured_outputs": rng.choice(grammar), "max_tokens": rng.randint(5, 16)}
    return Call(call.path, body | {"vllm_xargs": fitting(knobs | {"block_length": 0})})


def _infilling_call(rng: random.Random) -> Call:
    """One whose canvas holds text from the start."""
    plain = plain_call(rng).body
    kept = {name: plain[name] for name in plain if name not in ("messages", "max_tokens", "stop", "stop_token_ids")}
    knobs = {"vllm_xargs": kept["vllm_xargs"] | {"block_length": 0}, "ignore_eos": True}
    canvas = rng.choice(({"prompt": f"judge 1{MASK}1={MASK}"}, {"prompt": "7", "suffix": "=7", "max_tokens": 6}))
    return Call(COMPLETIONS, kept | knobs | canvas)


def _some_of(rng: random.Random, optional: dict[str, Any], share: float) -> dict[str, Any]:
    return {name: value for name, value in optional.items() if rng.random() < share}


def _prompt(rng: random.Random, path: str) -> str | list[int]:
    kind = rng.random()
    if kind < 0.6:
        return rng.choice(TEXTS)
    characters = rng.choices(string.printable[:95], k=rng.randint(1, 40))
    if kind < 0.85 or path == CHAT:
        return "".join(characters)
    return [VOCAB[character] for character in characters]


def _knobs(rng: random.Random, length: int) -> dict[str, Any]:
    knobs: dict[str, Any] = {"sampler": rng.choice(SAMPLERS), "tokens_per_step": rng.randint(1, 6)}
    optional = {
        "block_length": rng.randint(0, length), "position_temperature": rng.choice((0, 0.1, 1)),
        "num_candidates": rng.randint(1, 8), "position_score": rng.choice(POSITION_SCORES),
        "bypass_threshold": rng.choice((0, 0.5, 0.8, 1)), "bypass_mode": rng.choice(("fill", "only")),
        "state_uncertainty": rng.choice(("mean", "sum")), "uncertainty_scope": rng.choice(("block", "sequence")),
        "cost_weight": rng.choice((0, 0.5, 2)), "prune": rng.choice((0, 1)), "beam_width": rng.randint(1, 3),
        "num_generations": rng.randint(1, 4), "klass_epsilon": rng.choice((0, 0.01)), "pc_lambda": 0.1, "pc_alpha": 5,
        "entropy_bound": rng.choice((0, 1)), "threshold": rng.choice((0, 0.5, 1)), "factor": rng.choice((0, 2)),
        "cache": rng.choice(("none", "prefix", "dual")), "cache_refresh": rng.randint(0, 3),
        "eos_penalty": rng.choice((0, 2.5)), "return_trajectory": rng.choice((0, 1)),
    }  # fmt: skip
    knobs |= _some_of(rng, optional, 0.35)
    if rng.random() < 0.25:
        blocks = -(-length // (knobs.get("block_length", 32) or length))  # each takes a step at least
        knobs |= {"schedule": rng.choice(("linear", "cosine", "maskgit", "dream")), "steps": blocks + rng.randint(0, 7)}
    return fitting(knobs)


Spoil = Callable[[dict[str, Any]], dict[str, Any]]


def _knob(**knobs: Any) -> Spoil:
    return lambda body: body | {"vllm_xargs": body["vllm_xargs"] | knobs}


def _field(**fields: Any) -> Spoil:
    return lambda body: body | fields


def _structured(tokens_per_step: int = 1, **outputs: str) -> Spoil:
    return lambda body: body | {
        "structured_outputs": outputs, "vllm_xargs": {"sampler": "ar", "tokens_per_step": tokens_per_step}
    }  # fmt: skip


# The parameter that the refusal must name, and what makes a valid request invalid.
FAULTS: list[tuple[str, Spoil]] = [
    ("sampler", _knob(sampler="best")), ("sampler", _knob(sampler=3)), ("samplr", _knob(samplr="ar")),
    ("tokens_per_step", _knob(tokens_per_step=0)), ("tokens_per_step", _knob(tokens_per_step="two")),
    ("num_candidates", _knob(num_candidates=65)), ("num_candidates", _knob(num_candidates=[4])),
    ("num_candidates", _knob(num_candidates=1e300)), ("block_length", _knob(block_length=LONGEST_CANVAS + 1)),
    ("block_length", _knob(block_length=-1)), ("position_temperature", _knob(position_temperature=-0.1)),
    ("position_score", _knob(position_score="logit")), ("bypass_mode", _knob(bypass_mode="maybe")),
    ("bypass_threshold", _knob(bypass_threshold=-1)), ("schedule", _knob(schedule="slow")),
    ("steps", _knob(schedule="cosine", steps=0)), ("beam_width", _knob(beam_width=33)),
    ("beam_width", _knob(sampler="beam", beam_width=32, num_candidates=64)), ("prune", _knob(prune=2)),
    ("bypass_mode", _knob(sampler="beam", bypass_mode="only", bypass_threshold=0.5)),
    ("cache", _knob(sampler="info_gain", cache="dual", uncertainty_scope="sequence")), ("cache", _knob(cache="full")),
    ("num_generations", _knob(num_generations=257)), ("threshold", _knob(threshold=1.1)),
    ("eos_penalty", _knob(eos_penalty=-1)), ("return_trajectory", _knob(return_trajectory="yes")),
    ("vllm_xargs", _field(vllm_xargs={"sampler": {"name": "ar"}})), ("vllm_xargs", _field(vllm_xargs="ar")),
    ("temperature", _field(temperature=-1)), ("temperature", _field(temperature="hot")),
    ("top_p", _field(top_p=1.5)), ("top_p", _field(top_p=0)), ("top_k", _field(top_k=-5)),
    ("max_tokens", _field(max_tokens=MAX_LENGTH)), ("max_tokens", _field(max_tokens=0)),
    ("max_tokens", _field(max_tokens=-3)), ("max_tokens", _field(max_tokens=1 << 40)), ("n", _field(n=0)),
    ("n", _field(n=2, temperature=0, vllm_xargs={"sampler": "ar"})),
    ("min_p", _field(min_p=-0.2, temperature=1)), ("seed", _field(seed=0.5)),
    ("presence_penalty", _field(presence_penalty=1)), ("frequency_penalty", _field(frequency_penalty=1)),
    ("repetition_penalty", _field(repetition_penalty=2)), ("min_tokens", _field(min_tokens=60)),
    ("logit_bias", _field(logit_bias={"9999": 1.0})), ("allowed_token_ids", _field(allowed_token_ids=[9999])),
    ("grammar", _structured(grammar='root ::= "a"')), ("regex", _structured(regex="(")),
    ("structured_outputs.regex", _structured(regex="☃")), ("max_tokens", _structured(regex="a{40}")),
    ("tokens_per_step", _structured(regex="a*", tokens_per_step=2)),
    ("suffix_token_ids", _knob(suffix_token_ids=[VOCAB[MASK]])), ("diffusion_pinned", _knob(diffusion_pinned=[0])),
    ("guidance_scale", _knob(guidance_scale=-0.1)), ("negative_prompt", _knob(negative_prompt="a")),
    ("stream_mode", _knob(stream_mode="token")), ("stream_mode", _knob(sampler="best_of_n", stream_mode="canvas")),
]  # fmt: skip
BAD_PROMPTS = (
    ("prompt", ""), ("prompt", [VOCAB[MASK], VOCAB["1"]]), ("vocabulary", [5, 999_999]),
    ("input_tokens", "x" * MAX_LENGTH), ("prompt", 7), ("prompt", [5, -1]),
)  # fmt: skip


def invalid_call(rng: random.Random) -> Call:
    """A valid request spoiled in one place."""
    call = plain_call(rng)
    if call.path == COMPLETIONS and rng.random() < 0.2:
        refused, prompt = rng.choice(BAD_PROMPTS)
        return Call(call.path, call.body | {"prompt": prompt}, refused)
    refused, spoil = rng.choice(FAULTS)
    return Call(call.path, spoil(call.body), refused)
