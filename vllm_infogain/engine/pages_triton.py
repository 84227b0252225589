"""`pages.py` for GPUs: a program for each page and layer. Nothing lies in between, so it takes no memory."""

import torch
import triton
import triton.language as tl

WORD = 8  # bytes
WORDS = tl.constexpr(1024)  # at once


def copy_pages(starts: torch.Tensor, step: int, size: int, pages: torch.Tensor) -> None:
    """See `KVPages`: starts [layers] int64 addresses, step and size in bytes, pages [2, copies] int64."""
    assert step % WORD == size % WORD == 0
    copies = pages.shape[1]
    _copy_pages[(copies, len(starts))](starts, step // WORD, size // WORD, pages.contiguous(), copies)


@triton.jit(do_not_specialize=["copies"])
def _copy_pages(
    starts,  # [layers] int64: where each layer's cache begins
    step,  # words from page to page
    size,  # words of a page
    pages,  # [2, copies] int64: from, to
    copies,
):
    copy = tl.program_id(0)
    cache = tl.load(starts + tl.program_id(1)).to(tl.pointer_type(tl.int64))
    source = cache + tl.load(pages + copy) * step
    target = cache + tl.load(pages + copies + copy) * step
    for first in range(0, size, WORDS):
        word = first + tl.arange(0, WORDS)
        tl.store(target + word, tl.load(source + word, word < size), word < size)
