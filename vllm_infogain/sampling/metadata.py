"""Records of what is to be read off logits, and of what was read. Arrays are on the host, unless a line says where."""

from dataclasses import dataclass

import numpy as np
import torch

from vllm_infogain.grammar.automaton import TokenAutomaton
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.logprobs import Alternatives, TokenLogprob


@dataclass(frozen=True)
class Comparison:
    """What J needs of the state z whose candidates are compared; nats."""

    now: float  # H(z)
    cost: np.ndarray  # [sequences] float64: C(a, z)


@dataclass(frozen=True)
class SamplingMetadata:
    """What is to be read off the logits of some of a decoder's sequences. Rows go sequence by sequence."""

    params: DecodingParams
    canvas_offsets: np.ndarray  # [sequences, masked] int64: of the rows
    rng_keys: np.ndarray  # [sequences] int64: what the draws of each sequence depend on, beside its canvas offsets
    canvases: np.ndarray  # [sequences, canvas] int64: what is written so far, on which constraints may depend
    comparison: Comparison | None = None  # None: every sequence is a state of its own
    # KLASS: [rows one step earlier, columns] log-probabilities, whose memory is used for those that are read now.
    previous: torch.Tensor | None = None
    previous_rows: np.ndarray | None = None  # [masked] int64, ascending: those of the masked rows; None: all there are
    stops_from: int = 0  # no stop token may be written before this canvas offset
    automaton: TokenAutomaton | None = None  # what the canvas must match, if it is structured


@dataclass(frozen=True)
class PositionStatistics:
    """One sequence's masked rows, on the host. Probabilities are the model's own at temperature 1, over its whole row
    (the mask token and padding included) as the request's constraints leave it, whatever is drawn."""

    entropy: np.ndarray  # [masked] fp32, nats
    top_token: np.ndarray  # [masked] int64: the most likely token that may be written, the lowest id of equals
    top_probability: np.ndarray  # [masked] fp32
    margin: np.ndarray  # [masked] fp32: the difference of the two largest probabilities
    tokens: np.ndarray  # [draws, masked] int64: independent draws; at temperature 0 `top_token`
    probabilities: np.ndarray  # [draws, masked] fp32, of `tokens`
    vocab: int  # how many tokens there are, the mask token among them
    divergence: np.ndarray | None = None  # [masked] fp32: KL(now || previous), nats; KLASS, where there was a previous
    log_probabilities: torch.Tensor | None = None  # [masked, columns], on the device; KLASS only
    alternatives: Alternatives | None = None  # only if asked for

    def head(self, count: int) -> "PositionStatistics":
        """The first `count` positions alone."""
        if count == len(self.entropy):
            return self
        return PositionStatistics(
            self.entropy[:count],
            self.top_token[:count],
            self.top_probability[:count],
            self.margin[:count],
            self.tokens[:, :count],
            self.probabilities[:, :count],
            self.vocab,
            None if self.divergence is None else self.divergence[:count],
            None if self.log_probabilities is None else self.log_probabilities[:count],
            None if self.alternatives is None else self.alternatives.rows(slice(count)),
        )

    def logprobs(self, masked_indices: np.ndarray, tokens: np.ndarray) -> list[TokenLogprob]:
        """Of tokens [written] that were drawn at some of the masked indices [written]."""
        assert self.alternatives is not None
        draws = (self.tokens[:, masked_indices] == tokens).argmax(0)
        written = zip(tokens.tolist(), masked_indices.tolist(), draws.tolist(), strict=True)
        return [self.alternatives.of(*one) for one in written]


@dataclass(frozen=True)
class SamplerOutput:
    """What was read for one `SamplingMetadata`."""

    statistics: dict[int, PositionStatistics]  # by sequence; of compared ones only the best one's
    objective: np.ndarray  # [sequences] fp32: J; empty where nothing was compared
    best: int  # the sequence with the largest J, the first of equals; 0 where nothing was compared


NOTHING = np.empty(0, dtype=np.float32)
