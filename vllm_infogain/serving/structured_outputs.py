"""Structured output at admission: what a canvas that is filled in any order can be held to, and whether it fits."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vllm_infogain.compat import SamplingParams, VllmConfig, get_structured_output_key
from vllm_infogain.grammar.automaton import NEVER, TokenAutomaton, is_completable
from vllm_infogain.grammar.backend import compiled, model_tokens
from vllm_infogain.request.fields import ParameterError

BACKEND = "outlines"  # its validation takes what can be written as a regular expression, and leaves it as it is
MAX_SPECIFICATION = 1 << 14  # characters
MAX_WORK = 1 << 20  # states x places of the canvas, which every forward goes through
REGULAR = "give a regex, a choice or a JSON schema, which a finite automaton can follow"
NOT_TOGETHER = "with structured output the grammar alone says which tokens may be written; leave it out"


def check_constraint(
    constraint: Any, vllm_config: VllmConfig, asked: tuple[str, Any] | None = None
) -> tuple[TokenAutomaton, int]:
    """Refuse a constraint that no canvas can be held to. Takes up to a second the first time, in a thread that lets
    others run; after that it is looked up.

    Args:
        constraint: StructuredOutputsParams.
        vllm_config: of the engine it is for.
        asked: the field that asks for it and its value, where they are not the constraint's own.

    Returns:
        what it lets be written, and in how many tokens at least.

    Raises:
        ParameterError: names the field, its value and the remedy.
    """
    _check_server(vllm_config)
    _check_fields(constraint, asked)
    kind, specification = get_structured_output_key(constraint)
    name, shown = asked or _named(constraint)
    if len(specification) > MAX_SPECIFICATION:
        raise ParameterError(name, shown, f"is {len(specification)} characters long; give at most {MAX_SPECIFICATION}")
    try:
        automaton = compiled(kind, specification, model_tokens(vllm_config))
    except ValueError as error:
        raise ParameterError(name, shown, f"cannot be compiled: {error}") from None
    if automaton.shortest is None:
        raise ParameterError(name, shown, "no tokens of this model spell a text that matches; give another")
    return automaton, automaton.shortest


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
    automaton, least = check_constraint(params.structured_outputs, vllm_config)
    for field in ("allowed_token_ids", "bad_words", "min_tokens"):
        if value := getattr(params, field):
            raise ParameterError(field, value, NOT_TOGETHER)
    name, shown = _named(params.structured_outputs)
    for stop in set(params.stop_token_ids or ()) - set(model_tokens(vllm_config).end_ids):
        if 0 <= stop < len(automaton.class_of) and automaton.class_of[stop] != NEVER:
            raise ParameterError("stop_token_ids", stop, "the grammar has it as text, which would be cut; leave it out")
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


def _named(constraint: Any) -> tuple[str, str]:
    """The field that holds a constraint, and the beginning of what it says."""
    kind, specification = get_structured_output_key(constraint)
    return f"structured_outputs.{kind.name.lower()}", specification[:200]


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


def _check_fields(constraint: Any, asked: tuple[str, Any] | None) -> None:
    for name in ("grammar", "structural_tag", "json_object"):
        if (value := getattr(constraint, name)) is not None:
            raise ParameterError(*(asked or (f"structured_outputs.{name}", value)), REGULAR)
    for name in ("whitespace_pattern", "disable_any_whitespace", "disable_additional_properties"):
        if value := getattr(constraint, name):
            raise ParameterError(f"structured_outputs.{name}", value, "not supported; leave it out")
    if constraint.choice is not None and not constraint.choice:
        raise ParameterError("structured_outputs.choice", constraint.choice, "give at least one text")
