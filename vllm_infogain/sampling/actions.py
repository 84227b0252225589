"""Proposing actions: which positions to write next, and with which tokens. Pure functions on tensors.

An action writes `written` of the `masked` positions of the active block. Positions are indices into the block's
masked positions in canvas order; ties always go to the lower index.
"""

import hashlib
from dataclasses import dataclass

import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.scores import adaptive_count, position_score
from vllm_infogain.sampling.statistics import RowStatistics
from vllm_infogain.sampling.view import View


@dataclass(frozen=True)
class Proposal:
    """The distinct actions of one step; the first is the greedy one."""

    positions: torch.Tensor  # [candidates, written] int64, ascending in each row
    tokens: torch.Tensor  # [candidates, written] int64
    bypassed: bool  # sure positions made up the whole action


def step_generator(seed: int, step: int, device: torch.device) -> torch.Generator:
    """The random numbers of one step of one request.

    They depend on nothing else, so a request draws the same numbers in any batch, and after a preemption.
    """
    # A hash, because torch's CPU generator reads only the low 32 bits of its seed.
    digest = hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "big") >> 1)


def token_logits(logits: torch.Tensor, params: DecodingParams) -> torch.Tensor:
    """The logits [masked, vocab] that tokens are drawn from: temperature, then top-k, then top-p, as in vLLM."""
    if params.temperature == 0:
        return logits
    scaled = logits / params.temperature
    if 0 < params.top_k < scaled.shape[-1]:
        kth = scaled.topk(params.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    if params.top_p < 1:
        ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
        probabilities = ordered.softmax(-1)
        # A token stays if those before it do not yet reach top_p; the first always stays.
        beyond = probabilities.cumsum(-1) - probabilities >= params.top_p
        beyond[..., 0] = False
        scaled = scaled.masked_fill(beyond.scatter(-1, order, beyond), -torch.inf)
    return scaled


def draw_tokens(scaled: torch.Tensor, count: int, temperature: float, generator: torch.Generator) -> torch.Tensor:
    """`count` independent draws per row from softmax(scaled), by Gumbel-max: [masked, vocab] -> [count, masked].

    `scaled` is what `token_logits` gave; at temperature 0 the most likely token is taken.
    """
    if temperature == 0:
        return scaled.argmax(-1).expand(count, -1)
    draws = []
    for _ in range(count):
        # -log of an exponential variate is a Gumbel variate. One [masked, vocab] buffer at a time.
        gumbel = torch.empty_like(scaled).exponential_(generator=generator).log_().neg_()
        draws.append((scaled + gumbel).argmax(-1))
    return torch.stack(draws) if draws else scaled.new_empty((0, scaled.shape[0]), dtype=torch.int64)


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


def propose(view: View, params: DecodingParams, written: int, generator: torch.Generator) -> Proposal:
    """The candidate actions of one step, each writing `written` positions (adaptive samplers: as many as they allow).

    One candidate means that nothing has to be compared.
    """
    if params.looks_ahead:
        return propose_candidates(view, params, written, generator)
    scaled = token_logits(view.logits, params)
    tokens = draw_tokens(scaled, 1, params.temperature, generator)
    scores = position_score(params.sampler, view, tokens, params, generator)
    written = adaptive_count(scores[0], view, params) or written
    positions = choose_positions(scores, written, params.tau_position, generator)
    return distinct(positions, tokens.gather(-1, positions))


def propose_candidates(view: View, params: DecodingParams, written: int, generator: torch.Generator) -> Proposal:
    """The actions that look-ahead compares: the greedy one, and N - 1 drawn ones.

    Greedy in its positions: they are the best ones. Its tokens, those of sure positions too, are drawn at the token
    temperature like any others, so that N = 1 is the greedy sampler at that temperature.

    There is only one if sure positions make up the whole action (bypass), or if the action settles all that counts
    for H(z): then H(z') = 0 and C are the same for every candidate, J ties, and the greedy action wins.
    """
    scaled = token_logits(view.logits, params)
    greedy = draw_tokens(scaled, 1, params.temperature, generator)  # [1, masked]
    masked = view.logits.shape[0]
    if written == masked and not view.masked_elsewhere:
        return Proposal(torch.arange(masked, device=scaled.device).unsqueeze(0), greedy, bypassed=False)
    sure = sure_positions(view.statistics, params.bypass_threshold, written)
    is_last = written == masked  # which takes what is left, whatever the mode
    if sure.numel() == written or (sure.numel() > 0 and params.bypass_mode == "only" and not is_last):
        sure = sure.sort().values.unsqueeze(0)
        return Proposal(sure, greedy.gather(-1, sure), bypassed=True)

    count = params.num_candidates
    tokens = torch.cat([greedy, draw_tokens(scaled, count - 1, params.temperature, generator)])
    tokens[:, sure] = greedy[0, sure]  # fixed means the same in every candidate
    scores = position_score(params.position_score, view, tokens, params, generator).clone()
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
