"""One canvas being filled: the state z, its active block, and what filling it has cost so far."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch

from vllm_infogain.grammar.automaton import TokenAutomaton
from vllm_infogain.request.canvas import initial_canvas, stops_from
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.actions import Proposal, propose, step_generator
from vllm_infogain.sampling.block_view import BlockView
from vllm_infogain.sampling.forward_window import ForwardWindow
from vllm_infogain.sampling.logprobs import TokenLogprob, given
from vllm_infogain.sampling.metadata import Comparison, PositionStatistics, SamplingMetadata
from vllm_infogain.sampling.schedule import Block, annealing, next_write, plan_blocks


@dataclass(frozen=True)
class DenoisingStep:
    """One action, written. Positions are canvas offsets; entropies are in nats, from before the action."""

    positions: list[int]
    tokens: list[int]
    entropies: list[float]
    objective: list[float | None]  # J of every distinct candidate, None if pruned; empty when nothing was compared
    chosen: int  # index of the candidate taken
    bypassed: bool


@dataclass
class Final:
    """Tokens that will not change any more, in canvas order."""

    tokens: list[int]
    logprobs: list[TokenLogprob]  # of each; none unless asked for

    def extend(self, more: Final) -> None:
        self.tokens.extend(more.tokens)
        self.logprobs.extend(more.logprobs)


class CanvasState:
    """Owner of the state. Blocks are decoded left to right; a stop token in a finished block ends the canvas there."""

    def __init__(
        self,
        prompt: list[int],
        params: DecodingParams,
        mask_id: int,
        log_frequencies: np.ndarray | None = None,
        computed: int = 0,
        automaton: TokenAutomaton | None = None,
    ) -> None:
        self.params = params
        self.mask_id = mask_id
        self.log_frequencies = log_frequencies
        self.automaton = automaton
        self.stops_from = stops_from(params, mask_id)
        # z: [prompt + canvas + suffix] int64
        self.state = np.array([*prompt, *initial_canvas(params, mask_id), *params.suffix_token_ids])
        self.canvas_start = len(prompt)
        self.canvas_end = self.canvas_start + params.canvas_length
        self._blocks = {block.start: block for block in plan_blocks(params, len(prompt), mask_id)}
        self.block_start = self.canvas_start  # the first position of the active block that is part of the canvas
        self.block_step = 0  # steps taken in the active block
        self.idle_steps = 0  # steps of its schedule that wrote nothing: passed over without a forward
        self.computed = computed  # positions, from the prompt's start, whose final K/V are cached; read if block-causal
        self.cumulative_entropy = 0.0  # nats
        self.steps = 0
        self.bypassed_steps = 0
        self.written = 0  # positions
        self.objectives: list[float] = []  # J of the candidate taken, of each step that compared some
        self.trajectory: list[DenoisingStep] = []  # recorded only if asked for
        self._logprobs: dict[int, TokenLogprob] = {}  # by position, of the active block; recorded only if asked for
        self._refreshed_at = -1  # the step before which K/V were last refreshed
        self._previous: tuple[np.ndarray, torch.Tensor] | None = None  # positions and log-probabilities, for KLASS
        self._final = Final([], [])  # not taken yet
        self._finish_full_blocks()

    def fork(self) -> CanvasState:
        """A canvas that goes on from here on its own."""
        twin = copy.copy(self)
        twin.state = self.state.copy()
        twin.trajectory = list(self.trajectory)
        twin.objectives = list(self.objectives)
        twin._logprobs = dict(self._logprobs)
        twin._final = Final([*self._final.tokens], [*self._final.logprobs])
        return twin

    @property
    def length(self) -> int:
        return len(self.state)

    @property
    def block_origin(self) -> int:
        """The active block's first position; with absolute blocks the first one may begin in the prompt."""
        if not (self.params.absolute_blocks or self.params.block_causal):
            return self.block_start
        size = self.params.block_length or self.length
        return self.block_start // size * size

    @property
    def block(self) -> Block:
        """The active one."""
        return self._blocks[self.block_start - self.canvas_start]

    @property
    def block_end(self) -> int:
        return self.canvas_start + self.block.end

    @property
    def is_done(self) -> bool:
        return self.block_start == self.canvas_end

    def take_final(self) -> Final:
        """Tokens that became final since the last call; they end with the first stop token of a finished block."""
        final, self._final = self._final, Final([], [])
        return final

    # What a forward computes.

    @property
    def needs_refresh(self) -> bool:
        """Whether the next forward is to compute anew what is cached outside the window."""
        params = self.params
        if not params.is_cached or self._refreshed_at == self.steps:
            return False
        # What is cached of a block-causal model is final, not approximate: it grows with each block and never ages.
        ages = params.cache_refresh > 0 and not params.block_causal
        return self.block_step == 0 or (ages and self.block_step % params.cache_refresh == 0)

    def forward_window(self) -> ForwardWindow:
        """Of the next forward, of the state or of its candidates."""
        refresh = self.needs_refresh
        if self.params.block_causal:
            own = range(self.block_origin, self.block_end)
            return ForwardWindow(range(self.computed, own.stop) if refresh else own, own, own.stop, refresh)
        whole = range(self.length)
        first = self.block_start - self.params.shift
        match self.params.cache:
            case "none":
                return ForwardWindow(whole, whole, self.length)
            case "prefix":
                own = range(first, self.length)
            case "dual":
                own = range(first, self.block_end)
            case _:
                raise AssertionError(self.params.cache)
        return ForwardWindow(whole if refresh else own, own, self.length, refresh)

    def refreshed(self) -> None:
        """The state's refresh has run."""
        self._refreshed_at = self.steps
        # A hypothesis of a beam may go on where another's K/V were cached: only what all share stays computed.
        if self.params.sampler != "beam":
            self.computed = self.block_origin

    def masked(self, sequences: np.ndarray) -> np.ndarray:
        """Positions whose logits matter, in sequences [n, length] that mask equally many: [n, masked], ascending.

        Those of the active block; with `uncertainty_scope: sequence` those of the whole canvas, the block's first.
        """
        everywhere = self.params.looks_ahead and self.params.uncertainty_scope == "sequence"
        end = self.canvas_end if everywhere else self.block_end
        positions = (sequences[:, self.block_start : end] == self.mask_id).nonzero()[1] + self.block_start
        return positions.reshape(len(sequences), -1)

    def _block_masked(self) -> np.ndarray:
        return np.flatnonzero(self.state[self.block_start : self.block_end] == self.mask_id) + self.block_start

    def previous(self) -> tuple[torch.Tensor | None, np.ndarray | None]:
        """KLASS: log-probabilities one step earlier, and the rows of the block's masked positions among them."""
        if self._previous is None:
            return None, None
        before, log_probabilities = self._previous
        return log_probabilities, np.searchsorted(before, self._block_masked())

    def metadata(
        self,
        sequences: np.ndarray,
        masked: np.ndarray,
        rng_keys: np.ndarray,
        comparison: Comparison | None = None,
        previous: tuple[torch.Tensor | None, np.ndarray | None] = (None, None),
    ) -> SamplingMetadata:
        """What is to be read at the masked positions [n, masked] of sequences [n, length]."""
        canvases = sequences[:, self.canvas_start : self.canvas_start + self.params.canvas_length]
        canvas_offsets = masked - self.canvas_start
        return SamplingMetadata(
            self.params, canvas_offsets, rng_keys, canvases, comparison, *previous, self.stops_from, self.automaton
        )

    # Actions.

    def propose(self, statistics: PositionStatistics) -> Proposal:
        """The candidate actions, from the statistics of the positions that `masked` gave for the state."""
        positions = self._block_masked()
        count = len(positions)
        if statistics.log_probabilities is not None:
            self._previous = (positions, statistics.log_probabilities)
        step, written = next_write(self.params, count, self.block_step + self.idle_steps, self.block)
        self.idle_steps = step - self.block_step
        view = BlockView(
            statistics.head(count),
            positions - self.canvas_start,
            self.log_frequencies,
            annealing(self.params, step, self.block),
            masked_elsewhere=len(statistics.entropy) > count,
        )
        return propose(view, self.params, written, step_generator(self.params.seed, self.steps))

    def outcomes(self, proposal: Proposal) -> np.ndarray:
        """z' of every action: [candidates, length]."""
        sequences = self.state[None].repeat(len(proposal.masked_indices), 0)
        np.put_along_axis(sequences, self._block_masked()[proposal.masked_indices], proposal.tokens, 1)
        return sequences

    def write(
        self, proposal: Proposal, chosen: int, statistics: PositionStatistics, objective: list[float | None]
    ) -> None:
        """Take one action, which was proposed from these statistics of the state."""
        masked, masked_indices = self._block_masked(), proposal.masked_indices[chosen]
        positions, tokens = masked[masked_indices], proposal.tokens[chosen]
        self.state[positions] = tokens
        entropies = statistics.entropy[masked_indices].tolist()
        self.steps += 1
        self.block_step += 1
        self.bypassed_steps += proposal.bypassed
        self.written += len(masked_indices)
        if objective:
            chosen_objective = objective[chosen]
            assert chosen_objective is not None, "the best was evaluated"
            self.objectives.append(chosen_objective)
        self.cumulative_entropy += sum(entropies)
        if self.params.keeps_steps:
            canvas_offsets = (positions - self.canvas_start).tolist()
            bypassed = proposal.bypassed
            step = DenoisingStep(canvas_offsets, tokens.tolist(), entropies, objective, chosen, bypassed)
            self.trajectory.append(step)
        if self.params.logprobs is not None:
            self._logprobs |= dict(zip(positions.tolist(), statistics.logprobs(masked_indices, tokens), strict=True))
        if len(masked_indices) == len(masked):
            self._finish_block()
            self._finish_full_blocks()

    def _finish_full_blocks(self) -> None:
        """Finish blocks that hold no mask: all of their text was given."""
        while not self.is_done and not len(self._block_masked()):
            self._finish_block()

    def _finish_block(self) -> None:
        start, block = self.block_start, self.state[self.block_start : self.block_end].tolist()
        self.block_start = self.block_end
        self.block_step = self.idle_steps = 0
        self._previous = None
        stop = next((position for position, token in enumerate(block) if token in self.params.stop_ids), None)
        if stop is not None:
            # What lies behind a stop token is dropped and never decoded.
            block = block[: stop + 1]
            self.block_start = self.canvas_end = start + len(block)
        logprobs: list[TokenLogprob] = []
        if self.params.logprobs is not None:
            logprobs = [self._logprobs.get(position) or given(token) for position, token in enumerate(block, start)]
        self._final.extend(Final(block, logprobs))
        self._logprobs = {}
