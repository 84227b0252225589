"""Structured output at admission: what a canvas that is filled in any order can be held to, and whether it fits."""

from collections.abc import Sequence

import numpy as np

from vllm_infogain.engine.compat import SamplingParams, VllmConfig, get_structured_output_key
from vllm_infogain.engine.grammar import automaton_of, model_tokens, pattern_of
from vllm_infogain.sampling.automaton import NEVER, is_completable, shortest
from vllm_infogain.values import ParameterError

BACKEND = "outlines"  # its validation takes what can be written as a regular expression, and leaves it as it is
MAX_SPECIFICATION = 1 << 14  # characters: what compiles too slowly holds up the server
MAX_WORK = 1 << 20  # states x places of the canvas, which every forward goes through
REGULAR = "give a regex, a choice or a JSON schema, which a finite automaton can follow"
NOT_TOGETHER = "with structured output the grammar alone says which tokens may be written; leave it out"


def check_structured_outputs(params: SamplingParams, canvas: Sequence[int], vllm_config: VllmConfig) -> None:
    """Refuse structured output that the canvas cannot be held to. What writes several positions at once is refused
    with the other decoding parameters.

    Args:
        params: of one request.
        canvas: [max_tokens] token ids it starts from, with masks.
        vllm_config: of the engine it is for.

    Raises:
        ParameterError: names the field, its value and the remedy.
    """
    if params.structured_outputs is None:
        return
    _check_server(vllm_config)
    _check_fields(params)
    kind, specification = get_structured_output_key(params.structured_outputs)
    name, shown = f"structured_outputs.{kind.name.lower()}", specification[:200]
    if len(specification) > MAX_SPECIFICATION:
        raise ParameterError(name, shown, f"is {len(specification)} characters long; give at most {MAX_SPECIFICATION}")
    tokens = model_tokens(vllm_config)
    try:
        automaton = automaton_of(pattern_of(kind, specification), tokens)
    except (ValueError, TypeError) as error:
        raise ParameterError(name, shown, f"cannot be compiled: {error}") from None
    for stop in set(params.stop_token_ids or ()) - set(tokens.end_ids):
        if 0 <= stop < len(automaton.class_of) and automaton.class_of[stop] != NEVER:
            raise ParameterError("stop_token_ids", stop, "the grammar has it as text, which would be cut; leave it out")
    least = shortest(automaton)
    if least is None:
        raise ParameterError(name, shown, "no tokens of this model spell a text that matches; give another")
    if least > len(canvas):
        raise ParameterError(
            "max_tokens", len(canvas), f"the shortest text that matches takes {least} tokens; give at least that"
        )
    if (work := len(automaton.final) * (len(canvas) + 1)) > MAX_WORK:
        raise ParameterError(
            "max_tokens", len(canvas), f"times {len(automaton.final)} states of the grammar is {work}, and at most "
            f"{MAX_WORK} are served; give fewer, or a simpler grammar",
        )  # fmt: skip
    if not is_completable(automaton, np.array(canvas), vllm_config.model_config.hf_config.mask_token_id):
        raise ParameterError(
            name, shown, "the canvas cannot be completed to a text that matches; change it, or what is pinned in it"
        )


def _check_server(vllm_config: VllmConfig) -> None:
    config = vllm_config.structured_outputs_config
    if config.backend != BACKEND:
        raise ParameterError(
            "structured_outputs_config.backend", config.backend, f"start the server without it, or with {BACKEND!r}"
        )
    if config.reasoning_parser and not config.enable_in_reasoning:
        raise ParameterError(
            "reasoning_parser", config.reasoning_parser,
            "a grammar holds for the whole canvas, thoughts included; start the server without it, or leave "
            "structured_outputs out",
        )  # fmt: skip


def _check_fields(params: SamplingParams) -> None:
    constraint = params.structured_outputs
    assert constraint is not None
    for name in ("grammar", "structural_tag", "json_object"):
        if (value := getattr(constraint, name)) is not None:
            raise ParameterError(f"structured_outputs.{name}", value, REGULAR)
    for name in ("whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"):
        if value := getattr(constraint, name):
            raise ParameterError(f"structured_outputs.{name}", value, "not supported; leave it out")
    if constraint.choice is not None and not constraint.choice:
        raise ParameterError("structured_outputs.choice", constraint.choice, "give at least one text")
    for name in ("allowed_token_ids", "bad_words", "min_tokens"):
        if value := getattr(params, name):
            raise ParameterError(name, value, NOT_TOGETHER)
