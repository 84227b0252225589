"""What changes along a line: token temperature (Figure 5), steps (Table 7), gamma (Figure 9), sequences (Figure 4)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.paper.drawing import ENTROPY_LABEL, axes, curve
from benchmarks.paper.estimates import Estimate, Results, Row, Value, accuracy, cpu_ms, of_report
from benchmarks.paper.experiment import Experiment, Setting
from benchmarks.paper.layout import mean, percent, shown, table
from benchmarks.paper.problems import TITLES

SAMPLERS = {
    "Entropy": {"sampler": "entropy"},
    "Info-Gain": {"sampler": "info_gain"},
    "Info-Gain, sum": {"sampler": "info_gain", "state_uncertainty": "sum"},
}
entropy = of_report("cumulative_entropy")
RIGHT = "right, %"


@dataclass(frozen=True)
class Line:
    """Settings that differ in one number: the line's x."""

    name: str
    settings: Mapping[float, Setting]

    @classmethod
    def over(cls, name: str, xs: Sequence[float], unit: str, knobs: Any) -> "Line":
        """`knobs(x)` are those at x; a setting is called by the line and its x."""
        return cls(name, {x: Setting(f"{name}, {unit} {x:g}", knobs(x)) for x in xs})


def settings_of(lines: Sequence[Line]) -> tuple[Setting, ...]:
    return tuple(setting for line in lines for setting in line.settings.values())


def points(results: Results, line: Line, value: Value, **which: Any) -> list[tuple[float, Estimate | None]]:
    return [(x, results.estimate(value, setting=setting.name, **which)) for x, setting in line.settings.items()]


def lines_table(lines: Sequence[Line], results: Results, unit: str, values: Mapping[str, tuple[Value, float]]) -> str:
    """A row per task, line and x.

    Args:
        values: by column, a value and the factor it is shown by.
    """
    rows = []
    for task in results.tasks:
        for line in lines:
            for x, setting in line.settings.items():
                found = [results.estimate(value, task=task, setting=setting.name) for value, _ in values.values()]
                if any(found):
                    factors = [factor for _, factor in values.values()]
                    scaled = [one and one.times(factor) for one, factor in zip(found, factors, strict=True)]
                    ms = results.estimate(cpu_ms, task=task, setting=setting.name)
                    rows.append([TITLES[task], line.name, f"{x:g}", *map(shown, scaled), mean(ms)])
    return table(["task", "sampler", unit, *values, "CPU ms"], rows)


# Figure 5: token temperature.

TEMPERATURES = (0.0, 0.5, 1.0, 1.5)


def temperature_table(experiment: Experiment, results: Results) -> str:
    head = ["task", "sampler", *(f"{one:g}" for one in results.temperatures)]
    rows = [
        [TITLES[task], name, *(percent(one) for _, one in by_temperature(results, task, name))]
        for task in results.tasks
        for name in results.settings
    ]
    return table(head, rows)


def by_temperature(results: Results, task: str, name: str) -> list[tuple[float, Estimate | None]]:
    known = [one for one in results.temperatures if one is not None]
    return [(one, results.estimate(accuracy, task=task, setting=name, temperature=one)) for one in known]


def draw_temperature(experiment: Experiment, results: Results, path: Path) -> None:
    with axes(path, count=len(results.tasks), size=(4.2, 3.4)) as plots:
        for one, task in zip(plots, results.tasks, strict=True):
            for name in results.settings:
                curve(one, by_temperature(results, task, name), name, 100)
            one.set_title(TITLES[task])
            one.set_xlabel("token temperature")
        plots[0].set_ylabel(RIGHT)
        plots[0].legend(fontsize=8)


FIGURE5 = Experiment(
    name="figure5",
    title="Figure 5: accuracy by token temperature",
    tasks=("gsm8k", "math500"),
    tiny_tasks=("tiny-sudoku", "tiny-countdown"),
    settings=tuple(Setting(name, knobs) for name, knobs in SAMPLERS.items()),
    tokens_per_step=(2,),
    temperatures=TEMPERATURES,
    runs=1,
    layout=temperature_table,
    draw=draw_temperature,
    says="K is 2; accuracy in %, by token temperature.",
)


# Table 7: few steps.

STEPS = (4, 6, 8, 12)
FORMS = {
    "tiny-sudoku": re.compile(r"[1-4]{4}(\n[1-4]{4}){3}"),
    "tiny-countdown": re.compile(r"\d+[-+*/]\d+=\d+,\d+[-+*/]\d+=\d+"),
    "tiny-judgement": re.compile(r"\d+[-+*]\d+=\d+,\d+[-+*]\d+=\d+,(yes|no)"),
}


def collapsed(row: Row) -> float:
    """Whether the text has not even the form of an answer: which form, its prompt's task decides, whoever it is of."""
    return float(not any(form.fullmatch(row["text"]) for form in FORMS.values()))


COLLAPSE = [
    Line.over(name, STEPS, "steps", lambda steps, knobs=knobs: {**knobs, "schedule": "linear", "steps": int(steps)})
    for name, knobs in SAMPLERS.items()
]  # fmt: skip


def steps_table(experiment: Experiment, results: Results) -> str:
    columns = {"right": (accuracy, 100), "without the form of an answer": (collapsed, 100), "entropy": (entropy, 1)}
    return lines_table(COLLAPSE, results, "steps", columns)


def draw_steps(experiment: Experiment, results: Results, path: Path) -> None:
    panels = [(task, accuracy, RIGHT) for task in results.tasks]
    panels.append((results.tasks[-1], collapsed, "without the form of an answer, %"))
    with axes(path, count=len(panels), size=(3.6, 3.4)) as plots:
        for one, (task, value, label) in zip(plots, panels, strict=True):
            for line in COLLAPSE:
                curve(one, points(results, line, value, task=task), line.name, 100)
            one.set_title(TITLES[task])
            one.set_xlabel("steps")
            one.set_ylabel(label)
        plots[0].legend(fontsize=8)


TABLE7 = Experiment(
    name="table7",
    title="Table 7: few steps",
    tasks=(),
    tiny_tasks=("tiny-sudoku", "tiny-countdown"),
    settings=settings_of(COLLAPSE),
    tokens_per_step=(None,),
    runs=1,
    layout=steps_table,
    draw=draw_steps,
    says="The paper counts texts that collapse when a step writes many tokens. The embedded model writes no prose:\n"
    "here a text has collapsed if it has not even the form of an answer: four rows of four digits, or two steps\n"
    "of arithmetic. `schedule: linear`; canvases have 20 and 24 positions.",
)


# Figure 9: the bypass.

GAMMAS = (0.5, 0.7, 0.8, 0.9, 1.0)
# With the trajectory, as in Figure 6, so that they share the rows of gamma = 1.
TRACED = {"sampler": "info_gain", "return_trajectory": True}
BYPASS = [Line.over("Info-Gain", GAMMAS, "gamma", lambda gamma: {**TRACED, "bypass_threshold": gamma})]


def bypassed(row: Row) -> float:
    """Share of its steps."""
    return row["report"]["bypassed_steps"] / row["report"]["steps"]


def gamma_table(experiment: Experiment, results: Results) -> str:
    columns: dict[str, tuple[Value, float]] = {
        "right": (accuracy, 100), "entropy": (entropy, 1), "steps bypassed, %": (bypassed, 100),
        "rows": (of_report("rows"), 1),
    }  # fmt: skip
    return lines_table(BYPASS, results, "gamma", columns)


def draw_gamma(experiment: Experiment, results: Results, path: Path) -> None:
    panels = ((cpu_ms, 1, "CPU ms per answer"), (entropy, 1, ENTROPY_LABEL), (accuracy, 100, RIGHT))
    with axes(path, count=len(panels), size=(3.6, 3.2)) as plots:
        for one, (value, factor, label) in zip(plots, panels, strict=True):
            for task in results.tasks:
                curve(one, points(results, BYPASS[0], value, task=task), TITLES[task], factor)
            one.set_xlabel("gamma (1: no bypass)")
            one.set_ylabel(label)
            one.set_ylim(bottom=0)
        plots[0].legend(fontsize=8)


FIGURE9 = Experiment(
    name="figure9",
    title="Figure 9: the bypass threshold against time and entropy",
    tasks=("gsm8k", "math500"),
    tiny_tasks=("tiny-sudoku", "tiny-countdown"),
    settings=settings_of(BYPASS),
    tokens_per_step=(1,),
    runs=1,
    layout=gamma_table,
    draw=draw_gamma,
)


# Figure 4: beams against best of N.


def _beam(candidates: int, width: float) -> dict[str, Any]:
    return {"sampler": "beam", "num_candidates": candidates, "beam_width": int(width), "bypass_threshold": 1.0}


BUDGET = [
    Line.over("best of n", (1, 2, 4), "n", lambda n: {"sampler": "best_of_n", "num_generations": int(n)}),
    Line.over("beam, N=2", (1, 2, 4), "B", lambda width: _beam(2, width)),
    Line.over("beam, N=4", (1, 2, 4), "B", lambda width: _beam(4, width)),
]


def budget_table(experiment: Experiment, results: Results) -> str:
    columns = {"right": (accuracy, 100), "entropy": (entropy, 1), "rows": (of_report("rows"), 1)}
    return lines_table(BUDGET, results, "n or B", columns)


def draw_budget(experiment: Experiment, results: Results, path: Path) -> None:
    """Against the rows that the model computed: what a budget is."""
    with axes(path, count=2 * len(results.tasks), size=(3.2, 3.4)) as plots:
        for place, task in enumerate(results.tasks):
            for one, value, factor, label in zip(
                plots[2 * place :], (accuracy, entropy), (100, 1), (RIGHT, ENTROPY_LABEL), strict=False
            ):
                for line in BUDGET:
                    rows = [y.mean if y else 0 for _, y in points(results, line, of_report("rows"), task=task)]
                    at = points(results, line, value, task=task)
                    curve(one, [(x, y) for x, (_, y) in zip(rows, at, strict=True)], line.name, factor)
                one.set_xscale("log", base=2)
                one.set_title(TITLES[task])
                one.set_xlabel("rows per answer")
                one.set_ylabel(label)
        plots[0].legend(fontsize=8)


FIGURE4 = Experiment(
    name="figure4",
    title="Figure 4: beams against best of n, by the rows that the model computes",
    tasks=("gsm8k", "math500"),
    tiny_tasks=("tiny-sudoku", "tiny-countdown"),
    settings=settings_of(BUDGET),
    tokens_per_step=(2,),
    runs=1,
    layout=budget_table,
    draw=draw_budget,
    says="K is 2; beams without bypass, so that they compute what they compare. `best_of_n` takes the generation of\n"
    "the lowest cumulative entropy, of n by `entropy` with position temperature 0.1.",
)

EXPERIMENTS = (TABLE7, FIGURE4, FIGURE5, FIGURE9)
