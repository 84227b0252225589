"""What a request lets be written, whatever the model says. Imports neither torch nor vLLM."""

from collections.abc import Collection
from dataclasses import dataclass

from vllm_infogain.request.fields import ParameterError

MOST_BIAS = 1e4
# Tokens in logit_bias or stop_token_ids: with 10^5 of them a request takes some 20 MB of each process while it waits.
MOST_TOKENS = 4096


@dataclass(frozen=True)
class Constraints:
    """Applied to the logits before anything is read off them: entropies, J, draws and log-probabilities are those of
    what they leave. Places are offsets in the canvas."""

    allowed_ids: tuple[int, ...] = ()  # the only tokens that may be written; empty: every token
    logit_bias: tuple[tuple[int, float], ...] = ()  # added to the logits of single tokens
    banned: tuple[tuple[int, ...], ...] = ()  # token sequences that may not appear in the canvas
    min_tokens: int = 0  # no stop token before this place

    @property
    def banned_ids(self) -> tuple[int, ...]:
        """Tokens banned by themselves."""
        return tuple(sequence[0] for sequence in self.banned if len(sequence) == 1)

    @property
    def banned_words(self) -> tuple[tuple[int, ...], ...]:
        """Banned sequences of several tokens: whether one may be written depends on its neighbours."""
        return tuple(sequence for sequence in self.banned if len(sequence) > 1)

    def check(self, vocab: int, mask_id: int, stop_ids: Collection[int], stops_from: int) -> None:
        """Refuse constraints under which a position could be left without any token.

        Args:
            vocab: token ids go from 0 to below it.
            stops_from: the first place of the canvas that may hold a stop token.

        Raises:
            ParameterError: naming the constraint, its value and the remedy.
        """
        for name, size in (("logit_bias", len(self.logit_bias)), ("stop_token_ids", len(stop_ids))):
            if size > MOST_TOKENS:
                raise ParameterError(name, f"{size} tokens", f"give at most {MOST_TOKENS}")
        allowed, barred = {token for token in self.allowed_ids if token < vocab}, {mask_id, *self.banned_ids}

        def left_without(tokens: set[int]) -> int:
            # Counted, not collected: a set of a whole vocabulary takes tens of milliseconds of every request.
            return len(allowed - tokens) if self.allowed_ids else vocab - sum(0 <= token < vocab for token in tokens)

        name, value = ("allowed_token_ids", list(self.allowed_ids)) if self.allowed_ids else ("bad_words", self.banned)
        if not left_without(barred):
            raise ParameterError(name, value, "leaves no token to write; allow at least one besides the mask token")
        # Of a banned sequence at most one token is ever banned at one position.
        in_words = {token for sequence in self.banned_words for token in sequence}
        if left_without(barred) <= len(in_words):
            raise ParameterError(name, value, "bad_words could leave no token at a position; allow more tokens")
        if stops_from and not left_without(barred | in_words | set(stop_ids)):
            raise ParameterError(
                name, value, f"only tokens that end the text, which it may not before place {stops_from}; allow more"
            )
        for token, bias in self.logit_bias:
            if not abs(bias) <= MOST_BIAS:
                raise ParameterError("logit_bias", {token: bias}, f"give numbers from {-MOST_BIAS:g} to {MOST_BIAS:g}")
