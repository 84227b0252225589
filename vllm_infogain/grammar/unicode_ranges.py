"""Sets of characters, as places of a regular expression hold them, and how they are spelled in UTF-8."""

import re
import sys
from bisect import bisect_left, bisect_right
from collections.abc import Iterable
from functools import lru_cache
from re import _constants as ops  # type: ignore[attr-defined]
from string import ascii_letters
from typing import Any

Ranges = tuple[tuple[int, int], ...]  # of code points: first and last, disjoint, ascending
# How the rest of a character is spelled: (first byte, last byte, what then follows); () at its end.
Tree = tuple[tuple[int, int, Any], ...]

CATEGORIES = {
    ops.CATEGORY_DIGIT: r"\d", ops.CATEGORY_NOT_DIGIT: r"\D", ops.CATEGORY_SPACE: r"\s", ops.CATEGORY_NOT_SPACE: r"\S",
    ops.CATEGORY_WORD: r"\w", ops.CATEGORY_NOT_WORD: r"\W",
}  # fmt: skip


@lru_cache(maxsize=len(CATEGORIES) * 2)
def category(kind: Any, flags: int) -> Ranges:
    """Those of a CATEGORIES, in ASCII alone or not."""
    everything = "".join(map(chr, range(sys.maxunicode + 1)))
    return tuple((ord(run[0][0]), ord(run[0][-1])) for run in re.finditer(f"{CATEGORIES[kind]}+", everything, flags))


def alike(low: int, high: int, flags: int) -> list[tuple[int, int]]:
    """The characters that are one of a range if case means nothing."""
    if flags & re.ASCII:
        return [(ord(c.swapcase()),) * 2 for c in ascii_letters if low <= ord(c) <= high]
    codes, others = _cased()
    return [other for code in codes[bisect_left(codes, low) : bisect_right(codes, high)] for other in others[code]]


@lru_cache(maxsize=1)
def _cased() -> tuple[list[int], dict[int, list[tuple[int, int]]]]:
    """The characters that are alike but for case, ascending, and what each is like: to `re`, those whose small letters
    have one capital, as i and the dotless one have."""
    groups: dict[str, list[tuple[int, int]]] = {}
    for code, character in enumerate(map(chr, range(sys.maxunicode + 1))):
        if not character == character.lower() == character.upper():
            groups.setdefault(character.lower()[0].upper(), []).append((code, code))
    others = {code: group for group in groups.values() if len(group) > 1 for code, _ in group}
    return sorted(others), others


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    joined: list[tuple[int, int]] = []
    for low, high in sorted(ranges):
        if joined and low <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(joined[-1][1], high)
        else:
            joined.append((low, high))
    return tuple(joined)


def complement(ranges: Iterable[tuple[int, int]]) -> Ranges:
    joined = union(ranges)
    lows, highs = [0, *(high + 1 for _, high in joined)], [*(low - 1 for low, _ in joined), sys.maxunicode]
    return tuple((low, high) for low, high in zip(lows, highs, strict=True) if low <= high)


# UTF-8.

# First and last code point of each length, its first byte, and the bytes that follow. Without surrogates, which UTF-8
# has not, and without U+FFFD: at the end of a text decoders take it for the beginning of a character, and drop it.
LENGTHS = ((0, 0x7F, 0, 0), (0x80, 0x7FF, 0xC0, 1), (0x800, 0xD7FF, 0xE0, 2), (0xE000, 0xFFFC, 0xE0, 2),
           (0xFFFE, 0xFFFF, 0xE0, 2), (0x10000, sys.maxunicode, 0xF0, 3))  # fmt: skip


def spelled(ranges: Ranges) -> Tree:
    """How characters are spelled. What goes on alike is one object."""
    nodes: dict[tuple[int, Ranges], Tree] = {}
    tree: Tree = ()
    for first, last, byte, more in LENGTHS:
        own = tuple((max(low, first), min(high, last)) for low, high in ranges if low <= last and high >= first)
        tree += _branches(own, byte, more, nodes)
    return tree


def _branches(ranges: Ranges, byte: int, more: int, nodes: dict[tuple[int, Ranges], Tree]) -> Tree:
    """Of numbers spelled by a byte, that counts from `byte`, and `more` bytes of six bits each."""
    size = 64**more
    within: dict[int, list[tuple[int, int]]] = {}  # by first byte
    for low, high in ranges:
        for lead in range(low // size, high // size + 1):
            start = lead * size
            within.setdefault(lead, []).append((max(low - start, 0), min(high - start, size - 1)))
    branches: list[tuple[int, int, Any]] = []
    for lead, parts in within.items():
        rest: Tree = ()
        if more:
            key = more, tuple(parts)
            if key not in nodes:
                nodes[key] = _branches(key[1], 0x80, more - 1, nodes)
            rest = nodes[key]
        if branches and branches[-1][2] is rest and branches[-1][1] == byte + lead - 1:
            branches[-1] = branches[-1][0], byte + lead, rest
        else:
            branches.append((byte + lead, byte + lead, rest))
    return tuple(branches)
