"""The Info-Gain objective (arXiv 2602.18176, eq. 3-5). Pure functions on arrays; float64, in nats."""

from typing import Any

import numpy as np

from vllm_infogain.request.params import DecodingParams


def state_uncertainty(entropy: np.ndarray, how: str) -> Any:
    """H(z) from the entropies [..., masked] of the positions that count -> [...] float64.

    `mean` is the paper's; `sum` leaves out its normaliser. 0 where nothing is masked.
    """
    total = entropy.sum(-1, dtype=np.float64)
    return total / max(1, entropy.shape[-1]) if how == "mean" else total


def action_cost(entropy: np.ndarray, masked_indices: np.ndarray) -> np.ndarray:
    """C(a, z): the summed entropy at what each action writes.

    entropy [masked], masked_indices [candidates, written] -> [candidates] float64.
    """
    return entropy[masked_indices].sum(-1, dtype=np.float64)


def settled_objective(params: DecodingParams, now: float, cost: np.ndarray) -> np.ndarray:
    """J of each candidate [candidates], were it to leave nothing uncertain: in general J is this less H(z').

    From H(z) and C(a, z) [candidates]. info_gain, beam: J = H(z) - H(z') - w C, w the cost weight; lookum: J = -H(z'),
    which ranks as w = 0 does.
    """
    return np.zeros_like(cost) if params.sampler == "lookum" else now - params.cost_weight * cost
