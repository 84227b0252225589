"""What is done to logits before anything is read off them, and before tokens are drawn from them."""

import torch

from vllm_infogain.params import DecodingParams


def adjust_logits(logits: torch.Tensor, mask_id: int, eos_ids: tuple[int, ...], eos_penalty: float) -> torch.Tensor:
    """Never predict the mask token; make EOS pay. Logits [rows, vocab], in place."""
    logits[:, mask_id] = -torch.inf
    if eos_penalty:
        for token in eos_ids:  # one by one: a list of indices would be copied to the device
            logits[:, token] -= eos_penalty
    return logits


def keep_likely(logits: torch.Tensor, params: DecodingParams) -> torch.Tensor:
    """Logits [rows, vocab] with -inf for what is not to be drawn: temperature, top-k, then top-p, as in vLLM."""
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
    return logits.masked_fill(scaled == -torch.inf, -torch.inf)
