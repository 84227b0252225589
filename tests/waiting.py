"""Waiting for what must happen: the one place where tests look at a clock.

No test says how long anything takes, on whatever machine, beside whatever else runs there. What never happens is a
fault, though, and is told as one in place of a run that hangs.
"""

import time
from collections.abc import Callable

PATIENCE = 300.0  # seconds; below pytest's own limit for a test


def wait_until(
    happened: Callable[[], bool], otherwise: Callable[[], str], every: float = 0.05, patience: float = PATIENCE
) -> None:
    """Look again and again until it happened; after all that patience, fail with what `otherwise` says."""
    deadline = time.monotonic() + patience
    while not happened():
        assert time.monotonic() < deadline, otherwise()
        time.sleep(every)
