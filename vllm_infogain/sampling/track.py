"""One canvas being filled: the state z, its active block, and what filling it has cost so far."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.actions import Proposal, propose, step_generator
from vllm_infogain.sampling.schedule import tokens_to_write
from vllm_infogain.sampling.statistics import RowStatistics
from vllm_infogain.sampling.view import View


@dataclass(frozen=True)
class Step:
    """One action taken. Positions are offsets in the canvas; entropies are in nats, from before the action."""

    positions: list[int]
    tokens: list[int]
    entropies: list[float]
    objective: list[float]  # J of every distinct candidate; empty when nothing was compared
    chosen: int  # index of the candidate taken
    bypassed: bool


class Track:
    """Owner of the state. Blocks are decoded left to right; a stop token in a finished block ends the canvas there."""

    def __init__(
        self,
        prompt: list[int],
        params: DecodingParams,
        mask_id: int,
        log_frequencies: torch.Tensor | None = None,
    ) -> None:
        self.params = params
        self.mask_id = mask_id
        self.log_frequencies = log_frequencies
        self.state = torch.tensor(prompt + [mask_id] * params.canvas_length)  # z: [prompt + canvas] int64
        self.canvas_start = len(prompt)
        self.block_start = self.canvas_start
        self.block_step = 0  # steps taken in the active block
        self.cumulative_entropy = 0.0  # nats
        self.steps = 0
        self.bypassed_steps = 0
        self.trajectory: list[Step] = []  # kept only if asked for
        self._previous: tuple[torch.Tensor, torch.Tensor] | None = None  # positions and log-probabilities, for KLASS

    def fork(self) -> Track:
        """A track that goes on from here on its own."""
        twin = copy.copy(self)
        twin.state = self.state.clone()
        twin.trajectory = list(self.trajectory)
        return twin

    @property
    def length(self) -> int:
        return self.state.shape[0]

    @property
    def block_end(self) -> int:
        size = self.params.block_length or self.length
        start = self.block_start // size * size if self.params.absolute_blocks else self.block_start
        return min(start + size, self.length)

    @property
    def is_done(self) -> bool:
        return self.block_start == self.length

    @property
    def canvas(self) -> list[int]:
        """The canvas so far; of a done track, up to and including its first stop token."""
        return self.state[self.canvas_start :].tolist()

    def masked(self, sequences: torch.Tensor) -> torch.Tensor:
        """Positions whose logits matter, in sequences [n, length] that mask equally many: [n, masked], ascending.

        Those of the active block; with `uncertainty_scope: sequence` those of the whole canvas, the block's first.
        """
        end = self.length if self._counts_elsewhere else self.block_end
        places = (sequences[:, self.block_start : end] == self.mask_id).nonzero()[:, 1] + self.block_start
        return places.view(len(sequences), -1)

    @property
    def _counts_elsewhere(self) -> bool:
        return self.params.looks_ahead and self.params.uncertainty_scope == "sequence"

    def _block_masked(self) -> torch.Tensor:
        block = self.state[self.block_start : self.block_end]
        return (block == self.mask_id).nonzero().squeeze(-1) + self.block_start

    def propose(self, logits: torch.Tensor, statistics: RowStatistics) -> Proposal:
        """The candidate actions, from logits [masked, vocab] at the positions that `masked` gave for the state."""
        places = self._block_masked()
        count = len(places)
        view = View(
            logits[:count],
            statistics[:count],
            (places - self.canvas_start).to(logits.device),
            self._previous_at(places, logits.device),
            self.log_frequencies,
            masked_elsewhere=len(logits) > count,
        )
        if self.params.sampler == "klass":
            self._previous = (places, view.logits.log_softmax(-1))
        start, end = self.block_start - self.canvas_start, self.block_end - self.canvas_start
        written = tokens_to_write(self.params, count, self.block_step, start, end)
        return propose(view, self.params, written, step_generator(self.params.seed, self.steps, logits.device))

    def _previous_at(self, places: torch.Tensor, device: torch.device) -> torch.Tensor | None:
        if self._previous is None:
            return None
        before, log_probabilities = self._previous
        return log_probabilities[torch.searchsorted(before, places).to(device)]

    def outcomes(self, proposal: Proposal) -> torch.Tensor:
        """z' of every action: [candidates, length]."""
        sequences = self.state.repeat(len(proposal.positions), 1)
        return sequences.scatter_(1, self._block_masked()[proposal.positions.cpu()], proposal.tokens.cpu())

    def write(self, proposal: Proposal, chosen: int, entropy: torch.Tensor, objective: list[float]) -> list[int]:
        """Take one action; `entropy` [masked] is H_l(z) from before it. Returns the tokens of a block it finished."""
        within = proposal.positions[chosen]
        places = self._block_masked()[within.cpu()]
        self.state[places] = proposal.tokens[chosen].cpu()
        entropies = entropy[within].tolist()
        self.steps += 1
        self.block_step += 1
        self.bypassed_steps += proposal.bypassed
        self.cumulative_entropy += sum(entropies)
        if self.params.return_trajectory:
            offsets, tokens = (places - self.canvas_start).tolist(), proposal.tokens[chosen].tolist()
            self.trajectory.append(Step(offsets, tokens, entropies, objective, chosen, proposal.bypassed))
        if len(self._block_masked()):
            return []
        return self._finish_block()

    def _finish_block(self) -> list[int]:
        start, block = self.block_start, self.state[self.block_start : self.block_end].tolist()
        self.block_start = self.block_end
        self.block_step = 0
        self._previous = None
        stop = next((place for place, token in enumerate(block) if token in self.params.stop_ids), None)
        if stop is not None:
            # What lies behind a stop token is dropped and never decoded.
            block = block[: stop + 1]
            self.state = self.state[: start + len(block)]
            self.block_start = self.length
        return block
