"""The frozen records that scheduler and worker hand to each other. They cross process borders: plain data only."""

from dataclasses import dataclass, field
from typing import Any

from vllm_infogain.compat import ModelRunnerOutput, SchedulerOutput
from vllm_infogain.grammar.automaton import TokenAutomaton
from vllm_infogain.request.params import DecodingParams


@dataclass(frozen=True)
class NextForward:
    """What one request wants evaluated next, of which a sequence's guide is a part. Set by the runner, which has the
    logits."""

    sequences: int  # 0: the canvas is full
    rows: int  # of each sequence
    own_pages: int  # KV pages of each sequence but the first; 0: all lie in the cached states' own
    num_cached_states: int = 0  # to be computed again if the request loses its pages
    cached_rows: int = 0  # of each of them
    final: int = 0  # positions, from the prompt's start, whose K/V are final


@dataclass(frozen=True)
class GroupPlan:
    """What one request may evaluate in this step. Set by the scheduler."""

    sequences: int  # the next so many of what it asked for, or of its cached states
    # KV pages of each cached state; without a cache: of the first sequence. Then those of their guides.
    cached_pages: tuple[tuple[int, ...], ...]
    scratch: tuple[int, ...] = ()  # KV pages for its other candidates, then for their guides, for this step only
    recompute_from: int | None = None  # not what it asked for: its cached states, from this one on, computed again


@dataclass
class StepPlan(SchedulerOutput):
    """One engine step: vLLM's scheduler output plus one group plan per scheduled request. Set by the scheduler."""

    groups: dict[str, GroupPlan] = field(default_factory=dict)
    params: dict[str, DecodingParams] = field(default_factory=dict)  # of its new requests, as the scheduler parsed them
    automata: dict[str, TokenAutomaton] = field(default_factory=dict)  # of its new requests that are structured
    forwards: int = 1  # the worker may go on by itself for so many, while the plan's pages and rows suffice
    row_budget: int = 0  # of each of them


@dataclass(frozen=True)
class StepStats:
    """What the decoders did in one engine step, summed over its requests. Set by the runner's `StepStatsRecorder`."""

    started: int = 0  # ns since the epoch
    ended: int = 0
    requests: int = 0
    batches: int = 0  # forwards of the model, each for all requests
    recomputed_rows: int = 0  # of cached states that preemptions took; not among the rows of `counts`
    counts: dict[str, int] = field(default_factory=dict)  # by the names of `Report`
    seconds: dict[str, float] = field(default_factory=dict)  # by phase
    objectives: tuple[float, ...] = ()  # J of the candidate taken, of each step that compared some
    token_entropies: tuple[float, ...] = ()  # nats per position written, of each request whose canvas got full


@dataclass
class StepResult(ModelRunnerOutput):
    """vLLM's runner output plus what the scheduler needs to plan the next step. Set by the runner."""

    next_forwards: dict[str, NextForward] = field(default_factory=dict)
    # What the front end is told of requests: the `report` so far, the new denoising `steps`; see serving/progress.py.
    messages: dict[str, dict[str, Any]] = field(default_factory=dict)
    stats: StepStats = field(default_factory=StepStats)
