"""Accuracy against cumulative entropy, with Pearson's r (Figure 3b)."""

import math
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.paper.drawing import ENTROPY_LABEL, axes, legend_apart
from benchmarks.paper.estimates import Estimate, Results, accuracy, of_report
from benchmarks.paper.experiment import Experiment, Setting
from benchmarks.paper.layout import k_of, percent, shown, table
from benchmarks.paper.problems import TITLES
from benchmarks.paper.tables import LOOKUM, REASONING, SAMPLERS, TINY

OfSetting = tuple[int | None, str, Estimate, Estimate]  # K, sampler, mean cumulative entropy, accuracy
WITHIN_95 = 1.96  # standard deviations


def pearson(xs: Sequence[float], ys: Sequence[float]) -> float:
    """r; NaN where one of both does not vary."""
    try:
        return statistics.correlation(xs, ys)
    except statistics.StatisticsError:
        return math.nan


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
                found.append((count, name, x, y))
    return found


def of_answers(results: Results, task: str, count: int | None, name: str) -> tuple[list[float], list[float]]:
    """Cumulative entropy, and whether it is right, of each answer."""
    rows = [row for _, row in results.select(task=task, tokens_per_step=count, setting=name)]
    return [row["report"]["cumulative_entropy"] for row in rows], [row["grade"]["accuracy"] for row in rows]


def _said_of(settings: Iterable[OfSetting]) -> str:
    known = list(settings)
    return said([x.mean for _, _, x, _ in known], [y.mean for _, _, _, y in known])


def correlation_table(experiment: Experiment, results: Results) -> str:
    rows = []
    for task in results.tasks:
        settings = of_settings(results, task)
        over = [_said_of(one for one in settings if one[0] == count) for count in results.tokens_per_step]
        inside = [said(*of_answers(results, task, count, "Info-Gain")) for count in results.tokens_per_step]
        rows.append([TITLES[task], *over, *inside])
    counts = [f"K={count}" for count in results.tokens_per_step]
    head = ["task", *(f"samplers, {one}" for one in counts), *(f"answers, {one}" for one in counts)]
    return f"{table(head, rows)}\nEach setting: right in %, cumulative entropy.\n\n{settings_table(results)}"


def settings_table(results: Results) -> str:
    found = {
        (task, count, name): f"{percent(y)}, {shown(x)}"
        for task in results.tasks
        for count, name, x, y in of_settings(results, task)
    }
    rows = [
        [k_of(count), name, *(found.get((task, count, name), "") for task in results.tasks)]
        for count in results.tokens_per_step
        for name in results.settings
    ]
    return table(["K", "sampler", *(TITLES[task] for task in results.tasks)], rows)


def draw_correlation(experiment: Experiment, results: Results, path: Path) -> None:
    """One plot per task, a mark per setting, and a last one for the legend."""
    with axes(path, count=len(results.tasks) + 1, size=(3.0, 3.2)) as plots:
        for one, task in zip(plots, results.tasks, strict=False):
            settings = of_settings(results, task)
            for count, name, x, y in settings:
                one.errorbar(
                    x.mean, 100 * y.mean, yerr=100 * y.error,
                    fmt="os^"[results.tokens_per_step.index(count)], color=f"C{results.settings.index(name)}",
                    markersize=5, label=f"{name}, K={count}",
                )  # fmt: skip
            r = pearson([x.mean for _, _, x, _ in settings], [y.mean for _, _, _, y in settings])
            one.set_title(f"{TITLES[task]}, r = {r:.2f}")
            one.set_xlabel(ENTROPY_LABEL)
        plots[0].set_ylabel("right, %")
        legend_apart(plots)


FIGURE3B = Experiment(
    name="figure3b",
    title="Figure 3b: accuracy against cumulative entropy",
    tasks=REASONING,
    tiny_tasks=TINY,
    settings=(*SAMPLERS, LOOKUM, Setting("Left to right", {"sampler": "ar"})),
    tokens_per_step=(2,),
    runs=1,
    layout=correlation_table,
    draw=draw_correlation,
    says="Pearson's r, in brackets its 95 % interval. Samplers: over the settings' means. Answers: over the answers\n"
    "of Info-Gain, entropy against right (1) or wrong (0). K is 2.",
)

EXPERIMENTS = (FIGURE3B,)
