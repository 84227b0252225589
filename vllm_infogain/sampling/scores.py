"""Position scores phi, higher first, and the samplers that choose how many positions to write by them."""

import math

import torch

from vllm_infogain.params import DecodingParams
from vllm_infogain.sampling.view import View


def position_score(
    name: str, view: View, tokens: torch.Tensor, params: DecodingParams, generator: torch.Generator
) -> torch.Tensor:
    """The score [candidates, masked] of writing the drawn tokens [candidates, masked]; probabilities at temperature 1.

    Sources: KLASS arXiv 2511.05664; PC-Sampler arXiv 2508.13021; EB arXiv 2505.24857; threshold and factor: Fast-dLLM
    arXiv 2505.22618.
    """
    statistics = view.statistics
    match name:
        case "sampled" | "threshold" | "factor":
            return drawn_probability(view, tokens)
        case "pc":
            return pc_score(view, tokens, params)
        case "confidence":
            score = statistics.top_probability
        case "entropy" | "eb":
            score = -statistics.entropy
        case "margin":
            score = statistics.margin
        case "klass":
            score = statistics.top_probability + is_stable(view, params.klass_epsilon)
        case "ar":
            score = -torch.arange(tokens.shape[-1], device=tokens.device, dtype=torch.float32)
        case "uniform":
            score = torch.rand(tokens.shape[-1], device=tokens.device, generator=generator)
        case _:
            raise AssertionError(name)
    return score.expand(tokens.shape[0], -1)


def drawn_probability(view: View, tokens: torch.Tensor) -> torch.Tensor:
    """The probability of each drawn token: [candidates, masked] -> the same shape."""
    drawn = view.logits.gather(-1, tokens.T).T
    return (drawn - view.statistics.log_normalizer).exp()


def is_stable(view: View, epsilon: float) -> torch.Tensor:
    """KLASS: 1 where KL(p now || p at the previous step) < epsilon nats, else 0 [masked]; 0 where there was none."""
    if view.previous is None:
        return torch.zeros_like(view.statistics.entropy)
    now = view.logits.log_softmax(-1)
    # A token forbidden at both steps has -inf - -inf; it weighs nothing.
    difference = torch.where(now == -torch.inf, 0.0, now - view.previous)
    return ((now.exp() * difference).sum(-1) < epsilon).float()


def pc_score(view: View, tokens: torch.Tensor, params: DecodingParams) -> torch.Tensor:
    """PC-Sampler: e^(-lambda l) x min(-p(x) log f(x), alpha) for offset l in the canvas and background frequency f.

    Without a background text f is uniform over the vocabulary.
    """
    vocabulary = view.logits.shape[-1]
    if view.log_frequencies is None:
        surprise = torch.full(tokens.shape, math.log(vocabulary), device=tokens.device)
    else:
        surprise = -view.log_frequencies[tokens]
    calibrated = (drawn_probability(view, tokens) * surprise).clamp_max(params.pc_alpha)
    return calibrated * torch.exp(-params.pc_lambda * view.offsets.float())


def adaptive_count(scores: torch.Tensor, view: View, params: DecodingParams) -> int | None:
    """How many of the best-scored positions [masked] an adaptive sampler writes, at least 1; None for any other.

    eb: as many, the surest first, as keep the sum of their entropies less the largest within the bound.
    threshold: all whose drawn token is at least that probable.
    factor: the largest n with (n + 1)(1 - p_n) < factor, p_n the n-th largest probability of a drawn token.
    """
    match params.sampler:
        case "eb":
            entropy = view.statistics.entropy.sort().values
            allowed = entropy.cumsum(-1) - entropy <= params.entropy_bound
        case "threshold":
            allowed = scores >= params.threshold
        case "factor":
            ordered = scores.sort(descending=True).values
            n = torch.arange(1, len(ordered) + 1, device=ordered.device)
            below = (n + 1) * (1 - ordered) < params.factor
            return max(1, int((n * below).max()))
        case _:
            return None
    return max(1, int(allowed.sum()))
