"""The presets beside what they could have been: accuracy and costs, at token temperature 0."""

from pathlib import Path
from typing import Any

from benchmarks.paper.estimates import Results, accuracy, cpu_ms, of_report
from benchmarks.paper.experiment import Experiment, Setting
from benchmarks.paper.layout import percent, shown, table
from benchmarks.paper.plots import axes
from benchmarks.paper.problems import TITLES
from vllm_infogain.request.presets import TEXT

COSTS = ("cumulative_entropy", "forwards", "rows")
OTHERS: dict[str, dict[str, Any]] = {
    "`threshold` 0.7": {"sampler": "threshold", "threshold": 0.7},
    "`eb` 0.1": {"sampler": "eb", "entropy_bound": 0.1},
    "`confidence`": {"sampler": "confidence"},
    "`entropy`": {"sampler": "entropy"},
}
SETTINGS = (
    *(Setting(f"preset `{name}`", knobs) for name, knobs in TEXT.items()),
    *(Setting(name, knobs) for name, knobs in OTHERS.items()),
)


def presets_table(experiment: Experiment, results: Results) -> str:
    rows = []
    for task in results.tasks:
        for name in results.settings:
            which = {"task": task, "setting": name}
            figures = [shown(results.estimate(of_report(one), **which)) for one in COSTS]
            ms = shown(results.estimate(cpu_ms, **which))
            rows.append([TITLES[task], name, percent(results.estimate(accuracy, **which)), *figures, ms])
    return table(["task", "settings", "right", "entropy", "forwards", "rows", "CPU ms"], rows)


def draw_presets(experiment: Experiment, results: Results, path: Path) -> None:
    """Accuracy against CPU time, a plot per task."""
    with axes(path, count=len(results.tasks), size=(3.6, 3.4)) as plots:
        for one, task in zip(plots, results.tasks, strict=True):
            for name in results.settings:
                x, y = (results.estimate(value, task=task, setting=name) for value in (cpu_ms, accuracy))
                if x is not None and y is not None:
                    label = name.replace("`", "")
                    one.errorbar(
                        x.mean, 100 * y.mean, yerr=100 * y.error, fmt="o", markersize=5, capsize=2, label=label
                    )
            one.set_title(TITLES[task])
            one.set_xlabel("CPU ms per answer")
            one.set_xscale("log")
        plots[0].set_ylabel("right, %")
        plots[-1].legend(fontsize=7)


PRESETS = Experiment(
    name="presets",
    title="The presets, and others",
    tasks=("gsm8k", "math500"),
    tiny_tasks=("tiny-sudoku", "tiny-countdown", "tiny-judgement"),
    settings=SETTINGS,
    tokens_per_step=(1,),
    temperatures=(0.0,),
    runs=1,
    layout=presets_table,
    draw=draw_presets,
    says="Token temperature 0. What a preset stands for: [presets](../../../vllm_infogain/request/README.md#presets).",
)

EXPERIMENTS = (PRESETS,)
