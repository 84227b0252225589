"""Codes of a picture while it is written. Pure."""

from collections.abc import Iterable, Sequence
from typing import Any

UNKNOWN = -1  # stands for a code that is not known yet
TEMPERATURE = 0.4  # the paper's, of pictures, where a request names none


class PartialPicture:
    """A picture that decoding steps fill in. It is worth a look whenever a further of `looks` + 1 equal shares of it is
    written, but for the last.

    Args:
        start: codes that it begins with, row by row; UNKNOWN where one is to be written.
        offset: the token of code 0.
        looks: the most that are wanted; a step that ends several shares gives one.
    """

    def __init__(self, start: Sequence[int], offset: int, looks: int) -> None:
        self._codes = list(start)
        self._offset = offset
        self._shares = looks + 1
        self._total = self._codes.count(UNKNOWN)
        self._seen = 0  # shares
        self._steps = 0

    def write(self, steps: Iterable[dict[str, Any]]) -> list[tuple[int, list[int]]]:
        """Take further steps, with `positions` and `tokens`. Of each look, how many steps there were, and the codes as
        they stood."""
        looks = []
        for step in steps:
            self._steps += 1
            for position, token in zip(step["positions"], step["tokens"], strict=True):
                self._codes[position] = token - self._offset
            left = self._codes.count(UNKNOWN)
            share = (self._total - left) * self._shares // self._total
            if left and share > self._seen:
                looks.append((self._steps, self._codes.copy()))
                self._seen = share
        return looks
