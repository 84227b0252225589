"""Columns that no token is written from, the mask token's and padding of the table, in what rows of logits tell.

The model's distribution is over its whole row, these columns included, as in the families' published decoders: a mask
token's share of 1e-4 can turn a near tie. Only what is written leaves them out. So the passes over the vocabulary (and
draws) see rows that hold -inf in the mask token's column and end before the padding; what the columns set aside weigh
is folded in afterwards, on vectors [rows].
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import logsigmoid

from vllm_infogain.sampling.rows import RowStatistics


@dataclass(frozen=True)
class WholeRows:
    """At temperature 1, over the whole row. Every field is [rows], fp32 but for the tokens."""

    entropy: torch.Tensor  # nats
    top_token: torch.Tensor  # int64: the most likely token that may be written, the lowest id of equals
    top_probability: torch.Tensor  # its probability
    margin: torch.Tensor  # the two largest probabilities of the row, whosever they are, apart
    log_normalizer: torch.Tensor  # logsumexp of the logits


def set_aside(logits: torch.Tensor, mask_id: int, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split rows [rows, columns], columns from `vocab` on padding: what may be written [rows, vocab], a view, whose
    mask column becomes -inf in place; and the rest [rows, 1 + padding], the mask token's column first."""
    aside = torch.cat([logits[:, mask_id : mask_id + 1], logits[:, vocab:]], 1)
    logits[:, mask_id] = -torch.inf
    return logits[:, :vocab], aside


def fold_in(writable: RowStatistics, aside: torch.Tensor) -> WholeRows:
    """Statistics of whole rows from those of what may be written, and the logits [rows, columns] set aside.

    With s the share of what may be written: H = s (H_writable - log s) - sum of p log p over the columns set aside.
    Columns of -inf, which the request's constraints bar, change no bit.
    """
    # From the odds, not from a difference of two normalizers: so a share of nearly 1 is exact. Torch's sigmoid would
    # not do: it rounds a row by where in the batch it stands.
    log_share = logsigmoid(writable.log_normalizer - aside.logsumexp(-1))
    share = log_share.exp()
    log_normalizer = writable.log_normalizer - log_share
    beside = (aside - log_normalizer.unsqueeze(1)).exp()
    top = writable.top_probability * share
    second = writable.second_probability * share
    first_two = torch.cat([top.unsqueeze(1), second.unsqueeze(1), beside], 1).topk(2).values
    return WholeRows(
        entropy=share * (writable.entropy - log_share) + torch.special.entr(beside).sum(-1),
        top_token=writable.top_token,
        top_probability=top,
        margin=first_two[:, 0] - first_two[:, 1],
        log_normalizer=log_normalizer,
    )
