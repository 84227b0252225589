"""Info-Gain beam search: B hypotheses, each expanded by its candidate actions, the best B by accumulated J kept.

g, the sum of J over a hypothesis's actions, is what hypotheses compete by. The paper's listing ranks them by g plus
the state's value -H(z'). But the sum of J telescopes to H(z_0) - H(z') - sum of C: it already contains -H(z'). Added
once more, the value would count twice, so we rank by g alone. The hypothesis with the lowest cumulative entropy wins.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from vllm_infogain.sampling.actions import Proposal
from vllm_infogain.sampling.decoder import Decoder, Pending
from vllm_infogain.sampling.objective import action_cost, objective, state_uncertainty
from vllm_infogain.sampling.statistics import RowStatistics
from vllm_infogain.sampling.track import Track


@dataclass
class Hypothesis:
    track: Track
    score: float = 0.0  # g: the sum of J over its actions


@dataclass
class Expansion:
    """One candidate action of one hypothesis, once its logits have come."""

    sequence: int  # index among the pending sequences
    score: float  # g of the hypothesis it leads to
    logits: torch.Tensor  # [masked after it, vocab]
    statistics: RowStatistics


class BeamDecoder(Decoder):
    """Decodes one request by beam search. Nothing is final before the end, so all tokens come out at once."""

    def __init__(self, track: Track) -> None:
        super().__init__(track.params)
        self._live = [Hypothesis(track)]
        self._done: list[Hypothesis] = []
        self._proposals: list[tuple[Proposal, RowStatistics]] = []  # of each live hypothesis; empty: states pend
        self._origin: list[tuple[int, int]] = []  # hypothesis and action of each pending sequence
        self._before: torch.Tensor = torch.empty(0)  # [pending sequences] J less -H(z'): H(z) - w C
        self._gains: list[list[float]] = []  # J of every action of each live hypothesis, as far as consumed
        self._expansions: list[Expansion] = []  # the best of those consumed so far
        self._states: list[tuple[torch.Tensor, RowStatistics]] = []  # logits of the live states consumed so far
        self._await_states()

    def consume(self, logits: torch.Tensor, statistics: RowStatistics) -> None:
        pending, first = self._receive(len(logits))
        if self._proposals:
            self._score(first, logits, statistics)
            if pending.remaining == 0:
                self.report.candidates += len(pending.sequences)
                self._keep_best()
        else:
            self._states += [(logits[index].clone(), statistics[index]) for index in range(len(logits))]
            if pending.remaining == 0:
                states, self._states = self._states, []
                self._expand(states)

    def _await_states(self) -> None:
        """Ask for a forward of every live hypothesis's state, or end."""
        self._proposals = []
        if not self._live:
            best = min(self._done, key=lambda hypothesis: hypothesis.track.cumulative_entropy)
            self.report.take(best.track)
            self._finished += best.track.canvas
            self.pending = None
            return
        sequences = torch.stack([hypothesis.track.state for hypothesis in self._live])
        self.pending = Pending(sequences, self._live[0].track.masked(sequences))

    def _expand(self, states: list[tuple[torch.Tensor, RowStatistics]]) -> None:
        """Propose the actions of every live hypothesis from its state's logits, and ask for all their outcomes."""
        proposals = [
            (hypothesis.track.propose(logits, statistics), statistics)
            for hypothesis, (logits, statistics) in zip(self._live, states, strict=True)
        ]
        outcomes = [
            hypothesis.track.outcomes(proposal) for hypothesis, (proposal, _) in zip(self._live, proposals, strict=True)
        ]
        sequences = torch.cat(outcomes)
        masked = self._live[0].track.masked(sequences)
        if masked.shape[1] == 0:
            # Every hypothesis has one action, which settles its state: H(z') = 0, and J needs no forward.
            for hypothesis, (proposal, statistics) in zip(self._live, proposals, strict=True):
                hypothesis.score += self._gain_before(proposal, statistics).item()
                hypothesis.track.write(proposal, 0, statistics.entropy, [])
            self._done += [hypothesis for hypothesis in self._live if hypothesis.track.is_done]
            self._live = [hypothesis for hypothesis in self._live if not hypothesis.track.is_done]
            self._await_states()
            return
        self._proposals = proposals
        self._before = torch.cat([self._gain_before(proposal, statistics) for proposal, statistics in proposals])
        self._gains = [[] for _ in proposals]
        self._origin = [(parent, action) for parent, group in enumerate(outcomes) for action in range(len(group))]
        self.pending = Pending(sequences, masked)

    def _score(self, first: int, logits: torch.Tensor, statistics: RowStatistics) -> None:
        """g of the expansions whose logits [expansions, masked, vocab] have come; keep those that may survive."""
        assert self.pending is not None
        after = state_uncertainty(statistics.entropy, self.params.state_uncertainty)
        gains = (self._before[first : first + len(logits)] - after).tolist()
        for index, gain in enumerate(gains):
            parent, _ = self._origin[first + index]
            self._gains[parent].append(gain)
            score = self._live[parent].score + gain
            self._expansions.append(Expansion(first + index, score, logits[index], statistics[index]))
        # A stable sort: of equals the earlier one survives. Equal states are one hypothesis, reached by two orders.
        self._expansions.sort(key=lambda expansion: -expansion.score)
        survivors: dict[tuple[int, ...], Expansion] = {}
        for expansion in self._expansions:
            survivors.setdefault(tuple(self.pending.sequences[expansion.sequence].tolist()), expansion)
        self._expansions = list(survivors.values())[: self.params.beam_width - len(self._done)]
        for expansion in self._expansions:
            if expansion.sequence >= first:
                expansion.logits = expansion.logits.clone()  # the batch's logits are freed before the next part

    def _gain_before(self, proposal: Proposal, statistics: RowStatistics) -> torch.Tensor:
        """J of each action [candidates], were it to settle the state: H(z) - w C."""
        cost = action_cost(statistics.entropy, proposal.positions)
        now = state_uncertainty(statistics.entropy, self.params.state_uncertainty)
        return objective(self.params, now, torch.zeros_like(cost), cost)

    def _keep_best(self) -> None:
        """Write the surviving actions; their logits are the next step's."""
        expansions, self._expansions = self._expansions, []
        live, states = [], []
        for expansion in expansions:
            parent, action = self._origin[expansion.sequence]
            proposal, before = self._proposals[parent]
            hypothesis = Hypothesis(self._live[parent].track.fork(), expansion.score)
            gains = self._gains[parent]
            hypothesis.track.write(proposal, action, before.entropy, gains if len(gains) > 1 else [])
            if hypothesis.track.is_done:
                self._done.append(hypothesis)
            else:
                live.append(hypothesis)
                states.append((expansion.logits, expansion.statistics))
        self._live = live
        if live:
            self._expand(states)
        else:
            self._await_states()
