"""Axes of a figure, and what is drawn into them: curves and bars of estimates with their errors, a legend apart."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.paper.estimates import Estimate

Point = tuple[float, Estimate | None]
ENTROPY_LABEL = "cumulative entropy, nats"


@contextmanager
def axes(path: Path, count: int = 1, size: tuple[float, float] = (5.0, 3.6)) -> Iterator[list[Any]]:
    """Some axes in a row, which are written to the path in the end. SVG text stays text, and files do not differ by
    the day they were made."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": "vllm-infogain", "font.size": 9}):
        figure, made = pyplot.subplots(1, count, figsize=(size[0] * count, size[1]), squeeze=False)
        yield list(made[0])
        figure.tight_layout()
        figure.savefig(path, dpi=110, metadata={"Date": None} if path.suffix == ".svg" else None)
        pyplot.close(figure)


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


def legend_apart(plots: Sequence[Any]) -> None:
    """The first plot's legend, in the last one's place."""
    plots[-1].axis("off")
    plots[-1].legend(*plots[0].get_legend_handles_labels(), loc="center", fontsize=8, frameon=False)
