"""One request's decoding, as a state machine that asks for forwards and consumes their logits.

    pending --forward--> consume --propose--> [one action]      write it, pending = the new state
                                          --> [several actions] pending = one sequence per action
                                                                --forward--> score, write the best, propose again

The best candidate's logits are the next step's logits: a look-ahead step costs one forward of its candidates, any
other step one forward of one sequence. A decoder knows neither vLLM nor a model: engine, standalone sampler and tests
drive it alike, and between two calls it holds no logits but those of the best of a group that came in parts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.actions import Proposal
from vllm_infogain.sampling.objective import action_cost, objective, state_uncertainty
from vllm_infogain.sampling.statistics import RowStatistics
from vllm_infogain.sampling.track import Step, Track


@dataclass
class Report:
    """What a request's decoding did so far; `to_dict` is what the user gets. Owner: the decoder."""

    steps: int = 0
    forwards: int = 0
    rows: int = 0  # model rows computed: sequences x positions
    candidates: int = 0  # distinct candidates evaluated by look-ahead
    bypassed_steps: int = 0
    cumulative_entropy: float = 0.0  # nats
    trajectory: list[Step] = field(default_factory=list)

    def take(self, track: Track) -> None:
        """Copy the figures that a track keeps of itself."""
        self.steps, self.bypassed_steps = track.steps, track.bypassed_steps
        self.cumulative_entropy, self.trajectory = track.cumulative_entropy, track.trajectory

    def to_dict(self, with_trajectory: bool) -> dict[str, Any]:
        report = asdict(self)
        if not with_trajectory:
            del report["trajectory"]
        return report


@dataclass
class Pending:
    """The sequences a step waits for; their logits may come in several parts. Owner: the decoder."""

    sequences: torch.Tensor  # [sequences, prompt + canvas] int64
    masked: torch.Tensor  # [sequences, masked] int64: positions whose logits are needed, ascending
    consumed: int = 0  # sequences whose logits have come

    @property
    def remaining(self) -> int:
        return len(self.sequences) - self.consumed

    def part(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next `count` sequences [count, length] and their masked positions [count, masked]."""
        window = slice(self.consumed, self.consumed + count)
        return self.sequences[window], self.masked[window]


class Decoder(ABC):
    """What drives a request, whatever its sampler. `pending` is None once the canvas is full."""

    def __init__(self, params: DecodingParams) -> None:
        self.params = params
        self.report = Report()
        self.pending: Pending | None = None
        self._finished: list[int] = []

    @abstractmethod
    def consume(self, logits: torch.Tensor, statistics: RowStatistics) -> None:
        """Take the logits [sequences, masked, vocab] of the next part of `pending`, and decide what follows."""

    def take_finished(self) -> list[int]:
        """Tokens that became final since the last call, in canvas order."""
        finished, self._finished = self._finished, []
        return finished

    def _receive(self, count: int) -> tuple[Pending, int]:
        """Account for `count` more sequences; returns what was pending and the first one's index in it."""
        pending = self.pending
        assert pending is not None
        assert count <= pending.remaining
        first = pending.consumed
        pending.consumed += count
        self.report.forwards += 1
        self.report.rows += count * pending.sequences.shape[1]
        return pending, first


@dataclass
class Lookahead:
    """The comparison of one step's candidates, some of them perhaps still to come. Owner: SingleDecoder."""

    proposal: Proposal
    entropy: torch.Tensor  # [masked] H_l(z)
    cost: torch.Tensor  # [candidates] C(a, z)
    objective: list[float] = field(default_factory=list)  # J of the candidates consumed so far
    best: int = -1  # index of the best of them, the first of equals
    best_logits: torch.Tensor | None = None  # [masked after it, vocab]
    best_statistics: RowStatistics | None = None


class SingleDecoder(Decoder):
    """Decodes one track, by look-ahead over its candidate actions or by a sampler that needs none."""

    def __init__(self, track: Track) -> None:
        super().__init__(track.params)
        self.track = track
        self._lookahead: Lookahead | None = None  # None: `pending` is the state itself
        self._await_state()

    def consume(self, logits: torch.Tensor, statistics: RowStatistics) -> None:
        pending, _ = self._receive(len(logits))
        if self._lookahead is None:
            self._decide(logits[0], statistics[0])
            return
        self._score(self._lookahead, logits, statistics, is_last=pending.remaining == 0)
        if pending.remaining == 0:
            self._take_best(self._lookahead)

    def _await_state(self) -> None:
        """Ask for a forward of the state, unless there is nothing left to write."""
        self._lookahead = None
        sequences = self.track.state.unsqueeze(0)
        self.pending = None if self.track.is_done else Pending(sequences, self.track.masked(sequences))

    def _decide(self, logits: torch.Tensor, statistics: RowStatistics) -> None:
        """Take the next action from the state's logits [masked, vocab], or ask for the candidates to compare."""
        proposal = self.track.propose(logits, statistics)
        if len(proposal.positions) == 1:
            self._write(proposal, 0, statistics.entropy, [])
            self._await_state()
            return
        sequences = self.track.outcomes(proposal)
        self.pending = Pending(sequences, self.track.masked(sequences))
        self._lookahead = Lookahead(proposal, statistics.entropy, action_cost(statistics.entropy, proposal.positions))

    def _score(self, lookahead: Lookahead, logits: torch.Tensor, statistics: RowStatistics, is_last: bool) -> None:
        """J of the candidates whose logits [candidates, masked, vocab] have come; keep the best one's logits."""
        first = len(lookahead.objective)
        how = self.params.state_uncertainty
        scores = objective(
            self.params,
            state_uncertainty(lookahead.entropy, how),
            state_uncertainty(statistics.entropy, how),
            lookahead.cost[first : first + len(logits)],
        )
        for index, score in enumerate(scores.tolist(), start=first):
            if lookahead.best < 0 or score > lookahead.objective[lookahead.best]:
                lookahead.best = index
            lookahead.objective.append(score)
        if lookahead.best >= first:
            winner = lookahead.best - first
            # A copy if more are to come, so that this batch's logits can be freed meanwhile.
            lookahead.best_logits = logits[winner] if is_last else logits[winner].clone()
            lookahead.best_statistics = statistics[winner]

    def _take_best(self, lookahead: Lookahead) -> None:
        assert lookahead.best_logits is not None
        assert lookahead.best_statistics is not None
        self.report.candidates += len(lookahead.objective)
        self._write(lookahead.proposal, lookahead.best, lookahead.entropy, lookahead.objective)
        if self.track.is_done:
            self._await_state()
        else:
            self._decide(lookahead.best_logits, lookahead.best_statistics)

    def _write(self, proposal: Proposal, chosen: int, entropy: torch.Tensor, scores: list[float]) -> None:
        self._finished += self.track.write(proposal, chosen, entropy, scores)
        self.report.take(self.track)
