"""Best-of-N: whole independent generations by the entropy sampler; the lowest cumulative entropy wins."""

from __future__ import annotations

import dataclasses

import numpy as np

from vllm_infogain.request.params import DecodingParams
from vllm_infogain.request.seeds import child_seed
from vllm_infogain.sampling.canvas_state import CanvasState, Final
from vllm_infogain.sampling.decoder import Decoder, Pending, SingleDecoder
from vllm_infogain.sampling.metadata import NOTHING, SamplerOutput, SamplingMetadata


def generation_seeds(params: DecodingParams) -> list[int]:
    """A seed for each generation."""
    return [child_seed(params.seed, "generation", index) for index in range(params.num_generations)]


class BestOfNDecoder(Decoder):
    """Fills `num_generations` canvases side by side. Tokens come out at the end."""

    def __init__(self, canvas: CanvasState) -> None:
        super().__init__(canvas)
        greedy = dataclasses.replace(canvas.params, sampler="entropy", position_temperature=canvas.params.tau_position)
        self._generations = []
        for seed in generation_seeds(self.params):
            twin = canvas.fork()
            twin.params = dataclasses.replace(greedy, seed=seed)
            self._generations.append(SingleDecoder(twin))
        self._final = Final([], [])
        self._waiting: list[SingleDecoder] = []  # those that the pending sequences belong to
        self._gather()

    def metadata(self, count: int) -> SamplingMetadata:
        assert self.pending is not None
        parts = [generation.metadata(1) for generation in self._waiting[self.pending.part(count)]]
        merged = {
            name: np.concatenate([getattr(part, name) for part in parts])
            for name in ("rng_keys", "canvas_offsets", "canvases")
        }
        return dataclasses.replace(parts[0], params=self.params, **merged)

    def take_final(self) -> Final:
        final, self._final = self._final, Final([], [])
        return final

    def consume(self, count: int, output: SamplerOutput, *, first_of_forward: bool = True) -> None:
        pending, first = self._receive(count, first_of_forward)
        for index in range(count):
            self._waiting[first + index].consume(1, SamplerOutput({0: output.statistics[index]}, NOTHING, 0))
        if pending.remaining == 0:
            self._gather()

    def _gather(self) -> None:
        """Ask for the next forward of every generation that goes on, or end."""
        going = [(index, it.pending, it) for index, it in enumerate(self._generations) if it.pending is not None]
        self._waiting = [generation for _, _, generation in going]
        if going:
            # All write equally many positions per step: they are at the same step of the same block.
            self.pending = Pending(
                np.concatenate([part.sequences for _, part, _ in going]),
                np.concatenate([part.masked for _, part, _ in going]),
                going[0][1].window,
                cached_indices=np.array([index if self.params.is_cached else 0 for index, _, _ in going]),
            )
            return
        best = min(self._generations, key=lambda generation: generation.canvas.cumulative_entropy)
        self.report.take(best.canvas)
        self._final = best.canvas.take_final()
        self.pending = None
