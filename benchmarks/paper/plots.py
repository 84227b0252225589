"""Figures, by matplotlib. Each takes an experiment, its results, and the path of the picture it writes."""

from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paper.drawing import ENTROPY_LABEL, axes, bars
from benchmarks.paper.estimates import Results, accuracy, of_report
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.problems import TITLES


def by_sampler(experiment: Experiment, results: Results, path: Path) -> None:
    """Mean accuracy of each sampler, its standard error, a bar per K."""
    with axes(path, size=(7.0, 3.6)) as (one,):
        _bars(one, results, accuracy, 100)
        one.set_ylabel("right, % (mean over tasks)")


def accuracy_and_entropy(experiment: Experiment, results: Results, path: Path) -> None:
    with axes(path, count=2, size=(5.5, 3.6)) as (left, right):
        _bars(left, results, accuracy, 100)
        left.set_ylabel("right, % (mean over tasks)")
        _bars(right, results, of_report("cumulative_entropy"), 1)
        right.set_ylabel(ENTROPY_LABEL)


def _bars(one: Any, results: Results, value: Any, factor: float) -> None:
    counts = results.tokens_per_step
    groups = {
        f"K={count}" if count else "": [
            results.average(value, setting=name, tokens_per_step=count) for name in results.settings
        ]
        for count in counts
    }
    bars(one, results.settings, groups, factor)
    if any(counts):
        one.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(counts), frameon=False)


def wins_by_temperature(experiment: Experiment, results: Results, path: Path) -> None:
    """Win rate of the setting that is compared against each other one, by temperature, a plot per K."""
    from benchmarks.paper.layout import compared_rows, rate

    with axes(path, count=len(results.tokens_per_step)) as plots:
        for one, count in zip(plots, results.tokens_per_step, strict=True):
            for place, name in enumerate(results.settings):
                which = {"setting": name, "tokens_per_step": count}
                found = [(t, compared_rows(results, temperature=t, **which)) for t in results.temperatures]
                shift = 0.03 * (place - len(results.settings) / 2)  # so that intervals stand beside each other
                rates = [(t + shift, rate(rows)) for t, rows in found if t is not None and rows]
                if rates:
                    errors = [100 * (each.high - each.low) / 2 for _, each in rates]
                    one.errorbar(
                        [t for t, _ in rates], [100 * each.value for _, each in rates], errors, capsize=2, label=name
                    )
            one.axhline(50, color="grey", linewidth=0.8)
            one.set_title(f"K={count}")
            one.set_xlabel("temperature of tokens")
            one.set_xticks([t for t in results.temperatures if t is not None])
            one.set_ylim(0, 100)
        plots[0].set_ylabel(f"{experiment.compares} preferred, %")
        plots[-1].legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)


def growth(experiment: Experiment, results: Results, path: Path) -> None:
    """Figure 3a: cumulative entropy after each step, mean over problems, one plot per task."""
    with axes(path, count=len(results.tasks), size=(3.4, 3.2)) as plots:
        for one, task in zip(plots, results.tasks, strict=True):
            for name in results.settings:
                one.plot(range(1, 1 + len(curve := grown(results, task, name))), curve, label=name)
            one.set_title(TITLES[task])
            one.set_xlabel("step")
        plots[0].set_ylabel(ENTROPY_LABEL)
        plots[0].legend(loc="upper left")


def growth_table(experiment: Experiment, results: Results) -> str:
    """The same in figures: which share of the entropy is there after a quarter, half, three quarters of the steps."""
    from benchmarks.paper.layout import table

    rows = []
    for task in results.tasks:
        for name in results.settings:
            curve = grown(results, task, name)
            if len(curve):
                parts = [f"{100 * curve[len(curve) * part // 4 - 1] / curve[-1]:.0f} %" for part in (1, 2, 3)]
                rows.append([TITLES[task], name, *parts, f"{curve[-1]:.2f}"])
    return table(["task", "sampler", "1/4 of the steps", "1/2", "3/4", "all, nats"], rows)


def grown(results: Results, task: str, setting: str) -> np.ndarray:
    """[steps] mean cumulative entropy after each step; a generation that has ended keeps its own."""
    curves = [
        list(accumulate(sum(step["entropies"]) for step in row["report"]["trajectory"]))
        for _, row in results.select(task=task, setting=setting)
    ]
    curves = [curve for curve in curves if curve]
    if not curves:
        return np.array([])
    longest = max(map(len, curves))
    return np.array([curve + curve[-1:] * (longest - len(curve)) for curve in curves]).mean(axis=0)
