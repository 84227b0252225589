"""Rows of logits in slices, wherever what is computed of them takes as much memory as they do, or several times it.

So a request's temporaries have a bound whatever it asks for, and what is set aside for them at the start suffices.
"""

from collections.abc import Iterator

SLICE = 1 << 22  # logits: 16 MiB of fp32


def slices(rows: int, columns: int) -> Iterator[slice]:
    """Of about SLICE logits each, four rows at least; of no rows an empty one."""
    step = max(4, SLICE // columns // 4 * 4)  # so that slices of vectors begin as kernels want them to: see transfer.py
    return (slice(start, min(start + step, rows)) for start in range(0, max(1, rows), step))
