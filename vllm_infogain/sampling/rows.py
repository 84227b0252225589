"""What the samplers read off rows of logits: their statistics, and tokens drawn from them.

Pure functions on tensors, and the only ones that pass over the vocabulary (on a GPU, those of `rows_triton.py` do). A
row's results depend on the row alone. A draw's depend on the row, its rng key, its canvas offset and the draw's index.
Neither depends on the rows beside it, nor on how they were batched.

A row's columns are seen as chunks of CHUNK. The largest logit of each chunk is enough to find the two largest of the
row without a sort. A draw takes two exponential races: one among the chunks, by their total weights, and one among the
columns of the chunk that won. Column i of weight w_i arrives after the time -log(1 - u_i) / w_i, and the first to
arrive is i with probability w_i / sum(w). (The same as argmax(log w + Gumbel noise), at one logarithm less.) So a draw
needs vocab / CHUNK + CHUNK random numbers in place of vocab, and is as exact.
"""

import math
from collections.abc import Iterator

import torch

from vllm_infogain.sampling.row_constants import (
    CHUNK,
    DRAW_STEP,
    GOLDEN,
    MIX_1,
    MIX_2,
    OFFSET_STEP,
    UNIFORM_BITS,
    RowStatistics,
)

BLOCK = 1 << 18  # logits worked on at once, so that the temporaries stay in a CPU's caches; 2^16 is 15 % slower
FLOOR = -80.0  # least logarithm of a weight, so that 0 * -inf never occurs; e^-80 adds nothing to any sum
LOG2_E = math.log2(math.e)  # torch's exp2 is four times as fast on a CPU as its exp
NOISE_WIDTH = 4  # the temporaries of one random number, in those of a logit


def row_statistics(logits: torch.Tensor) -> RowStatistics:
    """Statistics of logits [rows, vocab] fp32; columns that may never be predicted hold -inf."""
    if logits.is_cuda:
        from vllm_infogain.sampling import rows_triton

        return rows_triton.row_statistics(logits)
    if logits.shape[1] <= CHUNK:
        return _short_row_statistics(logits)
    rows = len(logits)
    maxima = logits.new_empty(rows, _chunks(logits))  # of each chunk
    total, moment = logits.new_empty(2, rows)  # sum of w and of w log(w), w = exp(x - top) the weights
    for part in _parts(rows, logits.shape[1]):
        _reduce_chunks(torch.amax, logits[part], maxima[part])
        exponent = torch.sub(logits[part], maxima[part].amax(-1, keepdim=True)).clamp_min_(FLOOR)
        weights = (exponent * LOG2_E).exp2_()
        torch.sum(weights, -1, out=total[part])
        torch.sum(weights.mul_(exponent), -1, out=moment[part])
    top, token, second = _top_two(logits, maxima)
    log_total = total.log()
    return RowStatistics(
        entropy=log_total.sub(moment.div_(total)).clamp_min_(0.0),
        top_token=token.squeeze(1),
        top_probability=total.reciprocal(),
        second_probability=second.sub_(top).exp_().squeeze(1).div_(total),
        log_normalizer=top.squeeze(1) + log_total,
    )


def draw_tokens(
    logits: torch.Tensor, temperatures: torch.Tensor, rng_keys: torch.Tensor, canvas_offsets: torch.Tensor, draws: int
) -> torch.Tensor:
    """Independent draws from softmax(logits / temperature): [rows, draws] int64.

    logits [rows, vocab] fp32; temperatures [rows] fp32 > 0; rng_keys [rows] int64, of a request's
    denoising step; canvas_offsets [rows] int64.
    """
    if logits.is_cuda:
        from vllm_infogain.sampling import rows_triton

        return rows_triton.draw_tokens(logits, temperatures, rng_keys, canvas_offsets, draws)
    (rows, vocab), chunks = logits.shape, _chunks(logits)
    states = draw_states(rng_keys, canvas_offsets, draws)
    tokens = torch.empty_like(states)
    scale = (LOG2_E / temperatures).unsqueeze(-1)
    if chunks == 1:
        columns = torch.arange(vocab)
        for part in _parts(rows, NOISE_WIDTH * draws * vocab):
            weights = _weights(logits[part], logits[part].amax(-1, keepdim=True), scale[part])
            tokens[part] = _race(weights.unsqueeze(1), states[part], columns)
        return tokens
    top = logits.new_empty(rows, 1)
    sums = logits.new_empty(rows, chunks)  # of each chunk's weights
    for part in _parts(rows, vocab):
        torch.amax(logits[part], -1, keepdim=True, out=top[part])
        _reduce_chunks(torch.sum, _weights(logits[part], top[part], scale[part]), sums[part])
    for part in _parts(rows, NOISE_WIDTH * draws * max(chunks, CHUNK)):
        chunk = _race(sums[part].unsqueeze(1), states[part], torch.arange(vocab, vocab + chunks))
        values, first = _read_chunks(logits[part], chunk)
        weights = _weights(values, top[part].unsqueeze(1), scale[part].unsqueeze(1))
        states_there = states[part] + first * GOLDEN  # whose number of column i is that of column first + i
        torch.add(_race(weights, states_there, torch.arange(CHUNK)), first, out=tokens[part])
    return tokens


def draw_states(rng_keys: torch.Tensor, canvas_offsets: torch.Tensor, draws: int) -> torch.Tensor:
    """States from which the draws' random numbers follow: [rows, draws] int64. No two meet but by chance."""
    index = torch.arange(draws, device=rng_keys.device)
    return (rng_keys + canvas_offsets * OFFSET_STEP).unsqueeze(-1) + index * DRAW_STEP


def uniform(states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Numbers in (0, 1), fp32: that of column i is element i of the sequence that SplitMix64 yields from the state."""
    bits = mix(states + (columns + 1) * GOLDEN) >> (64 - UNIFORM_BITS)
    # The shift keeps the sign: bits / 2^23 is in [-1/2, 1/2).
    return bits.float().mul_(2.0**-UNIFORM_BITS).add_(0.5 + 2.0 ** -(UNIFORM_BITS + 1))


def mix(z: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) of int64 numbers, in place, without its last shift,
    which does not touch the 31 upper bits. Products wrap; the masks keep the sign from being shifted in."""
    z.bitwise_xor_((z >> 30).bitwise_and_((1 << 34) - 1)).mul_(MIX_1)
    return z.bitwise_xor_((z >> 27).bitwise_and_((1 << 37) - 1)).mul_(MIX_2)


def _short_row_statistics(logits: torch.Tensor) -> RowStatistics:
    """Of rows of one chunk, where it is the number of operations that costs."""
    top, token = logits.max(-1, keepdim=True)  # the first of equals, as argmax and argmin here
    log_probabilities = logits.log_softmax(-1)
    log_normalizer = top - log_probabilities.gather(1, token)
    probabilities = log_probabilities.exp()
    top_probability = probabilities.amax(-1)
    surprise = log_probabilities.clamp_min_(FLOOR).mul_(probabilities).sum(-1)
    return RowStatistics(
        entropy=surprise.neg_().clamp_min_(0.0),
        top_token=token.squeeze(1),
        top_probability=top_probability,
        second_probability=probabilities.scatter_(1, token, 0.0).amax(-1),
        log_normalizer=log_normalizer.squeeze(1),
    )


def _weights(logits: torch.Tensor, top: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return torch.sub(logits, top).mul_(scale).exp2_()


def _race(weights: torch.Tensor, states: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """The first to arrive: [rows, draws]. weights [rows, draws or 1, n]; states [rows, draws]; columns [n]."""
    # log1p(-u) is negative, hence the largest speed -w / log1p(-u) is the smallest quotient.
    return torch.div(weights, uniform(states.unsqueeze(-1), columns).neg_().log1p_()).argmin(-1)


def _top_two(logits: torch.Tensor, maxima: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Largest logit of each row, its lowest column and the second largest logit, each [rows, 1]."""
    chunk = maxima.argmax(-1, keepdim=True)
    values, first = _read_chunks(logits, chunk)
    values = values.squeeze(1)
    column = values.argmax(-1, keepdim=True)
    second = values.scatter(1, column, -torch.inf).amax(-1, keepdim=True)
    others = maxima.scatter(1, chunk, -torch.inf).amax(-1, keepdim=True)
    return values.gather(1, column), first + column, torch.maximum(second, others)


def _read_chunks(logits: torch.Tensor, chunks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Chunks [rows, n] of logits [rows, vocab]: their logits [rows, n, CHUNK], and their first columns [rows, n]."""
    rows, vocab = logits.shape
    start = chunks * CHUNK
    first = start.clamp_max(vocab - CHUNK)  # a shorter last chunk is read with the columns before it
    values = logits.unfold(1, CHUNK, 1)[torch.arange(rows).unsqueeze(1), first]
    if vocab % CHUNK:
        values.masked_fill_(torch.arange(CHUNK) < (start - first).unsqueeze(-1), -torch.inf)
    return values, first


def _reduce_chunks(reduce, values: torch.Tensor, out: torch.Tensor) -> None:
    """values [rows, vocab] -> out [rows, chunks]; the last chunk may be shorter."""
    full = values.shape[1] // CHUNK
    reduce(values[:, : full * CHUNK].unflatten(1, (full, CHUNK)), -1, out=out[:, :full])
    if full < out.shape[1]:
        reduce(values[:, full * CHUNK :], -1, out=out[:, full])


def _chunks(logits: torch.Tensor) -> int:
    return -(-logits.shape[1] // CHUNK)


def _parts(rows: int, width: int) -> Iterator[slice]:
    """Rows of `width` values in groups of about BLOCK values."""
    step = max(1, BLOCK // width)
    return (slice(start, start + step) for start in range(0, rows, step))
