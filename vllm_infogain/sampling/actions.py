"""Proposing actions: which positions to write next, and with which tokens. Pure functions on arrays.

An action writes `written` of the `masked` positions of the active block. Positions are given as masked indices:
counted among the block's masked positions in canvas order. Ties always go to the lower index.
"""

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.block_view import BlockView
from vllm_infogain.sampling.scores import HELD_BACK, count_to_write, held_back, position_score

LEAST_TEMPERATURE = 1e-6  # a lower one takes the best score all the same, and scores divided by it could overflow


@dataclass(frozen=True)
class Proposal:
    """The distinct actions of one step; the first is the greedy one."""

    masked_indices: np.ndarray  # [candidates, written] int64, ascending in each row
    tokens: np.ndarray  # [candidates, written] int64
    bypassed: bool = False  # by look-ahead: nothing to compare, and every position it writes is surer than gamma


def step_rng_key(seed: int, step: int) -> int:
    """63 bits that the random numbers of one step of one request derive from.

    They depend on nothing else, so a request draws the same numbers in any batch, and after a preemption.
    """
    # A hash, so that neighbouring seeds and steps, and seeds of more than 63 bits, have nothing in common.
    return int.from_bytes(hashlib.blake2b(f"{seed}/{step}".encode(), digest_size=8).digest(), "big") >> 1


def step_generator(seed: int, step: int) -> np.random.Generator:
    """The random numbers by which a step chooses positions; its tokens are drawn on the device, from the same key."""
    return np.random.Generator(np.random.PCG64(step_rng_key(seed, step)))


def choose_positions(scores: np.ndarray, written: int, temperature: float, rng: np.random.Generator) -> np.ndarray:
    """Positions without replacement from softmax(scores / temperature), by Gumbel top-k: [n, masked] -> [n, written].

    Temperature 0 takes the highest scores.
    """
    if temperature > LEAST_TEMPERATURE:
        scores = scores.astype(np.float64) / temperature + rng.gumbel(size=scores.shape)
    if written == 1:
        return scores.argmax(-1)[:, None]
    # A stable sort, not a partition: equal scores must go to the lower index.
    return (-scores).argsort(-1, kind="stable")[:, :written]


def sure_positions(top_probability: np.ndarray, threshold: float, limit: int) -> np.ndarray:
    """High-confidence bypass: up to `limit` positions whose largest probability exceeds gamma, the surest first."""
    sure = np.flatnonzero(top_probability > threshold)
    return sure[(-top_probability[sure]).argsort(kind="stable")[:limit]]


def next_surest(certainty: np.ndarray, sure: np.ndarray, entropy: np.ndarray, bound: float) -> np.ndarray:
    """Beside sure positions the surest of the others [0 or 1], if its entropy is within the bound; beside none, none.

    certainty [masked]: the largest probability, or below 0 where the position has to wait.
    """
    others = certainty.copy()
    others[sure] = -1.0
    surest = int(others.argmax())
    is_taken = len(sure) > 0 and others[surest] >= 0 and entropy[surest] <= bound
    return np.array([surest] if is_taken else [], dtype=np.int64)


def distinct(masked_indices: np.ndarray, tokens: np.ndarray) -> Proposal:
    """Sort each action by position and drop all but the first of equal (position, token) sets."""
    rows = np.arange(len(masked_indices))[:, None]
    if masked_indices.shape[1] > 1:
        order = masked_indices.argsort(-1)
        masked_indices, tokens = masked_indices[rows, order], tokens[rows, order]
    first: dict[bytes, int] = {}
    for index, action in enumerate(np.concatenate([masked_indices, tokens], -1)):
        first.setdefault(action.tobytes(), index)
    if len(first) < len(masked_indices):
        keep = list(first.values())
        masked_indices, tokens = masked_indices[keep], tokens[keep]
    return Proposal(masked_indices, tokens)


def propose(view: BlockView, params: DecodingParams, written: int, rng: np.random.Generator) -> Proposal:
    """The candidate actions of one step, each writing `written` positions (adaptive samplers: as many as they allow).

    One candidate means that nothing has to be compared.
    """
    if params.looks_ahead:
        proposal = propose_candidates(view, params, written, rng)
        least = view.statistics.top_probability[proposal.masked_indices].min()
        return replace(proposal, bypassed=len(proposal.masked_indices) == 1 and bool(least > params.bypass_threshold))
    scores = position_score(params.sampler, view, params, rng)
    scores = np.where(held_back(view.statistics.tokens, params), HELD_BACK, scores)
    written = count_to_write(scores[0], view, params, written)
    masked_indices = np.sort(choose_positions(scores, written, params.tau_position * view.annealing, rng))
    return Proposal(masked_indices, view.statistics.tokens[:1, masked_indices[0]])


def propose_candidates(view: BlockView, params: DecodingParams, written: int, rng: np.random.Generator) -> Proposal:
    """The actions that look-ahead compares: the greedy one, and N - 1 drawn ones.

    Greedy in its positions: they are the best ones. Its tokens, those of sure positions too, are drawn at the token
    temperature like any others, so that N = 1 is the greedy sampler at that temperature.

    There is only one if sure positions make up the whole action (bypass), or if the action settles all that counts
    for H(z): then H(z') = 0 and C are the same for every candidate, J ties, and the greedy action wins.

    `adaptive` writes all sure positions, however many: `written` is what it writes at least. Beside them it writes the
    surest of the others, if that is within its entropy bound.
    """
    statistics = view.statistics
    tokens = statistics.tokens  # [candidates, masked], the greedy action's first
    count, masked = tokens.shape
    if written == masked and not view.masked_elsewhere:
        return Proposal(np.arange(masked)[None], tokens[:1])
    waits = held_back(tokens, params)
    certainty = np.where(waits[0], -1.0, statistics.top_probability)
    if params.sampler == "adaptive":
        sure = sure_positions(certainty, params.bypass_threshold, masked)
        sure = np.concatenate([sure, next_surest(certainty, sure, statistics.entropy, params.entropy_bound)])
    else:
        sure = sure_positions(certainty, params.bypass_threshold, written)
    is_last = written == masked  # which takes what is left, whatever the mode
    if len(sure) >= written or (len(sure) and params.bypass_mode == "only" and not is_last):
        sure = np.sort(sure)
        return Proposal(sure[None], tokens[:1, sure])

    scores = np.where(waits, HELD_BACK, position_score(params.position_score, view, params, rng))
    if len(sure):
        tokens = tokens.copy()
        scores[:, sure] = -np.inf
        tokens[:, sure] = tokens[0, sure]  # fixed means the same in every candidate
    free = written - len(sure)
    masked_indices = np.concatenate(
        [choose_positions(scores[:1], free, 0.0, rng), choose_positions(scores[1:], free, params.tau_position, rng)]
    )
    if len(sure):
        masked_indices = np.concatenate([np.broadcast_to(sure, (count, len(sure))), masked_indices], -1)
    return distinct(masked_indices, tokens[np.arange(count)[:, None], masked_indices])
