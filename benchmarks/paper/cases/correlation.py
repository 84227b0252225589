"""Accuracy against cumulative entropy, with Pearson's r (Figure 3b)."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.paper.cases.drawing import legend_below
from benchmarks.paper.estimates import Results, accuracy, of_report
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.layout import table
from benchmarks.paper.plots import ENTROPY_LABEL, axes
from benchmarks.paper.problems import TITLES
from benchmarks.paper.tables import REASONING, SAMPLERS, TINY

OfSetting = tuple[int | None, str, float, float]  # K, sampler, mean cumulative entropy, accuracy
WITHIN_95 = 1.96  # standard deviations


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float:
    """r; NaN where one of both does not vary."""
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    joint = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    spread = math.sqrt(sum((x - mean_x) ** 2 for x in xs) * sum((y - mean_y) ** 2 for y in ys))
    return joint / spread if spread else math.nan


def interval(r: float, count: int) -> tuple[float, float]:
    """95 % of r over `count` pairs, by Fisher's transformation."""
    if count < 4 or math.isnan(r):
        return -1.0, 1.0
    if abs(r) == 1:
        return r, r
    half = WITHIN_95 / math.sqrt(count - 3)
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


def said(xs: Sequence[float], ys: Sequence[float]) -> str:
    """r and its interval as a table's cell."""
    if len(xs) < 4 or math.isnan(r := pearson(xs, ys)):
        return ""
    low, high = interval(r, len(xs))
    return f"{r:.2f} ({low:.2f} to {high:.2f})"


def of_settings(results: Results, task: str) -> list[OfSetting]:
    found: list[OfSetting] = []
    for count in results.tokens_per_step:
        for name in results.settings:
            which = {"task": task, "setting": name, "tokens_per_step": count}
            x, y = results.estimate(of_report("cumulative_entropy"), **which), results.estimate(accuracy, **which)
            if x is not None and y is not None:
                found.append((count, name, x.mean, y.mean))
    return found


def of_answers(results: Results, task: str, count: int | None, name: str) -> tuple[list[float], list[float]]:
    """Cumulative entropy, and whether it is right, of each answer."""
    rows = [row for _, row in results.select(task=task, tokens_per_step=count, setting=name)]
    return [row["report"]["cumulative_entropy"] for row in rows], [row["grade"]["accuracy"] for row in rows]


def _said_of(settings: Iterable[OfSetting]) -> str:
    known = list(settings)
    return said([x for _, _, x, _ in known], [y for _, _, _, y in known])


def correlation_table(experiment: Experiment, results: Results) -> str:
    rows = []
    for task in results.tasks:
        settings = of_settings(results, task)
        over = [_said_of(one for one in settings if one[0] == count) for count in results.tokens_per_step]
        all_of = _said_of(settings)
        inside = [said(*of_answers(results, task, count, "Info-Gain")) for count in results.tokens_per_step]
        rows.append([TITLES[task], *over, all_of, *inside])
    counts = [f"K={count}" for count in results.tokens_per_step]
    head = ["task", *(f"samplers, {one}" for one in counts), "samplers, all K", *(f"answers, {one}" for one in counts)]
    return table(head, rows)


def draw_correlation(experiment: Experiment, results: Results, path: Path) -> None:
    with axes(path, count=len(results.tasks), size=(3.2, 3.6)) as plots:
        for one, task in zip(plots, results.tasks, strict=True):
            settings = of_settings(results, task)
            for place, name in enumerate(results.settings):
                for mark, count in zip("os^", results.tokens_per_step, strict=False):
                    at = [(x, 100 * y) for k, of, x, y in settings if (k, of) == (count, name)]
                    one.plot(
                        [x for x, _ in at], [y for _, y in at], mark, color=f"C{place}", markersize=5,
                        label=name if mark == "o" else None,
                    )  # fmt: skip
            r = pearson([x for _, _, x, _ in settings], [y for _, _, _, y in settings])
            one.set_title(f"{TITLES[task]}, r = {r:.2f}")
            one.set_xlabel(ENTROPY_LABEL)
        plots[0].set_ylabel("right, % (circle: K=1, square: K=2)")
        legend_below(plots[0], 4)


FIGURE3B = Experiment(
    name="figure3b",
    title="Figure 3b: accuracy against cumulative entropy",
    tasks=REASONING,
    tiny_tasks=TINY,
    settings=SAMPLERS,
    runs=1,
    layout=correlation_table,
    draw=draw_correlation,
    says="Pearson's r, in brackets its 95 % interval. Samplers: over the settings' means. Answers: over the answers of "
    "Info-Gain, entropy against right (1) or wrong (0). Made of rows of Table 2.",
)

EXPERIMENTS = (FIGURE3B,)
