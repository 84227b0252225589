"""One request's decoding, as a state machine that asks for forwards and consumes what was read off their logits.

    pending --forward, read--> consume --propose--> [one action]      write it, pending = the new state
                                                --> [several actions] pending = one sequence per action
                                                         --forward, read--> write the best, propose again

The best candidate's logits are the next step's logits: a look-ahead step costs one forward of its candidates, any
other step one forward of one sequence. Where keys and values are cached, a state's forward comes in between whenever
they are to be refreshed. A decoder knows neither vLLM nor a model: engine, standalone sampler and tests drive it
alike, and it never sees logits, only their `PositionStatistics`. Nor does it see guides: of a guided request the
statistics are those of guided logits, and all it does is to count the guides' rows.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vllm_infogain.sampling.actions import Proposal, step_rng_key
from vllm_infogain.sampling.canvas_state import CanvasState, DenoisingStep, Final
from vllm_infogain.sampling.forward_window import ForwardWindow
from vllm_infogain.sampling.guidance import Guide
from vllm_infogain.sampling.metadata import Comparison, PositionStatistics, SamplerOutput, SamplingMetadata
from vllm_infogain.sampling.objective import action_cost, settled_objective, state_uncertainty


@dataclass
class Report:
    """What a request's decoding did so far. Owner: the decoder."""

    steps: int = 0
    forwards: int = 0
    refreshes: int = 0  # forwards that computed the cached keys and values anew
    rows: int = 0  # model rows computed: sequences x positions, their guides' included
    canvas_positions: int = 0  # of these rows: on the canvas
    candidate_rows: int = 0  # of these rows: computed by look-ahead
    candidates: int = 0  # distinct candidates evaluated by look-ahead
    written: int = 0  # positions written, those behind a stop token included
    bypassed_steps: int = 0
    cumulative_entropy: float = 0.0  # nats
    trajectory: list[DenoisingStep] = field(default_factory=list)
    objectives: list[float] = field(default_factory=list)  # J of the candidate taken, of each step that compared some

    def take(self, canvas: CanvasState) -> None:
        """Copy what a canvas counts of itself."""
        self.steps, self.bypassed_steps = canvas.steps, canvas.bypassed_steps
        self.cumulative_entropy, self.trajectory = canvas.cumulative_entropy, canvas.trajectory
        self.written, self.objectives = canvas.written, canvas.objectives

    def totals(self) -> dict[str, Any]:
        """All but what grows with every step."""
        return {name: value for name, value in vars(self).items() if not isinstance(value, list)}


@dataclass
class Pending:
    """The sequences a step waits for; their logits may come in several parts. Owner: the decoder."""

    sequences: np.ndarray  # [sequences, prompt + canvas + suffix] int64
    masked: np.ndarray  # [sequences, masked] int64: positions whose logits are needed, ascending
    window: ForwardWindow
    cached_indices: np.ndarray  # [sequences] int64: the cached state that each extends, or in a refresh becomes; else 0
    consumed: int = 0  # sequences whose logits have come
    are_outcomes: bool = False  # not states, but what candidate actions lead to

    @property
    def remaining(self) -> int:
        return len(self.sequences) - self.consumed

    def part(self, count: int) -> slice:
        """The next `count` sequences."""
        assert count <= self.remaining
        return slice(self.consumed, self.consumed + count)

    def guides(self, guide: Guide) -> Pending:
        """The sequences' guides: what is to be evaluated beside them, row by row."""
        return replace(
            self,
            sequences=guide.sequences(self.sequences),
            masked=self.masked + guide.offset,
            window=guide.window(self.window),
        )


class Decoder(ABC):
    """What drives a request, whatever its sampler. `pending` is None once the canvas is full."""

    def __init__(self, canvas: CanvasState) -> None:
        self.params = canvas.params
        prompt = canvas.state[: canvas.canvas_start].tolist()
        self.guide = Guide.of(prompt, canvas.params, canvas.mask_id)  # of every sequence; None: it is not guided
        self.report = Report()
        self.pending: Pending | None = None
        self._steps_taken = 0  # of the trajectory

    @abstractmethod
    def metadata(self, count: int) -> SamplingMetadata:
        """What is to be read off the logits of the next `count` sequences of `pending`."""

    @abstractmethod
    def consume(self, count: int, output: SamplerOutput, *, first_of_forward: bool = True) -> None:
        """Take what was read for `metadata(count)`, and decide what follows.

        Args:
            count: sequences whose logits have come.
            output: what was read off them.
            first_of_forward: no other sequences of this request, of the same forward, were consumed before.
        """

    @abstractmethod
    def take_final(self) -> Final:
        """Tokens that became final since the last call, in canvas order."""

    def windows(self, window: ForwardWindow) -> list[ForwardWindow]:
        """Of a sequence's forward and, if it is guided, of its guide's."""
        return [window] if self.guide is None else [window, self.guide.window(window)]

    def take_steps(self) -> list[DenoisingStep]:
        """Denoising steps since the last call, if they are recorded. Those of a winner known late come at the end."""
        steps = self.report.trajectory[self._steps_taken :]
        self._steps_taken += len(steps)
        return steps

    def _receive(self, count: int, first_of_forward: bool) -> tuple[Pending, int]:
        """Account for `count` more sequences; returns what was pending and the first one's index in it."""
        pending = self.pending
        assert pending is not None
        first = pending.part(count).start
        pending.consumed += count
        self.report.forwards += first_of_forward
        self.report.refreshes += first_of_forward and pending.window.refresh
        canvas_end = pending.sequences.shape[1] - len(self.params.suffix_token_ids)
        for window in self.windows(pending.window):
            rows = window.rows
            self.report.rows += count * len(rows)
            self.report.candidate_rows += count * len(rows) * pending.are_outcomes
            canvas_start = canvas_end - self.params.canvas_length
            self.report.canvas_positions += count * (min(rows.stop, canvas_end) - max(rows.start, canvas_start))
            canvas_end += self.guide.offset if self.guide else 0  # of the guide, which is next
        return pending, first


FIRST_CANDIDATES = 2  # that pruning evaluates before it compares the others' limits with the better one's J


@dataclass
class Lookahead:
    """The comparison of one step's candidates, some of them perhaps still to come. Owner: SingleDecoder."""

    proposal: Proposal
    state: PositionStatistics  # of z, which the actions were proposed from
    now: float  # H(z)
    cost: np.ndarray  # [candidates] C(a, z)
    limit: np.ndarray  # [candidates] the most that J can be: with H(z') = 0
    objective: np.ndarray  # [candidates] J, NaN until known
    asked: np.ndarray  # the candidates that are pending, by index, ascending
    statistics: PositionStatistics | None = None  # of the best one's outcome

    @property
    def best(self) -> int:
        """Index of the best candidate so far, the first of equals."""
        return int(np.nanargmax(self.objective))

    def receive(self, first: int, output: SamplerOutput) -> None:
        """Take J of the next candidates of those asked for, from the `first`-th on; keep the best one's statistics."""
        part = self.asked[first : first + len(output.objective)]
        self.objective[part] = output.objective
        if self.best in part:
            self.statistics = output.statistics[output.best]

    def rest(self) -> np.ndarray:
        """Candidates that were not evaluated and may still be the best: J never exceeds its limit."""
        # J comes in fp32: what ties with the best but for rounding is evaluated.
        is_open = np.isnan(self.objective) & (self.limit >= self.objective[self.best] - 1e-6)
        return np.flatnonzero(is_open)


class SingleDecoder(Decoder):
    """Decodes one canvas, by look-ahead over its candidate actions or by a sampler that needs none."""

    def __init__(self, canvas: CanvasState) -> None:
        super().__init__(canvas)
        self.canvas = canvas
        self._lookahead: Lookahead | None = None  # None: `pending` is the state itself
        self._await_state()

    def take_final(self) -> Final:
        return self.canvas.take_final()

    def metadata(self, count: int) -> SamplingMetadata:
        assert self.pending is not None
        canvas, lookahead, part = self.canvas, self._lookahead, self.pending.part(count)
        sequences, masked = self.pending.sequences[part], self.pending.masked[part]
        if lookahead is None:
            return canvas.metadata(sequences, masked, self._rng_keys(1, canvas.steps), previous=canvas.previous())
        comparison = Comparison(lookahead.now, lookahead.cost[lookahead.asked[part]])
        # The winner's logits serve the step after this one.
        return canvas.metadata(sequences, masked, self._rng_keys(count, canvas.steps + 1), comparison)

    def consume(self, count: int, output: SamplerOutput, *, first_of_forward: bool = True) -> None:
        pending, first = self._receive(count, first_of_forward)
        lookahead = self._lookahead
        if lookahead is None:
            if pending.window.refresh:
                self.canvas.refreshed()
            self._decide(output.statistics[0])
            return
        lookahead.receive(first, output)
        if pending.remaining == 0:
            rest = lookahead.rest()
            if len(rest):
                self._ask(lookahead, rest)
            else:
                self._take_best(lookahead)

    def _rng_keys(self, count: int, step: int) -> np.ndarray:
        return np.full(count, step_rng_key(self.params.seed, step))

    def _await_state(self) -> None:
        """Ask for a forward of the state, unless there is nothing left to write."""
        self._lookahead, self.pending = None, None
        if not self.canvas.is_done:
            self.pending = self._pending(self.canvas.state[None].copy())

    def _pending(self, sequences: np.ndarray) -> Pending:
        masked, cached_indices = self.canvas.masked(sequences), np.zeros(len(sequences), dtype=np.int64)
        return Pending(
            sequences, masked, self.canvas.forward_window(), cached_indices, are_outcomes=self._lookahead is not None
        )

    def _decide(self, statistics: PositionStatistics) -> None:
        """Take the next action from the state's statistics, or ask for the candidates to compare."""
        proposal = self.canvas.propose(statistics)
        if len(proposal.masked_indices) == 1:
            self._write(proposal, 0, statistics, [])
            self._await_state()
            return
        now = state_uncertainty(statistics.entropy, self.params.state_uncertainty)
        cost = action_cost(statistics.entropy, proposal.masked_indices)
        everyone = np.arange(len(cost))
        limit = settled_objective(self.params, now, cost)
        unknown = np.full(len(cost), np.nan)
        self._lookahead = Lookahead(proposal, statistics, now, cost, limit, unknown, everyone)
        first = np.sort(cost.argsort(kind="stable")[:FIRST_CANDIDATES]) if self.params.prune else everyone
        self._ask(self._lookahead, first)

    def _ask(self, lookahead: Lookahead, candidates: np.ndarray) -> None:
        """Ask for a forward of some candidates' outcomes."""
        lookahead.asked = candidates
        proposal = lookahead.proposal
        if len(candidates) < len(proposal.masked_indices):
            proposal = Proposal(proposal.masked_indices[candidates], proposal.tokens[candidates])
        self.pending = self._pending(self.canvas.outcomes(proposal))

    def _take_best(self, lookahead: Lookahead) -> None:
        assert lookahead.statistics is not None
        objective = [None if value != value else value for value in lookahead.objective.tolist()]
        self.report.candidates += len(objective) - objective.count(None)
        self._write(lookahead.proposal, lookahead.best, lookahead.state, objective)
        if self.canvas.is_done or self.canvas.needs_refresh:
            self._await_state()
        else:
            self._decide(lookahead.statistics)

    def _write(self, proposal: Proposal, chosen: int, state: PositionStatistics, objective: list[float | None]) -> None:
        self.canvas.write(proposal, chosen, state, objective)
        self.report.take(self.canvas)
