"""Rows of logits in slices, for computations whose temporaries are as large as the rows, or several times as large.

So the temporaries have a bound whatever a request asks for, and the memory reserved for them at start-up suffices.
"""

from collections.abc import Iterator

SLICE = 1 << 22  # logits: 16 MiB of fp32


def slices(rows: int, columns: int) -> Iterator[slice]:
    """Slices of about SLICE logits each, of four rows at least; one empty slice of no rows."""
    step = max(4, SLICE // columns // 4 * 4)  # so that slices of vectors begin as kernels want them to: see transfer.py
    return (slice(start, min(start + step, rows)) for start in range(0, max(1, rows), step))
