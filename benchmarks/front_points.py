"""What was measured of a setting, what of it is kept, and who is on the front. No engine, no vLLM."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.environment import settings_text
from benchmarks.json_lines import append_lines, read_lines
from vllm_infogain.embedded.evaluation import held_out
from vllm_infogain.embedded.tasks import Problem
from vllm_infogain.request.params import parse_params

# At temperature 0 the bare `multiply` is one answer only, so that task draws its tokens at 1.
TEMPERATURE = {"sudoku": 0.0, "countdown": 0.0, "judgement": 0.0, "multiplication": 1.0}
COSTS = {"forwards": "forwards", "rows": "rows", "cpu_ms": "CPU ms"}


@dataclass(frozen=True)
class Run:
    """One setting on one task with one seed."""

    task: str
    settings: dict[str, Any]
    seed: int
    model: str  # of its weights
    solved: list[bool]  # by problem
    forwards: float  # mean per problem, like the next two
    rows: float
    cpu_ms: float


@dataclass(frozen=True)
class Point:
    """One setting on one task."""

    task: str
    settings: dict[str, Any]
    runs: int
    accuracy: float
    standard_error: float  # over the problems, whose answers with several seeds are averaged first
    forwards: float
    rows: float
    cpu_ms: float


def problems_of(task: str, count: int) -> list[Problem]:
    """Held-out ones; Sudokus have four givens."""
    return held_out(task, count, **({"givens": 4} if task == "sudoku" else {}))


def draws(settings: Mapping[str, Any], temperature: float) -> bool:
    """Whether another seed may give another answer."""
    params = parse_params(settings, defaults={}, temperature=temperature, canvas_length=64)
    return temperature > 0 or params.tau_position > 0 or params.sampler == "uniform"


def takes_long(settings: Mapping[str, Any]) -> bool:
    """Whether a problem costs several times what it costs most settings: one seed has to do."""
    never_sure = settings["sampler"] == "info_gain" and settings.get("bypass_threshold", 0) >= 1
    every_token = settings["sampler"] == "info_gain" and settings.get("tokens_per_step", 1) == 1
    return settings["sampler"] in ("beam", "best_of_n") or never_sure or every_token


def plan(tasks: Sequence[str], settings: Sequence[dict[str, Any]], seeds: int) -> list[tuple[str, dict[str, Any], int]]:
    """(task, settings, seed) of every run: seed by seed, so that an early end leaves all settings with some."""
    return [
        (task, knobs, seed)
        for seed in range(seeds)
        for task in tasks
        for knobs in settings
        if seed == 0 or (draws(knobs, TEMPERATURE[task]) and not takes_long(knobs))
    ]


def point(runs: Sequence[Run]) -> Point:
    """Of all runs of one setting on one task."""
    solved = np.array([run.solved for run in runs], dtype=float).mean(0)
    error = float(solved.std(ddof=1) / len(solved) ** 0.5) if len(solved) > 1 else float("nan")
    costs = {name: float(np.mean([getattr(run, name) for run in runs])) for name in COSTS}
    return Point(runs[0].task, runs[0].settings, len(runs), float(solved.mean()), error, **costs)


def on_front(points: Sequence[Point], cost: str) -> list[Point]:
    """Those that no other beats: none is as right for less, or more right for as much. By ascending cost."""
    front: list[Point] = []
    for one in sorted(points, key=lambda one: (getattr(one, cost), -one.accuracy)):
        if not front or one.accuracy > front[-1].accuracy:
            front.append(one)
    return front


def points_of(runs: Sequence[Run]) -> list[Point]:
    """In the order of their first runs."""
    grouped: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        grouped.setdefault((run.task, json.dumps(run.settings)), []).append(run)
    return [point(group) for group in grouped.values()]


def tables(points: Sequence[Point], tasks: Sequence[str]) -> Iterator[str]:
    """One table per task, in Markdown."""
    for task in tasks:
        of_task = [one for one in points if one.task == task]
        fronts = {cost: on_front(of_task, cost) for cost in COSTS}
        yield f"\n## {task.capitalize()}\n"
        yield "| settings | runs | accuracy | " + " | ".join(COSTS.values()) + " | on the front of |"
        yield "|---" * (len(COSTS) + 4) + "|"
        for one in of_task:
            best = ", ".join(COSTS[cost] for cost, front in fronts.items() if one in front)
            right = f"{100 * one.accuracy:.1f} ± {100 * one.standard_error:.1f} %"
            costs = f"{one.forwards:.2f} | {one.rows:.0f} | {one.cpu_ms:.1f}"
            yield f"| {settings_text(one.settings)} | {one.runs} | {right} | {costs} | {best} |"


class Kept:
    """Runs that are done, a line of JSON each. Those of other weights or other problems are passed over."""

    def __init__(self, path: Path | None, model: str, problems: int) -> None:
        self.path = path
        self.runs: dict[tuple[str, str, int], Run] = {}
        if path is not None:
            for line in read_lines(path):
                run = Run(**line)
                if (run.model, len(run.solved)) == (model, problems):
                    self.runs[run.task, json.dumps(run.settings), run.seed] = run

    def find(self, task: str, settings: dict[str, Any], seed: int) -> Run | None:
        return self.runs.get((task, json.dumps(settings), seed))

    def add(self, run: Run) -> None:
        if self.path is not None:
            append_lines(self.path, [asdict(run)])
