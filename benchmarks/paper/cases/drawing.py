"""Curves and bars with error bars, of estimates by setting."""

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


def legend_below(axes: Any, columns: int) -> None:
    """For many labels: none of the plot is hidden."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=columns, frameon=False)
