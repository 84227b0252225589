"""`rows.py` for GPUs: two Triton kernels, one program per row, one pass over the vocabulary each.

The same races on the same random numbers (bit for bit), so that a draw is that of a CPU unless rounding decides. The
statistics are gathered online, every lane of a program keeping those of its own columns until the row's end.
"""

import torch
import triton
import triton.language as tl

from vllm_infogain.sampling import row_constants as shared
from vllm_infogain.sampling.row_constants import RowStatistics

LANES = tl.constexpr(2048)
TILE = tl.constexpr(8)  # chunks read at once
WIDE = 32  # draws, from which on four warps have too few registers for them
CHUNK = tl.constexpr(shared.CHUNK)
LEAST = tl.constexpr(-1e30)  # in place of -inf, whose differences and products are nan
GOLDEN, MIX_1, MIX_2 = tl.constexpr(shared.GOLDEN), tl.constexpr(shared.MIX_1), tl.constexpr(shared.MIX_2)
OFFSET_STEP, DRAW_STEP = tl.constexpr(shared.OFFSET_STEP), tl.constexpr(shared.DRAW_STEP)
SHIFT, STEP = tl.constexpr(64 - shared.UNIFORM_BITS), tl.constexpr(2.0**-shared.UNIFORM_BITS)


def row_statistics(logits: torch.Tensor) -> RowStatistics:
    """See `rows.row_statistics`."""
    assert logits.dtype == torch.float32
    assert logits.stride(1) == 1
    vectors = logits.new_empty(4, len(logits))
    token = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    if len(logits):
        _row_statistics[(len(logits),)](logits, logits.stride(0), logits.shape[1], token, vectors, len(logits))
    entropy, top, second, log_normalizer = vectors
    return RowStatistics(entropy, token, top, second, log_normalizer)


def draw_tokens(
    logits: torch.Tensor, temperatures: torch.Tensor, rng_keys: torch.Tensor, canvas_offsets: torch.Tensor, draws: int
) -> torch.Tensor:
    """See `rows.draw_tokens`."""
    assert logits.dtype == torch.float32
    assert logits.stride(1) == 1
    tokens = torch.empty(len(logits), draws, dtype=torch.int64, device=logits.device)
    if tokens.numel():
        request = (temperatures.contiguous(), rng_keys.contiguous(), canvas_offsets.contiguous())
        width = triton.next_power_of_2(draws)
        warps = 4 if width < WIDE else 8
        shape = logits.stride(0), logits.shape[1]
        _draw_tokens[(len(logits),)](logits, *shape, *request, tokens, draws, width, num_warps=warps)
    return tokens


# Numbers of rows and draws differ from batch to batch: no kernel is compiled for one of them.
@triton.jit(do_not_specialize=["rows"])
def _row_statistics(
    logits,  # [rows, vocab] fp32
    stride,  # of a row of logits
    vocab,
    token,  # [rows] int64, written
    vectors,  # [4, rows] fp32, written: entropy, top and second probability, log normalizer
    rows,
):
    row = tl.program_id(0).to(tl.int64)
    lane = tl.arange(0, LANES)
    top = tl.full([LANES], LEAST, tl.float32)
    second = tl.full([LANES], LEAST, tl.float32)
    column = tl.zeros([LANES], tl.int32)
    total = tl.zeros([LANES], tl.float32)  # sum of w and of w log(w), w = exp(x - top)
    moment = tl.zeros([LANES], tl.float32)
    for start in range(0, vocab, LANES):
        here = start + lane
        x = tl.maximum(tl.load(logits + row * stride + here, here < vocab, other=LEAST), LEAST)
        # One exponential serves both cases: the weight of x by `top`, or that of `top` by a new, larger x.
        distance = -tl.abs(x - top)
        weight = tl.exp(distance)
        larger = x > top
        moment = tl.where(larger, weight * (moment + total * distance), moment + weight * distance)
        total = tl.where(larger, weight * total + 1, total + weight)
        column = tl.where(larger, here, column)
        second = tl.maximum(second, tl.minimum(x, top))
        top = tl.maximum(x, top)
    row_top = tl.max(top, 0)
    row_column = tl.min(tl.where(top == row_top, column, vocab), 0)
    is_winner = (top == row_top) & (column == row_column)
    row_second = tl.max(tl.where(is_winner, second, top), 0)
    distance = top - row_top
    weight = tl.exp(distance)
    row_total = tl.sum(weight * total, 0)
    row_moment = tl.sum(weight * (moment + total * distance), 0)
    log_total = tl.log(row_total)
    tl.store(token + row, row_column.to(tl.int64))
    tl.store(vectors + row, tl.maximum(log_total - row_moment / row_total, 0.0))
    tl.store(vectors + rows + row, 1 / row_total)
    tl.store(vectors + 2 * rows + row, tl.exp(row_second - row_top) / row_total)
    tl.store(vectors + 3 * rows + row, row_top + log_total)


@triton.jit(do_not_specialize=["draws"])
def _draw_tokens(
    logits,  # [rows, vocab] fp32
    stride,  # of a row of logits
    vocab,
    temperatures,  # [rows] fp32
    rng_keys,  # [rows] int64
    canvas_offsets,  # [rows] int64
    tokens,  # [rows, draws] int64, written
    draws,
    DRAWS: tl.constexpr,  # noqa: N803  draws, rounded up to a power of two
):
    row = tl.program_id(0).to(tl.int64)
    scale = 1 / tl.load(temperatures + row)
    draw = tl.arange(0, DRAWS)
    columns = tl.arange(0, CHUNK)
    state = tl.load(rng_keys + row) + tl.load(canvas_offsets + row) * OFFSET_STEP + draw.to(tl.int64) * DRAW_STEP
    chunks = tl.cdiv(vocab, CHUNK)
    best = tl.full([DRAWS], -float("inf"), tl.float32)  # log speed of the leading chunk
    leader = tl.zeros([DRAWS], tl.int32)
    for start in range(0, chunks, TILE):
        chunk = start + tl.arange(0, TILE)
        here = chunk[:, None] * CHUNK + columns[None, :]
        x = tl.load(logits + row * stride + here, here < vocab, other=-float("inf"))  # [TILE, CHUNK]
        top = tl.maximum(tl.max(x, 1), LEAST)
        weight = top * scale + tl.log(tl.sum(tl.exp((x - top[:, None]) * scale), 1))
        speed = weight[:, None] - tl.log(_wait(state[None, :], vocab + chunk[:, None]))  # [TILE, DRAWS]
        fastest = tl.max(speed, 0)
        leader = tl.where(fastest > best, start + tl.argmax(speed, 0), leader)
        best = tl.maximum(fastest, best)
    here = leader[:, None] * CHUNK + columns[None, :]
    x = tl.load(logits + row * stride + here, here < vocab, other=-float("inf"))  # [DRAWS, CHUNK]
    speed = x * scale - tl.log(_wait(state[:, None], here))
    tl.store(tokens + row * draws + draw, (leader * CHUNK + tl.argmax(speed, 1)).to(tl.int64), draw < draws)


@triton.jit
def _wait(states, columns):
    """How long a column of weight 1 takes; 1 - u is exact."""
    return -tl.log(1 - uniform(states, columns))


@triton.jit
def uniform(states, columns):
    """See `rows.uniform`."""
    z = states + (columns + 1).to(tl.int64) * GOLDEN
    z = (z ^ ((z >> 30) & ((1 << 34) - 1))) * MIX_1
    z = (z ^ ((z >> 27) & ((1 << 37) - 1))) * MIX_2
    return (z >> SHIFT).to(tl.float32) * STEP + (0.5 + STEP / 2)
