"""All experiments, by name."""

import importlib

from benchmarks.paper.experiment import Experiment

MODULES = ("tables",)  # each has EXPERIMENTS
ELSEWHERE = dict.fromkeys(("table4", "figure7", "figure8"), "python -m benchmarks.images")  # another command's


def experiments() -> dict[str, Experiment]:
    modules = [importlib.import_module(f"benchmarks.paper.{name}") for name in MODULES]
    return {one.name: one for module in modules for one in module.EXPERIMENTS}
