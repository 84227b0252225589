"""Calls of `read` that take the most memory any call can, and compile the kernels before a request waits for them."""

import numpy as np
import torch

from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.metadata import SamplingMetadata
from vllm_infogain.sampling.read_logits import read

FEW = 16  # rows
USUAL_DRAWS = (1, DecodingParams.num_candidates)


def rehearse(logits: torch.Tensor, mask_id: int, vocab: int, num_candidates: int, logprobs: int) -> None:
    """Read rows as requests will have them read.

    Args:
        logits: [rows, columns] fp32, as many as will ever exist at once; altered.
        mask_id, vocab: see `read`.
        num_candidates: the server's default.
        logprobs: the most alternatives that a request may ask for.
    """
    draws = {*USUAL_DRAWS, num_candidates}
    for count in draws:
        for top_p in (1.0, 0.9):  # rows where they lie, and copies of them
            _read(logits[:FEW], mask_id, vocab, DecodingParams(num_candidates=count, temperature=1.0, top_p=top_p))
    params = DecodingParams(num_candidates=max(draws), temperature=1.0, top_p=0.9, logprobs=min(logprobs, vocab))
    _read(logits, mask_id, vocab, params)


def _read(logits: torch.Tensor, mask_id: int, vocab: int, params: DecodingParams) -> None:
    offsets = np.arange(len(logits))[None]
    read(
        logits,
        [SamplingMetadata(params, offsets, np.zeros(1, dtype=np.int64), np.full_like(offsets, mask_id))],
        mask_id,
        vocab,
    )
