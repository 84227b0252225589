"""The presets beside what they could have been: accuracy and costs, at token temperature 0."""

import math
from pathlib import Path
from typing import Any

from benchmarks.paper.drawing import axes, legend_apart
from benchmarks.paper.estimates import Results, accuracy, cpu_ms, of_report
from benchmarks.paper.experiment import Experiment, Setting
from benchmarks.paper.layout import mean, percent, shown, table
from benchmarks.paper.problems import TITLES
from vllm_infogain.request.params import READERS, SAMPLERS, parse_params
from vllm_infogain.request.presets import PRESETS as NAMES


def knobs_of(preset: str) -> dict[str, Any]:
    """All that a preset decides, its sampler's defaults too: else the paper's settings would fill them in."""
    params = parse_params({"preset": preset}, defaults={}, temperature=0, canvas_length=1)
    own = [name for name, readers in READERS.items() if params.sampler in readers and len(readers) < len(SAMPLERS)]
    named = {name: getattr(params, name) for name in ("sampler", *own)}
    return named | {"position_temperature": params.tau_position}


COSTS = ("cumulative_entropy", "forwards", "rows")
OTHERS: dict[str, dict[str, Any]] = {
    "`eb` 0.1": {"sampler": "eb", "entropy_bound": 0.1},
    "`confidence`": {"sampler": "confidence"},
    "`info_gain`": {"sampler": "info_gain"},
    "`beam` of 4": {"sampler": "beam", "num_candidates": 4, "beam_width": 4},
    "`best_of_n`, 4": {"sampler": "best_of_n", "num_generations": 4},
}
SETTINGS = (
    *(Setting(f"preset `{name}`", knobs_of(name)) for name in NAMES),
    *(Setting(name, knobs) for name, knobs in OTHERS.items()),
)


def presets_table(experiment: Experiment, results: Results) -> str:
    rows = []
    for task in results.tasks:
        for name in results.settings:
            which = {"task": task, "setting": name}
            figures = [shown(results.estimate(of_report(one), **which)) for one in COSTS]
            ms = mean(results.estimate(cpu_ms, **which))
            rows.append([TITLES[task], name, percent(results.estimate(accuracy, **which)), *figures, ms])
    return table(["task", "settings", "right", "entropy", "forwards", "rows", "CPU ms"], rows)


def draw_presets(experiment: Experiment, results: Results, path: Path) -> None:
    """Accuracy against CPU time, a plot per task, and a last one for the legend."""
    with axes(path, count=len(results.tasks) + 1, size=(3.0, 3.2)) as plots:
        for one, task in zip(plots, results.tasks, strict=False):
            times = []
            for name in results.settings:
                x, y = (results.estimate(value, task=task, setting=name) for value in (cpu_ms, accuracy))
                if x is not None and y is not None:
                    label = name.replace("`", "")
                    one.errorbar(x.mean, 100 * y.mean, yerr=100 * y.error, fmt="o", capsize=2, label=label)
                    times.append(x.mean)
            one.set_title(TITLES[task])
            one.set_xlabel("CPU ms per answer")
            one.set_xscale("log")
            if times:  # whole decades, which have a tick at either end
                one.set_xlim(10 ** math.floor(math.log10(min(times))), 10 ** math.ceil(math.log10(max(times))))
            one.set_ylim(0, 105)
        plots[0].set_ylabel("right, %")
        legend_apart(plots)


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
