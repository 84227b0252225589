"""The slow, plain sampler the engine is tested against: one sequence at a time, no pages, no batch, no carried logits.

It shares with the engine what has tests of its own: what is read off logits, the proposal of actions (and so the
random draws), the schedule, the canvas that decoding starts from, and whether a text can still match a grammar. Nothing
else: every state and every candidate gets a forward of its own, and H, C and J are written out from their definition in
float64.
"""

from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import torch

from vllm_infogain.grammar.automaton import TokenAutomaton, is_completable
from vllm_infogain.request.canvas import initial_canvas, stops_from
from vllm_infogain.request.constraints import Constraints
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.actions import propose, step_generator, step_rng_key
from vllm_infogain.sampling.best_of_n import generation_seeds
from vllm_infogain.sampling.block_view import BlockView
from vllm_infogain.sampling.metadata import PositionStatistics, SamplingMetadata
from vllm_infogain.sampling.read_logits import read
from vllm_infogain.sampling.schedule import annealing, next_write, plan_blocks

Action = list[tuple[int, int]]  # (position, token)


class Model(Protocol):
    def __call__(self, input_ids: torch.Tensor, /) -> torch.Tensor:
        """input_ids [1, length] -> logits [1, length, columns], row i of position i; only those of the active block and
        before matter to a block-causal model, which is called without what lies behind it."""


class CachingModel(Model, Protocol):
    """What the caches `prefix` and `dual` need."""

    def cache(self, input_ids: torch.Tensor) -> Any:
        """Keys and values of every position of input_ids [1, length]."""

    def window(self, input_ids: torch.Tensor, rows: range, cached: Any) -> torch.Tensor:
        """Logits [1, rows, vocab] of the positions `rows` of input_ids [1, length]; keys and values of other positions
        are the cached ones, but for a row that predicts one of these."""


@dataclass(frozen=True)
class OracleStep:
    positions: list[int]  # offsets in the canvas
    tokens: list[int]
    entropies: list[float]  # nats
    objective: list[float]  # J of every distinct candidate; empty when there was only one
    chosen: int
    logprobs: list[float]  # nats, of the tokens, at temperature 1
    bypassed: bool  # by look-ahead: every one of the positions is sure


@dataclass(frozen=True)
class OracleResult:
    tokens: list[int]  # [canvas], up to and including the first stop token of a finished block
    steps: list[OracleStep] = field(default_factory=list)

    @property
    def cumulative_entropy(self) -> float:
        return sum(sum(step.entropies) for step in self.steps)


@dataclass(frozen=True)
class Branch:
    """One hypothesis of a beam, or the only one."""

    state: list[int]
    steps: list[OracleStep] = field(default_factory=list)
    score: float = 0.0  # the sum of J
    block_step: int = 0
    idle_steps: int = 0  # of the block's schedule, which wrote nothing
    previous: dict[int, torch.Tensor] = field(default_factory=dict)  # log-probabilities [columns] one step earlier
    cached: Any = None  # keys and values of the state at the last refresh
    guide_cached: Any = None  # those of its guide, if it is guided

    @property
    def cumulative_entropy(self) -> float:
        return sum(sum(step.entropies) for step in self.steps)


@torch.inference_mode()
def decode(
    model: Model,
    prompt: list[int],
    params: DecodingParams,
    mask_id: int,
    log_frequencies: np.ndarray | None = None,
    automaton: TokenAutomaton | None = None,
    vocab: int | None = None,
) -> OracleResult:
    """Fill the canvas after the prompt. With `params.cache` the model must be a `KeepingModel`; columns of its logits
    from `vocab` on are never written."""
    if params.sampler == "best_of_n":
        greedy = replace(params, sampler="entropy", position_temperature=params.tau_position)
        generations = [
            decode(model, prompt, replace(greedy, seed=seed), mask_id, log_frequencies, automaton, vocab)
            for seed in generation_seeds(params)
        ]
        return min(generations, key=lambda generation: generation.cumulative_entropy)

    canvas = initial_canvas(params, mask_id)
    oracle = _Oracle(model, len(prompt), params, mask_id, log_frequencies, automaton, canvas, vocab)
    live = [Branch(prompt + canvas + list(params.suffix_token_ids))]
    done: list[OracleResult] = []
    width = params.beam_width if params.sampler == "beam" else 1
    while live:
        families = [oracle.expand(branch) for branch in live]
        if width == 1 or oracle.settles(live[0]):
            # Each hypothesis takes its best action; where a block is settled there is nothing to compete by.
            children = [max(family, key=lambda child: child.score) for family in families]
        else:
            # Of equal states the cheapest; the score says the same, but for a cost weight of 0.
            distinct: dict[tuple[int, ...], Branch] = {}
            for child in sorted((child for family in families for child in family), key=lambda c: -c.score):
                rival = distinct.setdefault(tuple(child.state), child)
                if child.cumulative_entropy < rival.cumulative_entropy:
                    distinct[tuple(child.state)] = child
            children = list(distinct.values())[: width - len(done)]
        results = [(child, oracle.result(child)) for child in children]
        done += [result for _, result in results if result is not None]
        live = [child for child, result in results if result is None]
    return min(done, key=lambda result: result.cumulative_entropy)


@dataclass(frozen=True)
class _Oracle:
    model: Model
    start: int  # of the canvas
    params: DecodingParams
    mask_id: int
    log_frequencies: np.ndarray | None
    automaton: TokenAutomaton | None
    initial: list[int]  # the canvas decoding started from
    vocab: int | None  # tokens of a text lie below it; None: every column has one

    @property
    def end(self) -> int:
        """Of the canvas."""
        return self.start + self.params.canvas_length

    @property
    def first_token(self) -> int:
        """Of the columns that are read."""
        return self.params.columns[0] if self.params.columns else 0

    def block_of(self, state: list[int]) -> tuple[int, int]:
        """First and last + 1 position of the block with the first mask."""
        size = self.params.block_length or len(state)
        origin = 0 if self.params.absolute_blocks or self.params.block_causal else self.start
        first = origin + (state.index(self.mask_id, self.start) - origin) // size * size
        return max(first, self.start), min(first + size, self.end)

    def masked(self, state: list[int], first: int, last: int) -> list[int]:
        return [position for position in range(first, last) if state[position] == self.mask_id]

    def scope(self, state: list[int], first: int, last: int) -> list[int]:
        """Masked positions that count for H."""
        everywhere = self.params.looks_ahead and self.params.uncertainty_scope == "sequence"
        return self.masked(state, first, self.end if everywhere else last)

    def written(self, branch: Branch) -> tuple[int, int, float]:
        """The step of the block's schedule that is next to write anything, how many positions, and its annealing."""
        first, last = self.block_of(branch.state)
        masked, step = len(self.masked(branch.state, first, last)), branch.block_step + branch.idle_steps
        blocks = plan_blocks(self.params, self.start, self.mask_id)
        (block,) = (block for block in blocks if (block.start, block.end) == (first - self.start, last - self.start))
        step, written = next_write(self.params, masked, step, block)
        return step, written, annealing(self.params, step, block)

    def settles(self, branch: Branch) -> bool:
        """Whether the next action leaves nothing masked that counts for H."""
        return self.written(branch)[1] == len(self.scope(branch.state, *self.block_of(branch.state)))

    def expand(self, branch: Branch) -> list[Branch]:
        """What every distinct candidate action leads to, in the order proposed."""
        branch = self.refresh(branch)
        state, params = branch.state, self.params
        first, last = self.block_of(state)
        positions, scope = self.masked(state, first, last), self.scope(state, first, last)
        statistics = self.read(branch, positions)
        canvas_offsets = np.array(positions) - self.start
        schedule_step, written, noise = self.written(branch)
        is_wider = len(scope) > len(positions)
        view = BlockView(statistics, canvas_offsets, self.log_frequencies, noise, masked_elsewhere=is_wider)
        proposal = propose(view, params, written, step_generator(params.seed, len(branch.steps)))
        actions: list[Action] = [
            [(positions[index], token) for index, token in zip(indices, tokens, strict=True)]
            for indices, tokens in zip(proposal.masked_indices.tolist(), proposal.tokens.tolist(), strict=True)
        ]
        logits = self.logits(branch, state, scope)
        entropy = dict(zip(scope, entropies(logits), strict=True))
        log_probability = dict(zip(scope, logits.log_softmax(-1), strict=True))
        is_compared = len(actions) > 1 or params.sampler == "beam"
        objective = [self.objective(branch, action, entropy) if is_compared else 0.0 for action in actions]
        previous: dict[int, torch.Tensor] = {}
        if statistics.log_probabilities is not None:
            previous = dict(zip(positions, statistics.log_probabilities, strict=True))
        children = []
        for chosen, (action, gain) in enumerate(zip(actions, objective, strict=True)):
            after = self.apply(state, action)
            step = OracleStep(
                positions=[position - self.start for position, _ in action],
                tokens=[token for _, token in action],
                entropies=[entropy[position] for position, _ in action],
                objective=objective if len(actions) > 1 else [],
                chosen=chosen,
                logprobs=[float(log_probability[position][token - self.first_token]) for position, token in action],
                bypassed=params.looks_ahead
                and len(actions) == 1
                and all(self.is_sure(log_probability[position]) for position, _ in action),
            )
            is_finished = not self.masked(after, first, last)
            children.append(
                Branch(
                    after,
                    [*branch.steps, step],
                    branch.score + gain,
                    0 if is_finished else branch.block_step + 1,
                    0 if is_finished else schedule_step - branch.block_step,
                    {} if is_finished else previous,
                    branch.cached,
                    branch.guide_cached,
                )
            )
        return children

    def refresh(self, branch: Branch) -> Branch:
        """The branch with keys and values cached anew, where it is time."""
        every, step = self.params.cache_refresh, branch.block_step
        if self.params.cache == "none" or (step > 0 and (every == 0 or step % every > 0)):
            return branch
        model = cast(CachingModel, self.model)
        guide = model.cache(torch.tensor([self.guide(branch.state)])) if self.params.guidance_scale else None
        return replace(branch, cached=model.cache(torch.tensor([branch.state])), guide_cached=guide)

    def read(self, branch: Branch, positions: list[int]) -> PositionStatistics:
        """What the proposal sees of the state: the rows of the block's masked positions, and what is drawn there."""
        metadata = SamplingMetadata(
            self.params,
            np.array([positions]) - self.start,
            np.array([step_rng_key(self.params.seed, len(branch.steps))]),
            np.array([branch.state[self.start : self.end]]),
            stops_from=stops_from(self.params, self.mask_id),
            automaton=self.automaton,
            previous=torch.stack([branch.previous[position] for position in positions]) if branch.previous else None,
        )
        (output,) = read(self.rows(branch, branch.state, positions), [metadata], self.mask_id, self.vocab)
        return output.statistics[0]

    def result(self, branch: Branch) -> OracleResult | None:
        """The answer, if the canvas is full or a finished block holds a stop token."""
        finished = branch.state[self.start : self.end]
        if self.mask_id in finished:
            finished = finished[: self.block_of(branch.state)[0] - self.start]
        for index, token in enumerate(finished):
            if token in self.params.stop_ids:
                return OracleResult(finished[: index + 1], branch.steps)
        return OracleResult(finished, branch.steps) if len(finished) == self.params.canvas_length else None

    def apply(self, state: list[int], action: Action) -> list[int]:
        after = list(state)
        for position, token in action:
            after[position] = token
        return after

    def objective(self, branch: Branch, action: Action, entropy: dict[int, float]) -> float:
        """J(a, z) = H(z) - H(z') - w C(a, z); for LookUM -H(z')."""
        after = self.apply(branch.state, action)
        left = [position for position in entropy if after[position] == self.mask_id]
        uncertainty_after = self.uncertainty(entropies(self.logits(branch, after, left)) if left else [])
        if self.params.sampler == "lookum":
            return -uncertainty_after
        cost = sum(entropy[position] for position, _ in action)
        return self.uncertainty(list(entropy.values())) - uncertainty_after - self.params.cost_weight * cost

    def uncertainty(self, values: list[float]) -> float:
        if not values:
            return 0.0
        return sum(values) / (len(values) if self.params.state_uncertainty == "mean" else 1)

    def rows(self, branch: Branch, state: list[int], positions: list[int]) -> torch.Tensor:
        """The logits [places, columns] fp32 of the branch's state, or of an outcome of it: the model's, or guided; of a
        picture only the columns of its codes."""
        first, last = self.params.columns or (0, None)
        return self.whole_rows(branch, state, positions)[:, first:last]

    def whole_rows(self, branch: Branch, state: list[int], positions: list[int]) -> torch.Tensor:
        block = self.block_of(branch.state)
        own = self.rows_of(state, positions, block, branch.cached)
        scale, moved = self.params.guidance_scale, self.guide_start - self.start
        if scale == 0:
            return own
        there = [position + moved for position in positions]
        block = (block[0] + moved, block[1] + moved)
        return (1 + scale) * own - scale * self.rows_of(self.guide(state), there, block, branch.guide_cached)

    def rows_of(self, state: list[int], positions: list[int], block: tuple[int, int], cached: Any) -> torch.Tensor:
        """The model's own, of a state or a guide whose active block this is."""
        first, last = block
        ids = torch.tensor([state])
        if self.params.block_causal:
            return self.model(ids[:, :last])[0, positions].float()
        if self.params.cache == "none":
            return self.model(ids)[0, positions].float()
        window = range(first, last if self.params.cache == "dual" else len(state))
        logits = cast(CachingModel, self.model).window(ids, window, cached)
        return logits[0, [position - first for position in positions]].float()

    def guide(self, state: list[int]) -> list[int]:
        """The state behind the guide's prompt."""
        prompt = self.params.guidance_prompt_ids
        return [*([self.mask_id] * self.start if prompt is None else prompt), *state[self.start :]]

    @property
    def guide_start(self) -> int:
        """Of the canvas in a guide."""
        return self.start if self.params.guidance_prompt_ids is None else len(self.params.guidance_prompt_ids)

    def logits(self, branch: Branch, state: list[int], positions: list[int]) -> torch.Tensor:
        """`rows`, with EOS paying its penalty and -inf for what the request's constraints bar. The mask token and
        padding, which are never written either, have their share of the distribution all the same."""
        logits, constraints = self.rows(branch, state, positions), self.params.constraints
        logits[:, list(self.params.eos_ids)] -= self.params.eos_penalty
        for token, bias in constraints.logit_bias:
            logits[:, token] += bias
        is_infilling = any(token != self.mask_id for token in self.initial)
        if not (is_infilling or self.automaton or constraints != Constraints()):
            return logits
        for row, position in zip(logits, positions, strict=True):
            for column in range(len(row)):
                if not self.is_allowed(state, position, self.first_token + column):
                    row[column] = -torch.inf
        return logits

    def is_sure(self, log_probability: torch.Tensor) -> bool:
        """Whether any token that may be written there [columns] is likelier than gamma."""
        text = log_probability[: None if self.params.columns else self.vocab].clone()
        if not self.params.columns:
            text[self.mask_id] = -torch.inf
        return bool(text.max().exp() > self.params.bypass_threshold)

    def is_allowed(self, state: list[int], position: int, token: int) -> bool:
        constraints = self.params.constraints
        if constraints.allowed_ids and token not in constraints.allowed_ids:
            return False
        canvas_offset, after = position - self.start, self.apply(state, [(position, token)])[self.start : self.end]
        stands_behind = any(token != self.mask_id for token in self.initial[canvas_offset + 1 :])
        stops_early = canvas_offset < constraints.min_tokens or (stands_behind and self.automaton is None)
        if token in self.params.stop_ids and stops_early:
            return False
        for word in constraints.banned:
            starts = range(max(0, canvas_offset - len(word) + 1), canvas_offset + 1)
            if any(after[start : start + len(word)] == list(word) for start in starts):
                return False
        if self.automaton is None:
            return True
        is_text = token != self.mask_id and (self.vocab is None or token < self.vocab)
        return is_text and is_completable(self.automaton, np.array(after), self.mask_id)


def entropies(logits: torch.Tensor) -> list[float]:
    """Entropy of each row [rows, columns] in nats, at temperature 1, over all of it."""
    log_probabilities = logits.double().log_softmax(-1)
    probabilities = log_probabilities.exp()
    return [
        -sum(p * log_p for p, log_p in zip(row, log_row, strict=True) if p > 0)
        for row, log_row in zip(probabilities.tolist(), log_probabilities.tolist(), strict=True)
    ]
