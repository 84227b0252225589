"""Decoders driven by a stub model, without an engine."""

import itertools
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import torch

from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling import make_decoder
from vllm_infogain.sampling.decoder import Decoder, Pending
from vllm_infogain.sampling.forward_window import ForwardWindow
from vllm_infogain.sampling.guidance import Guide, combine
from vllm_infogain.sampling.read_logits import read

VOCAB, MASK_ID = 7, 6


class StubModel:
    """Logits that depend on every token and its position, so that each action changes every other row.

    Its "keys and values" of a position are the token there. `block`: positions per block of a block-causal one.
    """

    def __init__(self, seed: int = 0, block: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weights = torch.randn(64, 64, VOCAB, VOCAB, generator=generator)  # [row, position, token there, column]
        if block:
            blocks = torch.arange(64) // block
            self.weights[blocks[:, None] < blocks] = 0.0

    def __call__(self, ids: torch.Tensor) -> torch.Tensor:  # [n, length] -> [n, length, vocab]
        length = ids.shape[1]
        one_hot = torch.nn.functional.one_hot(ids, VOCAB).float()
        return torch.einsum("njv,ijvw->niw", one_hot, self.weights[:length, :length]) / length**0.5 * 2

    def cache(self, ids: torch.Tensor) -> torch.Tensor:
        return ids

    def window(self, ids: torch.Tensor, rows: range, cached: torch.Tensor) -> torch.Tensor:
        seen = cached.clone()
        seen[:, rows.start : rows.stop] = ids[:, rows.start : rows.stop]
        return self(seen)[:, rows.start : rows.stop]


class Forwards:
    """What an engine does for one request whose model's keys and values of a position are the token there."""

    UNKNOWN = -1

    def __init__(self, model, prompt: list[int], params: DecodingParams, computed: int = 0) -> None:
        self.model = model
        self.cached = np.full((params.num_cached_states, len(prompt) + params.canvas_length), self.UNKNOWN)
        self.cached[:, :computed] = prompt[:computed]
        self.windows: list[ForwardWindow] = []
        self.guide = Guide.of(prompt, params, MASK_ID)
        if self.guide is not None:
            self.guides = Forwards(model, self.guide.prompt.tolist(), replace(params, guidance_scale=0.0))

    def logits(self, pending: Pending, part: slice) -> torch.Tensor:
        """[sequences x masked, vocab] of the next part of a group, guided if its request is."""
        own = self.rows(pending, part)
        if self.guide is None:
            return own
        return combine(own, self.guides.logits(pending.guides(self.guide), part), self.guide.scale)

    def rows(self, pending: Pending, part: slice) -> torch.Tensor:
        """[sequences x masked, vocab] of the model; only `window.rows` are computed."""
        window, cached_indices = pending.window, pending.cached_indices[part]
        self.windows.append(window)
        rows = slice(window.rows.start, window.rows.stop)
        seen = self.cached[cached_indices]
        seen[:, rows] = pending.sequences[part, rows]
        if window.refresh:
            self.cached[cached_indices] = seen
        seen, masked = seen[:, : window.keys], pending.masked[part]
        assert (seen != self.UNKNOWN).all(), "attended to, but never computed"
        assert np.isin(masked, window.rows).all(), "wanted, but not computed"
        differing = (pending.sequences != pending.sequences[0]).any(0)
        assert len(set(pending.cached_indices)) > 1 or np.isin(np.flatnonzero(differing), window.own).all()
        logits = self.model(torch.from_numpy(seen))
        return logits[torch.arange(len(seen))[:, None], torch.from_numpy(masked)].flatten(0, 1)


def drive(
    model, prompt: list[int], params: DecodingParams, parts: Iterable[int] = (1_000_000,), computed: int = 0
) -> tuple[list[int], Decoder]:
    """Run a decoder to its end; `parts`, over and over: how many sequences of a group come at once."""
    decoder = make_decoder(prompt, params, MASK_ID, computed=computed)
    return run(decoder, Forwards(model, prompt, params, computed), parts), decoder


def run(decoder: Decoder, forwards: Forwards, parts: Iterable[int] = (1_000_000,)) -> list[int]:
    """See `drive`."""
    tokens: list[int] = []
    sizes = itertools.cycle(parts)
    while decoder.pending is not None:
        count = min(next(sizes), decoder.pending.remaining)
        metadata = decoder.metadata(count)
        (output,) = read(forwards.logits(decoder.pending, decoder.pending.part(count)), [metadata], MASK_ID)
        decoder.consume(count, output)
        tokens += decoder.take_final().tokens
    return tokens
