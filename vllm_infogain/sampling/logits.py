"""What is done to logits before anything is read off them, and before tokens are drawn from them."""

import numpy as np
import torch

from vllm_infogain.grammar.automaton import allowed
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.metadata import SamplingMetadata
from vllm_infogain.sampling.slices import slices
from vllm_infogain.sampling.transfer import to_device


def adjustment(params: DecodingParams) -> tuple:
    """What `adjust_logits` depends on: rows of requests that agree in it are adjusted at once."""
    constraints = params.constraints
    return params.eos_ids, params.eos_penalty, constraints.logit_bias, constraints.allowed_ids, constraints.banned_ids


def adjust_logits(logits: torch.Tensor, params: DecodingParams) -> torch.Tensor:
    """Apply what holds for every row of a request alike. Logits [rows, columns], in place.

    The penalty of EOS comes first, then `logit_bias`, `allowed_token_ids` and banned tokens.
    """
    if params.eos_penalty:
        for token in params.eos_ids:  # one by one: a list of indices would be copied to the device
            logits[:, token] -= params.eos_penalty
    constraints = params.constraints
    if constraints.logit_bias:
        tokens, biases = zip(*constraints.logit_bias, strict=True)
        index, bias = to_device([np.array(tokens), np.array(biases, dtype=np.float64)], logits.device)
        logits += torch.zeros_like(logits[0]).index_add_(0, index, bias.float())
    if constraints.allowed_ids:
        (index,) = to_device([np.array(constraints.allowed_ids)], logits.device)
        others = torch.full_like(logits[0], -torch.inf).index_fill_(0, index, 0.0)
        logits += others
    if constraints.banned_ids:
        (index,) = to_device([np.array(constraints.banned_ids)], logits.device)
        logits.index_fill_(1, index, -torch.inf)
    return logits


def forbid(logits: torch.Tensor, metadata: SamplingMetadata, mask_id: int) -> None:
    """Set to -inf what may not be written at some rows of a request. Logits [rows, columns], in place.

    That depends on the canvases: stop tokens before the text may end, tokens that would complete a banned word, and
    tokens that no text of the grammar has there.
    """
    params = metadata.params
    if metadata.stops_from and params.stop_ids and metadata.automaton is None:  # else the grammar says it
        early = np.flatnonzero(metadata.canvas_offsets.ravel() < metadata.stops_from)
        _forbid_pairs(logits, early[:, None], np.array(params.stop_ids)[None])
    for word in params.constraints.banned_words:
        for index in range(len(word)):
            rows = np.flatnonzero(_completes(metadata, word, index).ravel())
            _forbid_pairs(logits, rows, np.array(word[index]))
    if metadata.automaton is not None:
        barred = ~allowed(metadata.automaton, metadata.canvases, mask_id, metadata.canvas_offsets).reshape(
            len(logits), -1
        )
        (class_of,) = to_device([metadata.automaton.class_of], logits.device)
        for part in slices(*logits.shape):
            (barred_there,) = to_device([barred[part]], logits.device)
            logits[part, : len(class_of)].masked_fill_(barred_there.index_select(1, class_of), -torch.inf)
        logits[:, len(class_of) :] = -torch.inf  # padding, which spells nothing


def _forbid_pairs(logits: torch.Tensor, rows: np.ndarray, tokens: np.ndarray) -> None:
    """Rows and tokens are broadcast against each other."""
    if rows.size:
        row, token = to_device([rows, tokens], logits.device)
        logits.index_put_((row, token), logits.new_full((), -torch.inf))  # made on the device


def _completes(metadata: SamplingMetadata, word: tuple[int, ...], index: int) -> np.ndarray:
    """Where the word's `index`-th token would complete the word: [sequences, masked] bool."""
    length = metadata.canvases.shape[1]
    found = np.ones(metadata.canvas_offsets.shape, dtype=bool)
    for other, token in enumerate(word):
        if other != index:
            neighbour = metadata.canvas_offsets + other - index
            inside = (neighbour >= 0) & (neighbour < length)
            there = np.take_along_axis(metadata.canvases, neighbour.clip(0, length - 1), 1)
            found &= inside & (there == token)
    return found


def narrows(params: DecodingParams) -> bool:
    """Whether tokens are drawn from some of those allowed only."""
    return bool(params.top_k) or params.top_p < 1 or params.min_p > 0


def keep_likely(logits: torch.Tensor, params: DecodingParams) -> torch.Tensor:
    """Logits [rows, vocab] with -inf for what is not to be drawn: temperature, min-p, top-k, then top-p, as in vLLM.

    Takes up to 7 times the memory of its input while it runs.
    """
    scaled = logits / params.temperature
    if params.min_p > 0:
        # p < min_p x the largest p, in logarithms
        least = scaled.amax(-1, keepdim=True) + np.log(params.min_p)
        scaled = scaled.masked_fill(scaled < least, -torch.inf)
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
