"""The frozen records that scheduler and worker hand to each other. They cross process borders: plain data only."""

from dataclasses import dataclass, field
from typing import Any

from vllm_infogain.compat import ModelRunnerOutput, SchedulerOutput
from vllm_infogain.grammar.automaton import TokenAutomaton
from vllm_infogain.request.params import DecodingParams


@dataclass(frozen=True)
class NextForward:
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
    state_pages: tuple[tuple[int, ...], ...]  # KV pages of each kept state; without a cache: of the first sequence
    scratch: tuple[int, ...] = ()  # further KV pages, lent for this step
    restored: int | None = None  # not what it asked for: its kept states from this one on, lost by a preemption


@dataclass
class StepPlan(SchedulerOutput):
    """vLLM's scheduler output plus one group plan per scheduled request. Set by the scheduler."""

    groups: dict[str, GroupPlan] = field(default_factory=dict)
    params: dict[str, DecodingParams] = field(default_factory=dict)  # of its new requests, as the scheduler parsed them
    automata: dict[str, TokenAutomaton] = field(default_factory=dict)  # of its new requests that are structured
    forwards: int = 1  # the worker may go on by itself for so many, while the plan's pages and rows suffice
    row_budget: int = 0  # of each of them


@dataclass(frozen=True)
class StepFigures:
    """What the decoders of one step did, summed over its requests. Set by the runner's `Meter`."""

    started: int = 0  # ns since the epoch
    ended: int = 0
    requests: int = 0
    batches: int = 0  # forwards of the model, each for all requests
    recomputed_rows: int = 0  # of kept states that preemptions lost; not among the rows of `counts`
    counts: dict[str, int] = field(default_factory=dict)  # by the names of `Report`
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    objectives: tuple[float, ...] = ()  # J of the candidate taken, of each step that compared some
    token_entropies: tuple[float, ...] = ()  # nats per position written, of each request whose canvas got full


@dataclass
class StepResult(ModelRunnerOutput):
    """vLLM's runner output plus what the scheduler needs to plan the next step. Set by the runner."""

    next_forwards: dict[str, NextForward] = field(default_factory=dict)
    # What the front end is told of requests: the report's `figures` and the new `steps`; see progress.py.
    messages: dict[str, dict[str, Any]] = field(default_factory=dict)
    figures: StepFigures = field(default_factory=StepFigures)
