"""What `rows.py` and `rows_triton.py` share: the record they return, and the constants of their random numbers."""

from dataclasses import dataclass

import torch

CHUNK = 256  # columns; about the square root of a vocabulary, which needs the fewest random numbers
UNIFORM_BITS = 23  # as many as leave (k + 1/2) / 2^23 exact in fp32

# 64-bit constants as int64: SplitMix64's increment and factors, and two odd numbers that keep offsets and draws apart.
GOLDEN, MIX_1, MIX_2, OFFSET_STEP, DRAW_STEP = (
    constant - (1 << 64)
    for constant in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB, 0xD1B54A32D192ED03, 0xABC98388FB8FAC03)
)


@dataclass(frozen=True)
class RowStatistics:
    """At temperature 1. Every field is [rows], fp32 but for the tokens."""

    entropy: torch.Tensor  # nats
    top_token: torch.Tensor  # int64: the most likely token, the lowest id of equals
    top_probability: torch.Tensor
    second_probability: torch.Tensor  # of the most likely token but `top_token`; 0 where there is no other
    log_normalizer: torch.Tensor  # logsumexp of the logits
