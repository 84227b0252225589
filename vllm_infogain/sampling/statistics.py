"""What the samplers need to know of a row of logits. Pure functions on tensors; entropies in nats."""

from dataclasses import dataclass

import torch

CHUNK = 1 << 25  # logits worked on at once: the temporaries of a whole batch would be several times its logits


@dataclass(frozen=True)
class RowStatistics:
    """Per masked position, at temperature 1. Every field has the rows' leading shape, fp32 (tokens: int64)."""

    entropy: torch.Tensor  # [...] nats
    top_token: torch.Tensor  # [...] the most likely token, the lowest id of equals
    top_probability: torch.Tensor  # [...]
    margin: torch.Tensor  # [...] p1 - p2
    log_normalizer: torch.Tensor  # [...] logsumexp of the logits

    def __getitem__(self, index) -> "RowStatistics":
        return RowStatistics(*(getattr(self, name)[index] for name in self.__dataclass_fields__))

    def reshape(self, *shape: int) -> "RowStatistics":
        return RowStatistics(*(getattr(self, name).reshape(*shape) for name in self.__dataclass_fields__))


def row_statistics(logits: torch.Tensor) -> RowStatistics:
    """Statistics of logits [rows, ..., vocab], fp32; columns that may never be predicted hold -inf."""
    rows = max(1, CHUNK // max(1, logits[0].numel())) if len(logits) else 1
    if len(logits) > rows:
        parts = [row_statistics(part) for part in logits.split(rows)]
        names = RowStatistics.__dataclass_fields__
        return RowStatistics(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
    log_normalizer = logits.logsumexp(-1)
    log_probabilities = logits - log_normalizer.unsqueeze(-1)
    probabilities = log_probabilities.exp()
    top_two = probabilities.topk(2, dim=-1).values
    # 0 * -inf is nan: a forbidden column adds nothing to the entropy.
    surprise = log_probabilities.clamp_min_(torch.finfo(logits.dtype).min).neg_()
    return RowStatistics(
        entropy=surprise.mul_(probabilities).sum(-1).clamp_min_(0.0),
        top_token=logits.argmax(-1),
        top_probability=top_two[..., 0],
        margin=top_two[..., 0] - top_two[..., 1],
        log_normalizer=log_normalizer,
    )


def adjust_logits(logits: torch.Tensor, mask_id: int, eos_ids: tuple[int, ...], eos_penalty: float) -> torch.Tensor:
    """Before anything is read off logits [..., vocab]: never predict the mask token; make EOS pay. In place."""
    logits[..., mask_id] = -torch.inf
    if eos_penalty:
        logits[..., list(eos_ids)] -= eos_penalty
    return logits
