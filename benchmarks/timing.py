"""What a call takes, at its best."""

import time
from collections.abc import Callable

import torch


def best_seconds(work: Callable[[], object], budget: float = 0.5) -> float:
    """The fastest call within `budget` seconds, and of at least three; on a GPU until its kernels have run."""
    seconds: list[float] = []
    work()
    while len(seconds) < 3 or sum(seconds) < budget:
        _wait_for_device()
        started = time.perf_counter()
        work()
        _wait_for_device()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _wait_for_device() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
