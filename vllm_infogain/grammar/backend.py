"""Structured output: from a regular expression, a choice or a JSON schema to an automaton over the model's tokens.

vLLM's own way is followed: `StructuredOutputManager` compiles in its thread pool, the scheduler waits for it. Only its
backend is ours, since a canvas is not written from left to right and needs the automaton itself, not a mask of the
next tokens.
"""

import json
from dataclasses import dataclass
from functools import lru_cache
from threading import Lock
from typing import Any

import regex
from cachetools import LRUCache, cached

from vllm_infogain.compat import (
    Request,
    StructuredOutputBackend,
    StructuredOutputGrammar,
    StructuredOutputOptions,
    VllmConfig,
    cached_tokenizer_from_config,
)
from vllm_infogain.grammar.automaton import TokenAutomaton, sources, targets
from vllm_infogain.grammar.json_schema import schema_pattern
from vllm_infogain.grammar.regex import over_bytes, whole
from vllm_infogain.grammar.token_dfa import Spelling, over_tokens
from vllm_infogain.grammar.vocabulary import text_tokens
from vllm_infogain.request.from_vllm import text_vocabulary

MAX_MOVES = 1 << 20  # of an automaton over tokens; some 50 bytes each, with what is derived from it
MAX_CACHED = 4 << 20  # moves of all automata that are kept for the next request with the same constraint


@dataclass(frozen=True, eq=False)
class ModelTokens:
    """What a model's tokens spell; one per process and model."""

    spelling: Spelling
    end_ids: tuple[int, ...]


def model_tokens(vllm_config: VllmConfig) -> ModelTokens:
    """Of the engine's model. Slow at the first call, about a second for 150,000 tokens."""
    config = vllm_config.model_config
    tokenizer = cached_tokenizer_from_config(config)
    end_ids = {tokenizer.eos_token_id} - {None}
    # vLLM ends a text at those of the generation config too.
    for eos in (
        getattr(config.hf_config, "eos_token_id", None),
        config.try_get_generation_config().get("eos_token_id"),
    ):
        end_ids.update([eos] if isinstance(eos, int) else eos or ())
    return _model_tokens(
        tokenizer, text_vocabulary(vllm_config), config.hf_config.mask_token_id, tuple(sorted(end_ids))
    )


@lru_cache(maxsize=8)
def _model_tokens(tokenizer: Any, vocab: int, mask_id: int, end_ids: tuple[int, ...]) -> ModelTokens:
    return ModelTokens(Spelling.of(text_tokens(tokenizer, vocab), vocab, without={mask_id, *end_ids}), end_ids)


def compiled(kind: StructuredOutputOptions, specification: str, tokens: ModelTokens) -> TokenAutomaton:
    """The automaton over a model's tokens of a constraint, as vLLM's key of it has it.

    Raises:
        ValueError: see `pattern_of` and `automaton_of`.
    """
    found = _compiled(kind, specification, tokens)
    if isinstance(found, str):
        raise ValueError(found)
    return found


def _size(found: TokenAutomaton | str) -> int:
    # Beside its moves an automaton has a class for each token; and each has its specification.
    return 1000 + (0 if isinstance(found, str) else len(found.moves) + len(found.class_of))


@cached(LRUCache(MAX_CACHED, _size), lock=Lock())
def _compiled(kind: StructuredOutputOptions, specification: str, tokens: ModelTokens) -> TokenAutomaton | str:
    """The automaton, or why there is none: what is refused is not compiled a second time either."""
    try:
        return automaton_of(pattern_of(kind, specification), tokens)
    except (ValueError, TypeError) as error:
        return str(error)
    except RecursionError:
        return "it is nested too deeply; give one that is flatter"


def pattern_of(kind: StructuredOutputOptions, specification: str) -> str:
    """The regular expression of a constraint.

    Raises:
        ValueError: the JSON schema, or the kind of constraint, cannot be written as one.
    """
    match kind:
        case StructuredOutputOptions.REGEX:
            return whole(specification)
        case StructuredOutputOptions.CHOICE:
            return "|".join(regex.escape(str(choice)) for choice in json.loads(specification))
        case StructuredOutputOptions.JSON:
            return schema_pattern(specification)
        case _:
            raise ValueError("only a regex, a choice and a JSON schema are regular")


def automaton_of(pattern: str, tokens: ModelTokens) -> TokenAutomaton:
    """The automaton over a model's tokens of the strings that a regular expression matches whole.

    Raises:
        ValueError: see `over_bytes` and `over_tokens`; or there are too many moves.
    """
    automaton = over_tokens(over_bytes(pattern), tokens.spelling, tokens.end_ids)
    if len(automaton.moves) > MAX_MOVES:
        raise ValueError(f"its automaton has {len(automaton.moves)} moves; at most {MAX_MOVES} are served")
    return automaton


class CanvasGrammar(StructuredOutputGrammar):
    """One request's grammar, as vLLM's scheduler sees it. What may be written is decided by the worker, from
    `automaton`; here finished tokens are only checked once more."""

    def __init__(self, automaton: TokenAutomaton) -> None:
        self.automaton = automaton
        self._state: int | None = automaton.start  # None: what was accepted begins no text of the grammar

    def accept_tokens(self, request_id: str, tokens: list[int]) -> bool:
        for token in tokens:
            moves = self.automaton.moves_of(self.automaton.class_of[token])
            to = targets(moves[sources(moves) == self._state])
            self._state = int(to[0]) if len(to) else None
        return self._state is not None

    def is_terminated(self) -> bool:
        return self._state is not None and bool(self.automaton.final[self._state])

    def _never_called(self, *args):
        raise AssertionError("our scheduler plans no drafts and asks for no masks")

    validate_tokens = rollback = fill_bitmask = reset = _never_called


class CanvasBackend(StructuredOutputBackend):
    """vLLM's structured output manager asks it for grammars; set by our scheduler before the first request."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self.vllm_config = vllm_config  # the tokenizer is found when the first grammar is compiled

    def compile_grammar(
        self, request_type: StructuredOutputOptions, grammar_spec: str, stop_token_ids: set[int] | None = None
    ) -> CanvasGrammar:
        return CanvasGrammar(compiled(request_type, grammar_spec, model_tokens(self.vllm_config)))

    def allocate_token_bitmask(self, max_num_seqs: int):
        raise AssertionError("our scheduler asks for no masks")

    def destroy(self) -> None: ...


def compiled_automaton(request: Request) -> TokenAutomaton:
    """Of a structured request whose grammar is compiled."""
    assert request.structured_output_request is not None
    grammar = request.structured_output_request.grammar
    assert isinstance(grammar, CanvasGrammar)
    return grammar.automaton
