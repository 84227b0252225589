"""Proposing actions: which positions to write next, and with which tokens. Pure functions on tensors.

An action writes `written` of the `masked` positions of the active block. Positions are indices into the block's
masked positions in canvas order; ties always go to the lower index.
"""

from dataclasses import dataclass

import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.statistics import RowStatistics


@dataclass(frozen=True)
class Proposal:
    """The distinct actions of one step; the first is the greedy one."""

    positions: torch.Tensor  # [candidates, written] int64, ascending in each row
    tokens: torch.Tensor  # [candidates, written] int64
    bypassed: bool  # the positions surer than gamma filled the whole action


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The random numbers of one step of one request.

    They depend on nothing else, so a request draws the same numbers in any batch, and after a preemption.
    """
    mixed = ((seed & 0xFFFFFFFF) << 20 | (seed >> 32) & 0xFFFFF) * 1_000_003 + step
    return torch.Generator(device).manual_seed(mixed & 0x7FFFFFFFFFFFFFFF)


def draw_tokens(logits: torch.Tensor, count: int, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """`count` independent draws per row from softmax(logits / temperature), by Gumbel-max.

    [rows, vocab] -> [count, rows]. Temperature 0 takes the most likely token.
    """
    if temperature == 0:
        return logits.argmax(-1).expand(count, -1)
    scaled = logits / temperature
    draws = []
    for _ in range(count):
        # -log of an exponential variate is a Gumbel variate. One [rows, vocab] buffer at a time.
        gumbel = torch.empty_like(scaled).exponential_(generator=generator).log_().neg_()
        draws.append((scaled + gumbel).argmax(-1))
    return torch.stack(draws)


def position_score(
    name: str, statistics: RowStatistics, logits: torch.Tensor, tokens: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """The certainty score phi [candidates, masked], higher first, for drawn tokens [candidates, masked]."""
    match name:
        case "sampled":
            drawn = logits.gather(-1, tokens.T).T
            return (drawn - statistics.log_normalizer).exp()
        case "confidence":
            score = statistics.top_probability
        case "entropy":
            score = -statistics.entropy
        case "margin":
            score = statistics.margin
        case "ar":
            score = -torch.arange(tokens.shape[-1], device=tokens.device, dtype=torch.float32)
        case "uniform":
            score = torch.rand(tokens.shape[-1], device=tokens.device, generator=generator)
        case _:
            raise AssertionError(name)
    return score.expand(tokens.shape[0], -1)


def choose_positions(
    scores: torch.Tensor, written: int, temperature: float, generator: torch.Generator
) -> torch.Tensor:
    """Positions without replacement from softmax(scores / temperature), by Gumbel top-k: [n, masked] -> [n, written].

    Temperature 0 takes the highest scores.
    """
    if temperature > 0:
        gumbel = torch.empty_like(scores, memory_format=torch.contiguous_format)
        gumbel.exponential_(generator=generator).log_().neg_()
        scores = scores / temperature + gumbel
    # A stable sort, not topk: equal scores must go to the lower index.
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :written]


def sure_positions(statistics: RowStatistics, threshold: float, limit: int) -> torch.Tensor:
    """High-confidence bypass: up to `limit` positions whose largest probability exceeds gamma, the surest first."""
    order = statistics.top_probability.sort(descending=True, stable=True).indices[:limit]
    return order[statistics.top_probability[order] > threshold]


def distinct(positions: torch.Tensor, tokens: torch.Tensor) -> Proposal:
    """Sort each action by position and drop all but the first of equal (position, token) sets."""
    positions, order = positions.sort(dim=-1)
    tokens = tokens.gather(-1, order)
    first: dict[tuple[int, ...], int] = {}
    for index, action in enumerate(torch.cat([positions, tokens], -1).tolist()):
        first.setdefault(tuple(action), index)
    keep = list(first.values())
    return Proposal(positions[keep], tokens[keep], bypassed=False)


def propose(
    logits: torch.Tensor, statistics: RowStatistics, params: DecodingParams, generator: torch.Generator
) -> Proposal:
    """The candidate actions of one step, from the logits [masked, vocab] of the block's masked positions.

    One candidate means that nothing has to be compared: a greedy sampler; every sure position filled the action
    (bypass); or the action writes all that is left of the block. In the last case H(z') = 0 and C are the same for
    every candidate, so J ties and the greedy action wins.
    """
    masked = logits.shape[0]
    written = min(params.tokens_per_step, masked)
    if not params.looks_ahead:
        tokens = draw_tokens(logits, 1, params.temperature, generator)
        scores = position_score(params.sampler, statistics, logits, tokens, generator)
        positions = choose_positions(scores, written, params.tau_position, generator)
        return distinct(positions, tokens.gather(-1, positions))

    greedy = draw_tokens(logits, 1, params.temperature, generator)  # [1, masked]
    if written == masked:
        return Proposal(torch.arange(masked, device=logits.device).unsqueeze(0), greedy, bypassed=False)
    sure = sure_positions(statistics, params.bypass_threshold, written)
    if sure.numel() == written:
        sure = sure.sort().values.unsqueeze(0)
        return Proposal(sure, greedy.gather(-1, sure), bypassed=True)

    count = params.num_candidates
    others = draw_tokens(logits, count - 1, params.temperature, generator) if count > 1 else greedy[:0]
    tokens = torch.cat([greedy, others])
    tokens[:, sure] = greedy[0, sure]  # fixed means the same in every candidate
    scores = position_score(params.position_score, statistics, logits, tokens, generator).clone()
    scores[:, sure] = -torch.inf
    free = written - sure.numel()
    positions = torch.cat(
        [
            choose_positions(scores[:1], free, 0.0, generator),
            choose_positions(scores[1:], free, params.tau_position, generator),
        ]
    )
    positions = torch.cat([sure.expand(count, -1), positions], -1)
    return distinct(positions, tokens.gather(-1, positions))
