"""Position scores phi, higher first, and the samplers that choose how many positions to write by them."""

import math

import numpy as np

from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.block_view import BlockView

HELD_BACK = -1e30  # a score below all others, but above -inf


def position_score(name: str, view: BlockView, params: DecodingParams, rng: np.random.Generator) -> np.ndarray:
    """The score [draws, masked] of writing each draw's tokens; probabilities at temperature 1.

    Sources: MaskGIT arXiv 2202.04200; KLASS arXiv 2511.05664; PC-Sampler arXiv 2508.13021; EB arXiv 2505.24857;
    threshold and factor: Fast-dLLM arXiv 2505.22618.
    """
    statistics = view.statistics
    match name:
        case "sampled" | "threshold" | "factor":
            return statistics.probabilities
        case "pc":
            return pc_score(view, params)
        case "maskgit":  # whose noise is of this scale: a Gumbel number times the temperature
            return np.log(np.maximum(statistics.probabilities, np.finfo(np.float32).tiny))
        case "confidence":
            score = statistics.top_probability
        case "entropy" | "eb":
            score = -statistics.entropy
        case "margin":
            score = statistics.margin
        case "klass":
            score = statistics.top_probability + is_stable(view, params.klass_epsilon)
        case "ar":
            score = -np.arange(len(statistics.entropy), dtype=np.float32)
        case "uniform":
            score = rng.random(len(statistics.entropy))
        case _:
            raise AssertionError(name)
    return np.broadcast_to(score, statistics.tokens.shape)


def held_back(tokens: np.ndarray, params: DecodingParams) -> np.ndarray:
    """Where each draw's tokens [draws, masked] have to wait until the rest is written: bool, same shape.

    With `eos_last` those are the ones that end the text, unless the draw has no others. (LLaDA's option: a confidence
    of -inf, so that a canvas is not filled with ends before there is a text.)
    """
    if not params.eos_last:
        return np.zeros(tokens.shape, dtype=bool)
    ends = np.isin(tokens, params.end_ids)
    return ends & ~ends.all(-1, keepdims=True)


def is_stable(view: BlockView, epsilon: float) -> np.ndarray:
    """KLASS: whether KL(p now || p at the previous step) < epsilon nats [masked]; False where there was none."""
    if view.statistics.divergence is None:
        return np.zeros(len(view.statistics.entropy), dtype=bool)
    return view.statistics.divergence < epsilon


def pc_score(view: BlockView, params: DecodingParams) -> np.ndarray:
    """PC-Sampler: e^(-lambda l) x min(-p(x) log f(x), alpha) for offset l in the canvas and background frequency f.

    Without a background text f is uniform over the vocabulary.
    """
    statistics = view.statistics
    surprise = math.log(statistics.vocab) if view.log_frequencies is None else -view.log_frequencies[statistics.tokens]
    calibrated = np.minimum(statistics.probabilities * surprise, params.pc_alpha)
    return calibrated * np.exp(-params.pc_lambda * view.canvas_offsets)


def count_to_write(scores: np.ndarray, view: BlockView, params: DecodingParams, scheduled: int) -> int:
    """How many of the best-scored positions [masked] are written: those scheduled, but for adaptive samplers.

    eb: as many, the surest first, as keep the sum of their entropies less the largest within the bound.
    threshold: all whose drawn token is at least that probable, and no fewer than scheduled.
    factor: the largest n with (n + 1)(1 - p_n) < factor, p_n the n-th largest probability of a drawn token.
    None counts a position that is held back.
    The last of a schedule's steps writes all that is left, whoever chooses.
    """
    if params.schedule != "fixed" and scheduled == len(scores):
        return scheduled
    match params.sampler:
        case "eb":
            entropy = np.sort(view.statistics.entropy[scores > HELD_BACK])
            return max(1, int((entropy.cumsum() - entropy <= params.entropy_bound).sum()))
        case "threshold":
            return max(scheduled, int((scores >= params.threshold).sum()))
        case "factor":
            n = np.arange(1, len(scores) + 1)
            below = (n + 1) * (1 - np.sort(scores)[::-1]) < params.factor
            return max(1, int((n * below).max()))
        case _:
            return scheduled
