"""The frozen records that scheduler and worker hand to each other. They cross process borders: plain data only."""

from dataclasses import dataclass, field
from typing import Any

from vllm_infogain.engine.compat import ModelRunnerOutput, SchedulerOutput


@dataclass(frozen=True)
class GroupPlan:
    """What one request may evaluate in this step: the next `len(pages)` sequences of its group."""

    pages: tuple[tuple[int, ...], ...]  # KV pages of each sequence


@dataclass
class StepPlan(SchedulerOutput):
    """vLLM's scheduler output plus one group plan per scheduled request. Set by the scheduler."""

    groups: dict[str, GroupPlan] = field(default_factory=dict)


@dataclass
class StepResult(ModelRunnerOutput):
    """vLLM's runner output plus what the scheduler needs to plan the next step. Set by the runner."""

    sequences_wanted: dict[str, int] = field(default_factory=dict)  # 0: the canvas is full
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)  # only where a block finished
