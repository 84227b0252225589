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
class Lookahead:
    """The comparison of one step's candidates, some of them perhaps still to come. Owner: Decoder."""

    proposal: Proposal
    entropy: torch.Tensor  # [masked] H_l(z)
    cost: torch.Tensor  # [candidates] C(a, z)
    objective: list[float] = field(default_factory=list)  # J of the candidates consumed so far
    best: int = -1  # index of the best of them, the first of equals
    best_logits: torch.Tensor | None = None  # [masked after it, vocab]
    best_statistics: RowStatistics | None = None


@dataclass
class Pending:
    """The sequences a step waits for: the state itself, or its candidates. Owner: Decoder."""

    sequences: torch.Tensor  # [sequences, prompt + canvas] int64
    masked: torch.Tensor  # [sequences, masked] int64: positions whose logits are needed, ascending
    lookahead: Lookahead | None = None  # None: a forward of the state
    consumed: int = 0  # sequences whose logits have come

    @property
    def remaining(self) -> int:
        return len(self.sequences) - self.consumed

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
        assert pending is not None
        assert len(logits) <= pending.remaining
        self.report.forwards += 1
        self.report.rows += len(logits) * self.length
        pending.consumed += len(logits)
        if pending.lookahead is None:
            self._decide(logits[0], statistics[0])
            return
        lookahead = pending.lookahead
        self._score(lookahead, logits, statistics, is_last=pending.remaining == 0)
        if pending.remaining == 0:
            assert lookahead.best_logits is not None
            assert lookahead.best_statistics is not None
            self._commit(lookahead.proposal, lookahead.best, lookahead.entropy, lookahead.objective)
            self._decide(lookahead.best_logits, lookahead.best_statistics)

    def _masked(self, sequence: torch.Tensor) -> torch.Tensor:
        """Masked positions of the active block in a sequence [length] -> [masked]."""
        block = sequence[self.block_start : self.block_end]
        return (block == self.mask_id).nonzero().squeeze(-1) + self.block_start

    def _forward_of_state(self) -> Pending:
        return Pending(self.state.unsqueeze(0), self._masked(self.state).unsqueeze(0))

    def _score(self, lookahead: Lookahead, logits: torch.Tensor, statistics: RowStatistics, is_last: bool) -> None:
        """J of the candidates whose logits [candidates, masked, vocab] have come; keep the best one's logits."""
        how, first = self.params.state_uncertainty, len(lookahead.objective)
        now, after = state_uncertainty(lookahead.entropy, how), state_uncertainty(statistics.entropy, how)
        scores = objective(self.params.sampler, now, after, lookahead.cost[first : first + len(logits)])
        for index, score in enumerate(scores.tolist(), start=first):
            if lookahead.best < 0 or score > lookahead.objective[lookahead.best]:
                lookahead.best = index
            lookahead.objective.append(score)
        if lookahead.best >= first:
            winner = lookahead.best - first
            # A copy if more are to come, so that this batch's logits can be freed meanwhile.
            lookahead.best_logits = logits[winner] if is_last else logits[winner].clone()
            lookahead.best_statistics = statistics[winner]

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
            Lookahead(proposal, statistics.entropy, action_cost(statistics.entropy, proposal.positions)),
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
