"""Where the positions of a sequence lie in its KV pages, so that all candidates read one copy of what they share.

For attention in both directions the order of keys does not matter (rotary embeddings are applied before they are
stored). So what the candidates share goes first, the window in which they differ follows, in pages of each sequence's
own, and the rest of what they share, less than a page, comes last:

    shared pages, full | own pages: the window | the last shared page, part full

If the window is no whole number of pages, its first own page begins with shared positions; that page is copied to
every candidate before they run. Block-causal models keep the order of the text, because finished pages stay.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from vllm_infogain.compat import cdiv
from vllm_infogain.sampling.forward_window import ForwardWindow


@dataclass(frozen=True)
class Layout:
    """For every sequence of a group alike, and the same from a block's refresh to its end."""

    slots: np.ndarray  # [keys] int64: the place of each position, counted from the start of the sequence's first page
    own: range  # the entries of a sequence's page table that each sequence needs for itself
    is_copied: bool  # the first of them begins with positions that are shared


def layout(window: ForwardWindow, page_size: int, in_order: bool) -> Layout:
    """The layout of a group's sequences.

    Args:
        window: of the group's forward.
        page_size: positions per page.
        in_order: keep the order of the text.
    """
    return _layout(window.own.start, window.own.stop, window.keys, page_size, in_order)


@lru_cache(maxsize=4096)
def _layout(start: int, stop: int, keys: int, page_size: int, in_order: bool) -> Layout:
    if in_order:
        own = range(start // page_size, cdiv(keys, page_size))
        return Layout(np.arange(keys), own, start % page_size > 0)
    window = stop - start
    shared = np.concatenate([np.arange(start), np.arange(stop, keys)])
    filler = min(len(shared), -window % page_size)  # shared positions that fill the window's pages up
    first = (len(shared) - filler) // page_size
    order = np.concatenate(
        [shared[: first * page_size + filler], np.arange(start, stop), shared[first * page_size + filler :]]
    )
    slots = np.empty(keys, dtype=np.int64)
    slots[order] = np.arange(keys)
    return Layout(slots, range(first, first + cdiv(filler + window, page_size)), filler > 0)


def most_own_pages(window: int, keys: int, page_size: int) -> int:
    """The most pages that a sequence of at most `keys` positions can need for a window of at most `window`."""
    return cdiv(keys, page_size) if window >= keys else cdiv(window + page_size - 1, page_size)
