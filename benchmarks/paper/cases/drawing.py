"""Estimates by setting: curves and bars with error bars, and a cell without."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.paper.estimates import Estimate

Point = tuple[float, Estimate | None]


def curve(axes: Any, points: Sequence[Point], label: str, factor: float = 1, fmt: str = "o-") -> None:
    """One line of estimates over x, each with its standard error."""
    known = [(x, one.times(factor)) for x, one in points if one is not None]
    axes.errorbar(
        [x for x, _ in known], [one.mean for _, one in known], yerr=[one.error for _, one in known],
        fmt=fmt, markersize=4, capsize=2, label=label,
    )  # fmt: skip


def bars(axes: Any, names: Sequence[str], groups: Mapping[str, Sequence[Estimate | None]], factor: float = 1) -> None:
    """A bar per name and group, each with its standard error; what is not known has none."""
    width = 0.8 / len(groups)
    for place, (label, estimates) in enumerate(groups.items()):
        known = [(x, one.times(factor)) for x, one in enumerate(estimates) if one is not None]
        axes.bar(
            [x + place * width for x, _ in known], [one.mean for _, one in known], width,
            yerr=[one.error for _, one in known], capsize=2, label=label,
        )  # fmt: skip
    axes.set_xticks([x + 0.4 - width / 2 for x in range(len(names))], names, rotation=30, ha="right")


def mean_of(value: Estimate | None) -> str:
    """As a table's cell, of what has no error of its own: an answer's time is its share of the batch's."""
    return "" if value is None else f"{value.mean:.1f}"
