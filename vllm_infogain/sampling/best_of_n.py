"""Best-of-N: whole independent generations by the entropy sampler; the lowest cumulative entropy wins."""

from __future__ import annotations

import dataclasses

import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.decoder import Decoder, Pending, SingleDecoder
from vllm_infogain.sampling.statistics import RowStatistics
from vllm_infogain.sampling.track import Track


def generation_seeds(params: DecodingParams) -> list[int]:
    """A seed for each generation. Far apart, because vLLM seeds the `n` samples of a request seed, seed + 1, ..."""
    return [params.seed + (index << 32) for index in range(params.num_generations)]


class BestOfNDecoder(Decoder):
    """Runs `num_generations` tracks side by side. Tokens come out at the end."""

    def __init__(self, track: Track) -> None:
        super().__init__(track.params)
        greedy = dataclasses.replace(track.params, sampler="entropy", position_temperature=track.params.tau_position)
        self._generations = []
        for seed in generation_seeds(self.params):
            twin = track.fork()
            twin.params = dataclasses.replace(greedy, seed=seed)
            self._generations.append(SingleDecoder(twin))
        self._waiting = list(self._generations)  # those that the pending sequences belong to
        self._gather()

    def consume(self, logits: torch.Tensor, statistics: RowStatistics) -> None:
        pending, first = self._receive(len(logits))
        for index in range(len(logits)):
            self._waiting[first + index].consume(logits[index : index + 1], statistics[index : index + 1])
        if pending.remaining == 0:
            self._gather()

    def _gather(self) -> None:
        """Ask for the next forward of every generation that goes on, or end."""
        self._waiting = [generation for generation in self._generations if generation.pending is not None]
        parts = [generation.pending for generation in self._waiting if generation.pending is not None]
        if parts:
            # All write equally many positions per step, so their masked positions stack.
            sequences = torch.cat([part.sequences for part in parts])
            self.pending = Pending(sequences, torch.cat([part.masked for part in parts]))
            return
        best = min(self._generations, key=lambda generation: generation.track.cumulative_entropy)
        self.report.take(best.track)
        self._finished += best.track.canvas
        self.pending = None
