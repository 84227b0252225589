"""One request's decoding, as a state machine that asks for forwards and consumes their logits.

    pending --forward--> consume --propose--> [one action]      commit, pending = the new state
                                          --> [several actions] pending = one sequence per action
                                                                --forward--> score, commit the best, propose again

The best candidate's logits are the next step's logits: a look-ahead step costs one forward of its candidates, any
other step one forward of one sequence. `Decoder` knows neither vLLM nor a model: the engine and the slow oracle
drive it alike, and between two calls it holds no logits but those of the best candidate of a group cut in two.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.actions import Proposal, propose, step_generator
from vllm_infogain.sampling.objective import action_cost, objective, state_uncertainty
from vllm_infogain.sampling.statistics import RowStatistics


@dataclass(frozen=True)
class Step:
    """One action taken. Positions are offsets in the canvas; entropies are in nats, from before the action."""

    positions: list[int]
    tokens: list[int]
    entropies: list[float]
    objective: list[float]  # J of every distinct candidate; empty when nothing was compared
    chosen: int  # index of the candidate taken
    bypassed: bool


@dataclass
class Report:
    """What a request's decoding did so far; `to_dict` is what the user gets. Owner: Decoder."""

    steps: int = 0
    forwards: int = 0
    rows: int = 0  # model rows computed: sequences x positions
    candidates: int = 0  # distinct candidates evaluated by look-ahead
    bypassed_steps: int = 0
    cumulative_entropy: float = 0.0  # nats
    trajectory: list[Step] = field(default_factory=list)  # kept only if asked for

    def to_dict(self, with_trajectory: bool) -> dict[str, Any]:
        report = asdict(self)
        if not with_trajectory:
            del report["trajectory"]
        return report


@dataclass
class Pending:
    """The sequences one step waits for. Owner: Decoder; a group may be consumed in several parts."""

    sequences: torch.Tensor  # [sequences, prompt + canvas] int64
    masked: torch.Tensor  # [sequences, masked] int64: positions whose logits are needed, ascending
    proposal: Proposal | None = None  # None: a forward of the state itself
    cost: torch.Tensor | None = None  # [sequences] C(a, z)
    entropy: torch.Tensor | None = None  # [masked now] H_l(z)
    consumed: int = 0
    objective: list[float] = field(default_factory=list)  # J of the consumed ones
    best: int = -1
    best_logits: torch.Tensor | None = None  # [masked, vocab]
    best_statistics: RowStatistics | None = None

    @property
    def remaining(self) -> int:
        return self.sequences.shape[0] - self.consumed

    def part(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The next `count` sequences [count, length] and their masked positions [count, masked]."""
        window = slice(self.consumed, self.consumed + count)
        return self.sequences[window], self.masked[window]


class Decoder:
    """Decodes one canvas block by block, left to right.

    Args:
        prompt: token ids before the canvas.
        params: how to decode; `canvas_length` masks follow the prompt.
        mask_id: the model's mask token.
    """

    def __init__(self, prompt: list[int], params: DecodingParams, mask_id: int) -> None:
        self.params = params
        self.mask_id = mask_id
        self.state = torch.tensor(prompt + [mask_id] * params.canvas_length)  # z: [prompt + canvas]
        self.canvas_start = len(prompt)
        self.block_start = self.canvas_start
        self.report = Report()
        self._finished: list[int] = []  # tokens of finished blocks not yet taken
        self.pending: Pending | None = self._forward_of_state()

    @property
    def length(self) -> int:
        return self.state.shape[0]

    @property
    def block_end(self) -> int:
        return min(self.block_start + (self.params.block_length or self.length), self.length)

    def take_finished(self) -> list[int]:
        """Tokens of the blocks that finished since the last call, in canvas order."""
        finished, self._finished = self._finished, []
        return finished

    def consume(self, logits: torch.Tensor, statistics: RowStatistics) -> None:
        """Take the logits [sequences, masked, vocab] of the next part of `pending`, and decide what follows."""
        pending = self.pending
        assert pending is not None and logits.shape[:2] == (min(logits.shape[0], pending.remaining), pending.masked.shape[1])
        self.report.forwards += 1
        self.report.rows += logits.shape[0] * self.length
        pending.consumed += logits.shape[0]
        if pending.proposal is None:
            self._decide(logits[0], statistics[0])
            return
        self._score(pending, logits, statistics)
        if pending.remaining == 0:
            assert pending.best_logits is not None and pending.best_statistics is not None
            self._commit(pending.proposal, pending.best, pending.entropy, pending.objective)
            self._decide(pending.best_logits, pending.best_statistics)

    def _masked(self, sequence: torch.Tensor) -> torch.Tensor:
        """Masked positions of the active block in a sequence [length] -> [masked]."""
        block = sequence[self.block_start : self.block_end]
        return (block == self.mask_id).nonzero().squeeze(-1) + self.block_start

    def _forward_of_state(self) -> Pending:
        return Pending(self.state.unsqueeze(0), self._masked(self.state).unsqueeze(0))

    def _score(self, pending: Pending, logits: torch.Tensor, statistics: RowStatistics) -> None:
        part = slice(len(pending.objective), pending.consumed)
        how = self.params.state_uncertainty
        now = state_uncertainty(pending.entropy, how)
        scores = objective(self.params.sampler, now, state_uncertainty(statistics.entropy, how), pending.cost[part])
        for offset, score in enumerate(scores.tolist()):
            if pending.best < 0 or score > pending.objective[pending.best]:
                pending.best = part.start + offset
            pending.objective.append(score)
        if pending.best >= part.start:
            # A copy, so that the batch's logits can be freed before the rest of the group is evaluated.
            winner = pending.best - part.start
            pending.best_logits = logits[winner] if pending.remaining == 0 else logits[winner].clone()
            pending.best_statistics = statistics[winner]

    def _decide(self, logits: torch.Tensor, statistics: RowStatistics) -> None:
        """Choose the next action from the state's logits [masked, vocab], or the candidates to compare first."""
        generator = step_generator(self.params.seed, self.report.steps, logits.device)
        proposal = propose(logits, statistics, self.params, generator)
        if len(proposal.positions) == 1:
            self._commit(proposal, 0, statistics.entropy, [])
            self._after_commit()
            return
        masked = self._masked(self.state)
        sequences = self.state.repeat(len(proposal.positions), 1)
        sequences.scatter_(1, masked[proposal.positions.cpu()], proposal.tokens.cpu())
        self.pending = Pending(
            sequences,
            torch.stack([self._masked(sequence) for sequence in sequences]),
            proposal,
            cost=action_cost(statistics.entropy, proposal.positions),
            entropy=statistics.entropy,
        )

    def _commit(self, proposal: Proposal, chosen: int, entropy: torch.Tensor, scores: list[float]) -> None:
        """Write one action into the state and account for it; entropy [masked] is H_l(z) from before it."""
        within = proposal.positions[chosen]
        positions = self._masked(self.state)[within.cpu()]
        self.state[positions] = proposal.tokens[chosen].cpu()
        entropies = entropy[within].tolist()
        self.report.steps += 1
        self.report.candidates += len(scores)
        self.report.bypassed_steps += proposal.bypassed
        self.report.cumulative_entropy += sum(entropies)
        if self.params.return_trajectory:
            offsets = (positions - self.canvas_start).tolist()
            tokens = proposal.tokens[chosen].tolist()
            self.report.trajectory.append(Step(offsets, tokens, entropies, scores, chosen, proposal.bypassed))

    def _after_commit(self) -> None:
        """Ask for the forward of the new state; hand out the block first if nothing in it is masked."""
        if len(self._masked(self.state)) == 0:
            self._finished += self.state[self.block_start : self.block_end].tolist()
            self.block_start = self.block_end
        self.pending = self._forward_of_state() if self.block_start < self.length else None
