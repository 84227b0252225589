"""Log-probabilities of written tokens, as OpenAI's API reports them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.transfer import to_device


@dataclass(frozen=True)
class TokenLogprob:
    """One token at the moment it was written. Its distribution is that of the entropies: at temperature 1, over the
    whole row with the mask token, as the request's constraints leave it."""

    token: int
    logprob: float  # nats
    rank: int  # how many tokens were at least as likely; 1: the most likely one
    tokens: list[int]  # the alternatives, the most likely ones or those asked for
    logprobs: list[float]  # of these


def given(token: int) -> TokenLogprob:
    """Of a token that was given with the canvas."""
    return TokenLogprob(token, 0.0, 1, [], [])


@dataclass(frozen=True)
class Alternatives:
    """Of one sequence's masked rows, on the host."""

    tokens: np.ndarray  # [masked, alternatives] int64
    logprobs: np.ndarray  # [masked, alternatives] fp32, nats
    drawn: np.ndarray  # [masked, draws] fp32: log-probabilities of the drawn tokens; one draw where all are the same
    ranks: np.ndarray  # [masked, draws] int64

    def rows(self, part: slice) -> Alternatives:
        return Alternatives(self.tokens[part], self.logprobs[part], self.drawn[part], self.ranks[part])

    def of(self, token: int, masked_index: int, draw: int) -> TokenLogprob:
        """Of a token that was drawn there."""
        return TokenLogprob(
            token,
            float(self.drawn[masked_index, draw]),
            int(self.ranks[masked_index, draw]),
            self.tokens[masked_index].tolist(),
            self.logprobs[masked_index].tolist(),
        )


def alternatives(logprobs: torch.Tensor, drawn: torch.Tensor, params: DecodingParams, vocab: int) -> list[torch.Tensor]:
    """The columns of `Alternatives`, on the device.

    Args:
        logprobs: [rows, columns] fp32.
        drawn: [rows, draws] int64 tokens.
        params: how many alternatives are asked for, or which.
        vocab: columns from this one on have no token; they count for ranks only.
    """
    if params.logprob_token_ids:
        (named,) = to_device([np.array(params.logprob_token_ids)], logprobs.device)
        tokens = named.expand(len(logprobs), -1)
        values = logprobs.gather(1, tokens)
    else:
        assert params.logprobs is not None
        values, tokens = logprobs[:, :vocab].topk(vocab if params.logprobs == -1 else params.logprobs)
    own = logprobs.gather(1, drawn)
    ranks = [(logprobs >= own[:, draw, None]).sum(-1) for draw in range(drawn.shape[1])]  # draw by draw: vocab is wide
    return [tokens, values, own, torch.stack(ranks, 1)]
