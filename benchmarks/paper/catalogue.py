"""All experiments, by name."""

import importlib

from benchmarks.paper.experiment import Experiment

MODULES = ("tables", "cases")  # each has EXPERIMENTS
GROUPS = MODULES  # one command may make all of a module's experiments together
ELSEWHERE = dict.fromkeys(("table4", "figure7", "figure8"), "python -m benchmarks.images")  # another command's
ELSEWHERE["figure10"] = "python -m benchmarks.paper.cases.memory"


def experiments() -> dict[str, Experiment]:
    return {one.name: one for name in MODULES for one in _of(name)}


def groups() -> dict[str, tuple[Experiment, ...]]:
    return {name: _of(name) for name in GROUPS}


def _of(module: str) -> tuple[Experiment, ...]:
    return importlib.import_module(f"benchmarks.paper.{module}").EXPERIMENTS
