"""The slow, plain sampler the engine is tested against: one sequence at a time, no cache, no batch, no carried logits.

It shares with the engine the proposal of actions (and so the random draws), which has tests of its own, and nothing
else: every state and every candidate gets a forward of its own, and H, C and J are written out from their definition
in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.actions import propose, step_generator
from vllm_infogain.sampling.statistics import row_statistics

Model = Callable[[torch.Tensor], torch.Tensor]  # input_ids [1, length] -> logits [1, length, vocab]


@dataclass(frozen=True)
class OracleStep:
    positions: list[int]  # offsets in the canvas
    tokens: list[int]
    entropies: list[float]  # nats
    objective: list[float]  # J of every distinct candidate; empty when there was only one
    chosen: int


@dataclass(frozen=True)
class OracleResult:
    tokens: list[int]  # [canvas]
    steps: list[OracleStep]

    @property
    def cumulative_entropy(self) -> float:
        return sum(sum(step.entropies) for step in self.steps)


@torch.inference_mode()
def decode(model: Model, prompt: list[int], params: DecodingParams, mask_id: int) -> OracleResult:
    """Fill `params.canvas_length` masks after the prompt."""
    state = prompt + [mask_id] * params.canvas_length
    steps: list[OracleStep] = []
    block = params.block_length or params.canvas_length
    for start in range(len(prompt), len(state), block):
        end = min(start + block, len(state))
        while masked := [position for position in range(start, end) if state[position] == mask_id]:
            logits = _masked_logits(model, state, masked, mask_id)
            generator = step_generator(params.seed, len(steps), logits.device)
            proposal = propose(logits, row_statistics(logits), params, generator)
            candidates = [
                [(masked[index], token) for index, token in zip(positions, tokens, strict=True)]
                for positions, tokens in zip(proposal.positions.tolist(), proposal.tokens.tolist(), strict=True)
            ]
            entropy = dict(zip(masked, _entropies(logits), strict=True))
            scores: list[float] = []
            if len(candidates) > 1:
                scores = [_objective(model, state, action, entropy, params, mask_id) for action in candidates]
            chosen = scores.index(max(scores)) if scores else 0
            action = candidates[chosen]
            for position, token in action:
                state[position] = token
            steps.append(
                OracleStep(
                    positions=[position - len(prompt) for position, _ in action],
                    tokens=[token for _, token in action],
                    entropies=[entropy[position] for position, _ in action],
                    objective=scores,
                    chosen=chosen,
                )
            )
    return OracleResult(state[len(prompt) :], steps)


def _objective(
    model: Model,
    state: list[int],
    action: list[tuple[int, int]],
    entropy: dict[int, float],
    params: DecodingParams,
    mask_id: int,
) -> float:
    """J(a, z) = H(z) - H(z') - C(a, z); for LookUM -H(z')."""
    after = list(state)
    for position, token in action:
        after[position] = token
    left = [position for position in entropy if after[position] == mask_id]
    entropy_after = _entropies(_masked_logits(model, after, left, mask_id)) if left else []
    uncertainty_after = _uncertainty(entropy_after, params)
    if params.sampler == "lookum":
        return -uncertainty_after
    cost = sum(entropy[position] for position, _ in action)
    return _uncertainty(list(entropy.values()), params) - uncertainty_after - cost


def _uncertainty(entropies: list[float], params: DecodingParams) -> float:
    if not entropies:
        return 0.0
    return sum(entropies) / (len(entropies) if params.state_uncertainty == "mean" else 1)


def _masked_logits(model: Model, state: list[int], masked: list[int], mask_id: int) -> torch.Tensor:
    """Logits [masked, vocab] fp32 at the masked positions; the mask token itself is never predicted."""
    logits = model(torch.tensor([state]))[0, masked].float()
    logits[:, mask_id] = -torch.inf
    return logits


def _entropies(logits: torch.Tensor) -> list[float]:
    """Entropy of each row [rows, vocab] in nats, at temperature 1."""
    log_probabilities = logits.double().log_softmax(-1)
    probabilities = log_probabilities.exp()
    return [
        -sum(p * log_p for p, log_p in zip(row, log_row, strict=True) if p > 0)
        for row, log_row in zip(probabilities.tolist(), log_probabilities.tolist(), strict=True)
    ]
