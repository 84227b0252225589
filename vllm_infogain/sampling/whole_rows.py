"""Columns that are never written, the mask token's and the table's padding, and their share of each distribution.

The model's distribution is over its whole row, these columns included, as in the families' published decoders: a mask
token's share of 1e-4 can turn a near tie. Only what is written leaves them out. So the passes over the vocabulary (and
draws) see rows that hold -inf in the mask token's column and end before the padding. The weight of the columns set
aside is folded in afterwards, on vectors [rows].

Where only some of a row's columns are read, as of a picture, those are the whole row here. They hold no mask token.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from vllm_infogain.sampling.rows import RowStatistics


@dataclass(frozen=True)
class WholeRows:
    """At temperature 1, over the whole row. Every field is [rows], fp32 but for the tokens."""

    entropy: torch.Tensor  # nats
    top_token: torch.Tensor  # int64: the most likely token that may be written, the lowest id of equals
    top_probability: torch.Tensor  # its probability
    margin: torch.Tensor  # the difference of the row's two largest probabilities, of any columns
    log_normalizer: torch.Tensor  # logsumexp of the logits


@dataclass(frozen=True)
class WholeLogits:
    """Logits of whole rows, the mask token's put aside; their log-probabilities are made for some rows at a time."""

    logits: torch.Tensor  # [rows, columns]
    mask_logits: torch.Tensor  # [rows]
    log_normalizer: torch.Tensor  # [rows]
    mask_column: int | None  # None: no column is the mask token's

    def log_probabilities(self, rows: Any) -> torch.Tensor:
        """[some rows, columns], by a slice or an index."""
        log_normalizer = self.log_normalizer[rows]
        found = self.logits[rows] - log_normalizer[:, None]
        if self.mask_column is not None:
            found[:, self.mask_column] = self.mask_logits[rows] - log_normalizer
        return found


def set_aside(logits: torch.Tensor, mask_column: int | None, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Split rows [rows, columns], columns from `vocab` on padding: what may be written [rows, vocab], a view, whose
    mask column becomes -inf in place; and the rest [rows, 1 + padding], the mask token's column first."""
    if mask_column is None:
        return logits[:, :vocab], torch.cat([logits.new_full((len(logits), 1), -torch.inf), logits[:, vocab:]], 1)
    aside = torch.cat([logits[:, mask_column : mask_column + 1], logits[:, vocab:]], 1)
    logits[:, mask_column] = -torch.inf
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
