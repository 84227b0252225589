"""Info-Gain beam search. Each hypothesis is expanded by its candidate actions; the B with the largest sum of J go on.

g, the sum of J over a hypothesis's actions, is what hypotheses compete by. The paper's listing ranks them by g plus
the state's value -H(z'). But the sum of J telescopes to H(z_0) - H(z') - sum of C: it already contains -H(z'). Added
once more, the value would count twice, so we rank by g alone. The hypothesis with the lowest cumulative entropy wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vllm_infogain.sampling.actions import Proposal, step_rng_key
from vllm_infogain.sampling.canvas_state import CanvasState, Final
from vllm_infogain.sampling.decoder import Decoder, Pending
from vllm_infogain.sampling.metadata import PositionStatistics, SamplerOutput, SamplingMetadata
from vllm_infogain.sampling.objective import action_cost, settled_objective, state_uncertainty


@dataclass
class Hypothesis:
    """One of the beam's states."""

    canvas: CanvasState
    cached_index: int  # the cached state that it extends: its own of the last refresh, or its parent's
    score: float = 0.0  # g: the sum of J over its actions


@dataclass(frozen=True)
class Expansion:
    """One candidate action of one hypothesis, once its logits have come."""

    sequence: int  # index among the pending sequences
    score: float  # g of the hypothesis it leads to
    spent: float  # the cumulative entropy of that hypothesis, nats
    statistics: PositionStatistics


class BeamDecoder(Decoder):
    """Decodes one request by beam search. Nothing is final before the end, so all tokens come out at once."""

    def __init__(self, canvas: CanvasState) -> None:
        super().__init__(canvas)
        self._final = Final([], [])
        self._live = [Hypothesis(canvas, cached_index=0)]
        self._done: list[Hypothesis] = []
        self._proposals: list[tuple[Proposal, PositionStatistics]] = []  # of each live hypothesis; empty: states pend
        self._origin: list[tuple[int, int]] = []  # hypothesis and action of each pending sequence
        self._settled: np.ndarray = np.empty(0)  # [pending sequences] J less -H(z')
        self._spent: np.ndarray = np.empty(0)  # [pending sequences] the cumulative entropy each leads to
        self._gains: list[list[float | None]] = []  # J of every action of each live hypothesis, as far as consumed
        self._expansions: list[Expansion] = []  # the best of those consumed so far
        self._states: list[PositionStatistics] = []  # of the live states consumed so far
        self._await_states()

    def metadata(self, count: int) -> SamplingMetadata:
        # Which expansions survive takes all hypotheses to say, so each is read like a state.
        assert self.pending is not None
        step = self._live[0].canvas.steps + bool(self._proposals)
        part = self.pending.part(count)
        rng_keys = np.full(count, step_rng_key(self.params.seed, step))
        return self._live[0].canvas.metadata(self.pending.sequences[part], self.pending.masked[part], rng_keys)

    def take_final(self) -> Final:
        final, self._final = self._final, Final([], [])
        return final

    def consume(self, count: int, output: SamplerOutput, *, first_of_forward: bool = True) -> None:
        pending, first = self._receive(count, first_of_forward)
        arrived = [output.statistics[index] for index in range(count)]
        if self._proposals:
            self._score(pending, first, arrived)
            if pending.remaining == 0:
                self.report.candidates += len(pending.sequences)
                self._keep_best()
            return
        self._states += arrived
        if pending.remaining == 0:
            if pending.window.refresh:
                for index, hypothesis in enumerate(self._live):
                    hypothesis.canvas.refreshed()
                    hypothesis.cached_index = index
            states, self._states = self._states, []
            self._expand(states)

    def _await_states(self) -> None:
        """Ask for a forward of every live hypothesis's state, or end."""
        self._proposals = []
        if not self._live:
            best = min(self._done, key=lambda hypothesis: hypothesis.canvas.cumulative_entropy)
            self.report.take(best.canvas)
            self._final = best.canvas.take_final()
            self.pending = None
            return
        canvas = self._live[0].canvas  # all are at the same step of the same block
        sequences = np.stack([hypothesis.canvas.state for hypothesis in self._live])
        cached_indices = np.array([hypothesis.cached_index for hypothesis in self._live])
        if canvas.needs_refresh:
            cached_indices = np.arange(len(self._live))
        self.pending = Pending(sequences, canvas.masked(sequences), canvas.forward_window(), cached_indices)

    def _expand(self, states: list[PositionStatistics]) -> None:
        """Propose the actions of every live hypothesis from its state's statistics, and ask for all their outcomes."""
        proposals = [
            (hypothesis.canvas.propose(statistics), statistics)
            for hypothesis, statistics in zip(self._live, states, strict=True)
        ]
        outcomes = [
            hypothesis.canvas.outcomes(proposal)
            for hypothesis, (proposal, _) in zip(self._live, proposals, strict=True)
        ]
        sequences, canvas = np.concatenate(outcomes), self._live[0].canvas
        masked = canvas.masked(sequences)
        if masked.shape[1] == 0:
            # Every hypothesis has one action, which settles its state: H(z') = 0, and J needs no forward.
            for hypothesis, (proposal, statistics) in zip(self._live, proposals, strict=True):
                hypothesis.score += float(self._settled_gain(proposal, statistics)[0])
                hypothesis.canvas.write(proposal, 0, statistics, [])
            self._done += [hypothesis for hypothesis in self._live if hypothesis.canvas.is_done]
            self._live = [hypothesis for hypothesis in self._live if not hypothesis.canvas.is_done]
            self._await_states()
            return
        self._proposals = proposals
        self._settled = np.concatenate([self._settled_gain(proposal, statistics) for proposal, statistics in proposals])
        self._spent = np.concatenate(
            [
                hypothesis.canvas.cumulative_entropy + action_cost(statistics.entropy, proposal.masked_indices)
                for hypothesis, (proposal, statistics) in zip(self._live, proposals, strict=True)
            ]
        )
        self._gains = [[] for _ in proposals]
        self._origin = [(parent, action) for parent, group in enumerate(outcomes) for action in range(len(group))]
        cached_indices = np.repeat(
            [hypothesis.cached_index for hypothesis in self._live], [len(group) for group in outcomes]
        )
        self.pending = Pending(sequences, masked, canvas.forward_window(), cached_indices, are_outcomes=True)

    def _score(self, pending: Pending, first: int, arrived: list[PositionStatistics]) -> None:
        """g of the expansions that have come; keep those that may survive."""
        entropy = np.stack([statistics.entropy for statistics in arrived])
        after = state_uncertainty(entropy, self.params.state_uncertainty)
        # fp32, as where one hypothesis compares its candidates: what ties there ties here.
        gains = (self._settled[first : first + len(arrived)] - after).astype(np.float32).tolist()
        for sequence, (gain, statistics) in enumerate(zip(gains, arrived, strict=True), start=first):
            parent, _ = self._origin[sequence]
            self._gains[parent].append(gain)
            hypothesis, spent = self._live[parent], float(self._spent[sequence])
            self._expansions.append(Expansion(sequence, hypothesis.score + gain, spent, statistics))
        # A stable sort: of equals the earlier one survives. Equal states are one hypothesis, reached by two orders:
        # the cheaper one, as the score would say, too, unless the cost weight is 0.
        self._expansions.sort(key=lambda expansion: -expansion.score)
        survivors: dict[bytes, Expansion] = {}
        for expansion in self._expansions:
            state = pending.sequences[expansion.sequence].tobytes()
            if state not in survivors or expansion.spent < survivors[state].spent:
                survivors[state] = expansion  # in the place of the first
        self._expansions = list(survivors.values())[: self.params.beam_width - len(self._done)]

    def _settled_gain(self, proposal: Proposal, statistics: PositionStatistics) -> np.ndarray:
        """J of each action [candidates], were it to settle the state."""
        now = state_uncertainty(statistics.entropy, self.params.state_uncertainty)
        return settled_objective(self.params, now, action_cost(statistics.entropy, proposal.masked_indices))

    def _keep_best(self) -> None:
        """Write the surviving actions; their statistics are the next step's."""
        expansions, self._expansions = self._expansions, []
        live, states = [], []
        for expansion in expansions:
            parent, action = self._origin[expansion.sequence]
            proposal, before = self._proposals[parent]
            hypothesis = Hypothesis(self._live[parent].canvas.fork(), self._live[parent].cached_index, expansion.score)
            gains = self._gains[parent]
            hypothesis.canvas.write(proposal, action, before, gains if len(gains) > 1 else [])
            if hypothesis.canvas.is_done:
                self._done.append(hypothesis)
            else:
                live.append(hypothesis)
                states.append(expansion.statistics)
        self._live = live
        if live and not live[0].canvas.needs_refresh:
            self._expand(states)
        else:
            self._await_states()
