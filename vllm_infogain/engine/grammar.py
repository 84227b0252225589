"""Structured output: from a regular expression, a choice or a JSON schema to an automaton over the model's tokens.

vLLM's own way is followed: `StructuredOutputManager` compiles in its thread pool, the scheduler waits for it. Only its
backend is ours, since a canvas is not written from left to right and needs the automaton itself, not a mask of the
next tokens. vLLM's outlines backend cannot stand in for it: its index over tokens loses strings in which a shorter one
of the grammar is continued (of `a(bc)?` it never accepts "abc" spelled a, b, c), and takes seconds and hundreds of MB
for a large vocabulary. Its index over single bytes takes milliseconds, and loses nothing once every string ends alike.
"""

import json
from collections.abc import Hashable
from dataclasses import dataclass
from functools import lru_cache

import outlines_core
import regex
from outlines_core.json_schema import build_regex_from_schema

from vllm_infogain.engine.compat import (
    StructuredOutputBackend,
    StructuredOutputGrammar,
    StructuredOutputOptions,
    VllmConfig,
    cached_tokenizer_from_config,
    compile_regex_with_timeout,
    reduced_vocabulary,
)
from vllm_infogain.sampling.automaton import TokenAutomaton, sources, targets
from vllm_infogain.sampling.spelling import Spelling, over_tokens

# Behind every string. A search prefers some matches to others and drops the rest; where all strings end alike, and end
# nowhere else, there is nothing to drop. No text holds this code point: Unicode reserves it.
SENTINEL = "\U0010ffff"
BYTES, SENTINEL_ID, EOS_ID = 256, 256, 257
MAX_INDEX_BYTES = 4 << 20  # of an index over bytes; some 700,000 transitions, which take about a second to read
MAX_MOVES = 4 << 20  # of an automaton over tokens, 8 bytes each


@dataclass(frozen=True, eq=False)
class ModelTokens:
    """What a model's tokens spell; one per process and model."""

    spelling: Spelling
    end_ids: tuple[int, ...]


def model_tokens(vllm_config: VllmConfig) -> ModelTokens:
    """Of the engine's model. Slow at the first call, about a second for 150,000 tokens."""
    config = vllm_config.model_config
    tokenizer = cached_tokenizer_from_config(config)
    eos = getattr(config.hf_config, "eos_token_id", None)
    end_ids = {*(eos if isinstance(eos, list) else [eos]), tokenizer.eos_token_id} - {None}
    return _model_tokens(tokenizer, config.get_vocab_size(), config.hf_config.mask_token_id, tuple(sorted(end_ids)))


@lru_cache(maxsize=8)
def _model_tokens(tokenizer: Hashable, vocab: int, mask_id: int, end_ids: tuple[int, ...]) -> ModelTokens:
    return ModelTokens(Spelling.of(reduced_vocabulary(tokenizer), vocab, without={mask_id, *end_ids}), end_ids)


def pattern_of(kind: StructuredOutputOptions, specification: str) -> str:
    """The regular expression of a constraint, as vLLM's key of it has it.

    Raises:
        ValueError: the JSON schema, or the kind of constraint, cannot be written as one.
    """
    match kind:
        case StructuredOutputOptions.REGEX:
            return specification
        case StructuredOutputOptions.CHOICE:
            return "|".join(regex.escape(str(choice)) for choice in json.loads(specification))
        case StructuredOutputOptions.JSON:
            return build_regex_from_schema(specification)
        case _:
            raise ValueError("only a regex, a choice and a JSON schema are regular")


@lru_cache(maxsize=32)
def automaton_of(pattern: str, tokens: ModelTokens) -> TokenAutomaton:
    """The automaton over a model's tokens of the strings that a regular expression matches whole.

    Raises:
        ValueError: the pattern is invalid, uses what no finite automaton can, or takes too long or too much to compile.
    """
    automaton = over_tokens(_over_bytes(pattern), tokens.spelling, tokens.end_ids)
    if len(automaton.moves) > MAX_MOVES:
        raise ValueError(f"its automaton has {len(automaton.moves)} moves; at most {MAX_MOVES} are served")
    return automaton


def _over_bytes(pattern: str) -> TokenAutomaton:
    texts = {bytes([byte]): [byte] for byte in range(BYTES)} | {SENTINEL.encode(): [SENTINEL_ID]}
    vocabulary = outlines_core.Vocabulary(EOS_ID, texts)
    index = compile_regex_with_timeout(lambda ended: outlines_core.Index(ended, vocabulary), f"(?:{pattern}){SENTINEL}")
    size = len(index.__reduce__()[1][0])
    if size > MAX_INDEX_BYTES:
        raise ValueError(f"its automaton over bytes takes {size} bytes; at most {MAX_INDEX_BYTES} are served")
    transitions, ended = index.get_transitions(), index.get_final_states()
    return TokenAutomaton.from_transitions(
        {state: {byte: to for byte, to in row.items() if byte < BYTES} for state, row in transitions.items()},
        index.get_initial_state(),
        {state for state, row in transitions.items() if row.get(SENTINEL_ID) in ended},
        BYTES,
    )


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

    def compile_grammar(
        self, request_type: StructuredOutputOptions, grammar_spec: str, stop_token_ids: set[int] | None = None
    ) -> CanvasGrammar:
        return CanvasGrammar(automaton_of(pattern_of(request_type, grammar_spec), model_tokens(self.vllm_config)))

    def allocate_token_bitmask(self, max_num_seqs: int):
        raise AssertionError("our scheduler asks for no masks")

    def destroy(self) -> None: ...
