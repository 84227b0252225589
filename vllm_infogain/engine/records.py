"""The frozen records that scheduler and worker hand to each other. They cross process borders: plain data only."""

from dataclasses import dataclass, field
from typing import Any

from vllm_infogain.engine.compat import ModelRunnerOutput, SchedulerOutput


@dataclass(frozen=True)
class Demand:
    """What one request wants evaluated next. Set by the runner, which has the logits."""

    sequences: int  # 0: the canvas is full
    rows: int  # of each sequence
    own_pages: int  # KV pages of each sequence but the first; 0: all lie in kept pages
    kept: int = 0  # states whose K/V are kept, to be computed again if the request loses its pages
    kept_rows: int = 0  # of each of them
    final: int = 0  # positions, from the prompt's start, whose K/V are final


@dataclass(frozen=True)
class GroupPlan:
    """What one request may evaluate in this step. Set by the scheduler."""

    sequences: int  # the next so many of what it asked for, or of its kept states
    contexts: tuple[tuple[int, ...], ...]  # KV pages of each kept state; without a cache: of the first sequence
    scratch: tuple[int, ...] = ()  # further KV pages, lent for this step
    restored: int | None = None  # not what it asked for: its kept states from this one on, lost by a preemption


@dataclass
class StepPlan(SchedulerOutput):
    """vLLM's scheduler output plus one group plan per scheduled request. Set by the scheduler."""

    groups: dict[str, GroupPlan] = field(default_factory=dict)
    forwards: int = 1  # the worker may go on by itself for so many, while the plan's pages and rows suffice
    row_budget: int = 0  # of each of them


@dataclass
class StepResult(ModelRunnerOutput):
    """vLLM's runner output plus what the scheduler needs to plan the next step. Set by the runner."""

    demands: dict[str, Demand] = field(default_factory=dict)
    reports: dict[str, dict[str, Any]] = field(default_factory=dict)  # only where a block finished
