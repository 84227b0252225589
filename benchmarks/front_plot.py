"""The plot of accuracy against cost, by matplotlib: a row per task, a column per cost."""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.environment import settings_text

# A kind of sampler has a colour, its samplers a mark.
KINDS = {
    "adaptive": ("tab:red", "*"),
    "threshold": ("tab:blue", "o"), "eb": ("tab:blue", "s"), "factor": ("tab:blue", "^"),
    "info_gain": ("tab:orange", "D"), "lookum": ("tab:orange", "v"), "beam": ("tab:orange", "P"),
    "best_of_n": ("tab:orange", "X"),
}  # fmt: skip
OTHERS = ("tab:gray", ".")
LONGEST_LABEL = 34  # characters


def plot(
    points: Mapping[str, Sequence[Any]],
    costs: Mapping[str, str],
    on_front: Callable[[Sequence[Any], str], list[Any]],
    path: Path,
) -> None:
    """Draw what `benchmarks.front` measured, the front as a line, as PNG.

    Args:
        points: by task.
        costs: names of the points' costs, and how they are called.
        on_front: those of some points that no other beats, by a cost.
        path: of the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot, ticker

    figure, rows = pyplot.subplots(len(points), len(costs), figsize=(13, 3.6 * len(points)), squeeze=False)
    for (task, of_task), row in zip(points.items(), rows, strict=True):
        for (cost, called), axes in zip(costs.items(), row, strict=True):
            for one in of_task:
                colour, mark = KINDS.get(one.settings["sampler"], OTHERS)
                axes.errorbar(
                    getattr(one, cost), 100 * one.accuracy, yerr=100 * one.standard_error, color=colour, marker=mark,
                    markersize=5, elinewidth=0.6, linestyle="none",
                )  # fmt: skip
            front = on_front(of_task, cost)
            places = [(getattr(one, cost), 100 * one.accuracy) for one in front]
            axes.plot(*zip(*places, strict=True), color="black", linewidth=0.8, zorder=0)
            for one, place in zip(front, places, strict=True):
                text = textwrap.shorten(settings_text(one.settings), LONGEST_LABEL, placeholder=" ..")
                label = axes.annotate(text, place, textcoords="offset points", xytext=(4, -9), fontsize=6)
                label.set_in_layout(False)
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_locator(ticker.NullLocator())
            axes.set_xlabel(f"{called} per problem")
            axes.set_title(task, fontsize=9)
        row[0].set_ylabel("solved, %")
    marks = [
        pyplot.Line2D([], [], color=colour, marker=mark, linestyle="none", label=name)
        for name, (colour, mark) in [*KINDS.items(), ("others", OTHERS)]
    ]
    figure.legend(handles=marks, loc="upper center", ncol=len(marks), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
