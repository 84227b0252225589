"""The sheet of pictures (the paper's Figure 7) and the plot of entropy against quality (Figures 3b and 8)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SCALE = 4  # pixels of the sheet per pixel of a picture
PER_CATEGORY = 2  # columns of the sheet
GAP = 6  # pixels between pictures, before they are enlarged: none


def sheet(shown: Mapping[str, np.ndarray], wanted: Sequence[Mapping[str, Any]], path: Path) -> None:
    """One row of pictures per sampler, the same prompts in each, the prompt below each column.

    Args:
        shown: by sampler, [n, side, side, 3] uint8.
        wanted: the n requirements.
        path: of the PNG file.
    """
    from PIL import Image, ImageDraw

    columns = _first_of_each(wanted)
    side = next(iter(shown.values())).shape[1] * SCALE
    caption = 34
    size = (len(columns) * (side + GAP) + GAP, len(shown) * (side + GAP) + GAP + caption)
    canvas = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(canvas)
    for x, index in enumerate(columns):
        left = GAP + x * (side + GAP)
        for y, pictures in enumerate(shown.values()):
            enlarged = Image.fromarray(pictures[index]).resize((side, side), Image.Resampling.NEAREST)
            canvas.paste(enlarged, (left, GAP + y * (side + GAP)))
        for line, words in enumerate(_wrapped(wanted[index]["prompt"])):
            pen.text((left, size[1] - caption + 11 * line), words, fill="black")
    canvas.save(path, optimize=True)


def _first_of_each(wanted: Sequence[Mapping[str, Any]]) -> list[int]:
    """Columns are the first prompts of each category: not chosen by what came out."""
    taken: dict[str, list[int]] = {}
    for index, requirement in enumerate(wanted):
        group = taken.setdefault(requirement["tag"], [])
        if len(group) < PER_CATEGORY:
            group.append(index)
    return [index for group in taken.values() for index in group]


def _wrapped(text: str, width: int = 20) -> list[str]:
    lines = [""]
    for word in text.split():
        if len(lines[-1]) + len(word) > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines[:3]


def entropy_plot(results: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Cumulative entropy of each cell against its share of right pictures, one mark per number of steps."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5))
    for mark, steps in zip("os^Dv", sorted({one["steps"] for one in results}), strict=False):
        group = [one for one in results if one["steps"] == steps]
        axes.errorbar(
            [one["cumulative_entropy"] for one in group],
            [100 * one["mean"] for one in group],
            yerr=[100 * one["standard_error"] for one in group],
            fmt=mark, capsize=2, label=f"{steps} steps" if steps else "steps as the sampler likes",
        )  # fmt: skip
        for one in group:
            place = (one["cumulative_entropy"], 100 * one["mean"])
            axes.annotate(one["name"], place, textcoords="offset points", xytext=(5, 4), fontsize=7)
    axes.set_xlabel("cumulative entropy of a picture, nats")
    axes.set_ylabel("right pictures, % (mean of six categories)")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
