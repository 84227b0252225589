"""The Info-Gain objective (arXiv 2602.18176, eq. 3-5). Pure functions on tensors; everything in nats."""

import torch

from vllm_infogain.params import DecodingParams


def state_uncertainty(entropy: torch.Tensor, how: str) -> torch.Tensor:
    """H(z) from the entropies [..., masked] of the positions that count -> [...].

    `mean` is the paper's; `sum` leaves out its normaliser. 0 where nothing is masked.
    """
    if entropy.shape[-1] == 0:
        return entropy.new_zeros(entropy.shape[:-1])
    return entropy.mean(-1) if how == "mean" else entropy.sum(-1)


def action_cost(entropy: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """C(a, z): the summed entropy at the positions each action writes.

    entropy [masked], positions [candidates, written] (indices into entropy) -> [candidates].
    """
    return entropy[positions].sum(-1)


def objective(params: DecodingParams, now: torch.Tensor, after: torch.Tensor, cost: torch.Tensor) -> torch.Tensor:
    """J of each candidate [candidates], from H(z) [], H(z') [candidates] and C(a, z) [candidates].

    info_gain, beam: J = H(z) - H(z') - w C, w the cost weight; lookum: J = -H(z'), which ranks as w = 0 does.
    """
    return -after if params.sampler == "lookum" else now - after - params.cost_weight * cost
