"""Gathers on the worker what the decoders did in each engine step, and times its phases."""

import time
from collections.abc import Callable, Mapping
from functools import wraps
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, cast

from vllm_infogain.engine.records import StepPlan, StepStats

COUNTS = (  # numbers of `Report` that only grow
    "steps",
    "bypassed_steps",
    "written",
    "forwards",
    "refreshes",
    "rows",
    "canvas_positions",
    "candidate_rows",
    "candidates",
)
counts_of = attrgetter(*COUNTS)
PHASES = ("prepare", "forward", "read", "decide")
Method = TypeVar("Method", bound=Callable[..., Any])


class Recorded(NamedTuple):
    """What of a request's report is in the stats of earlier steps."""

    counts: tuple[int, ...] = (0,) * len(COUNTS)
    objectives: int = 0  # so many of them


NOTHING_RECORDED = Recorded()


def timed(phase: str) -> Callable[[Method], Method]:
    """Counts a runner's method as part of a phase. Host time: on CUDA what a forward takes shows where its result is
    first waited for, in `read`."""

    def decorate(method: Method) -> Method:
        @wraps(method)
        def timed_method(self, *args, **kwargs):
            started = time.perf_counter()
            try:
                return method(self, *args, **kwargs)
            finally:
                self.stats_recorder.seconds[phase] += time.perf_counter() - started

        return cast(Method, timed_method)

    return decorate


class StepStatsRecorder:
    """Gathers the `StepStats` of the step under way. Owner: the runner."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A step begins."""
        self._started = time.time_ns()
        self.batches = 0  # forwards of the model
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def take(self, plan: StepPlan, requests: Mapping[str, Any]) -> StepStats:
        """What the planned requests did since this was last asked. Their decoders outlive preemptions, and so does
        what was recorded of them.

        Args:
            plan: the step's.
            requests: the runner's `Running` by request id.
        """
        if not plan.groups:
            return StepStats()
        earlier, later, recomputed = [], [], 0
        objectives: list[float] = []
        token_entropies = []
        for request_id, group in plan.groups.items():
            running = requests[request_id]
            report, before = running.decoder.report, running.recorded
            now = Recorded(counts_of(report), len(report.objectives))
            earlier.append(before.counts)
            later.append(now.counts)
            objectives += report.objectives[before.objectives : now.objectives]
            running.recorded = now
            if running.decoder.pending is None and report.written:
                token_entropies.append(report.cumulative_entropy / report.written)
            if group.recompute_from is not None:
                windows = running.decoder.windows(running.cached.window)
                recomputed += group.sequences * sum(window.rows.stop for window in windows)
        pairs = zip(zip(*earlier, strict=True), zip(*later, strict=True), strict=True)
        counts = [sum(new) - sum(old) for old, new in pairs]
        return StepStats(
            started=self._started,
            ended=time.time_ns(),
            requests=len(plan.groups),
            batches=self.batches,
            recomputed_rows=recomputed,
            counts=dict(zip(COUNTS, counts, strict=True)),
            seconds=self.seconds,
            objectives=tuple(objectives),
            token_entropies=tuple(token_entropies),
        )
