"""Counts on the worker what each step's decoders did, and times its phases."""

import time
from collections.abc import Callable, Mapping
from functools import wraps
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar, cast

from vllm_infogain.engine.records import StepFigures, StepPlan

COUNTED = (  # figures of `Report` that only grow
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
figures_of = attrgetter(*COUNTED)
PHASES = ("prepare", "forward", "read", "decide")
Method = TypeVar("Method", bound=Callable[..., Any])


class Counted(NamedTuple):
    """What of a request's report the meter has counted already."""

    figures: tuple[int, ...] = (0,) * len(COUNTED)
    objectives: int = 0  # so many of them


NOTHING_COUNTED = Counted()


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
                self.meter.seconds[phase] += time.perf_counter() - started

        return cast(Method, timed_method)

    return decorate


class Meter:
    """The figures of the step under way. Owner: the runner."""

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """A step begins."""
        self._started = time.time_ns()
        self.batches = 0  # forwards of the model
        self.seconds = dict.fromkeys(PHASES, 0.0)

    def take(self, plan: StepPlan, requests: Mapping[str, Any]) -> StepFigures:
        """What the planned requests did since they were last counted. Their decoders outlive preemptions, and so does
        what was counted.

        Args:
            plan: the step's.
            requests: the runner's `Running` by request id.
        """
        if not plan.groups:
            return StepFigures()
        counted, uncounted, recomputed = [], [], 0
        objectives: list[float] = []
        token_entropies = []
        for request_id, group in plan.groups.items():
            running = requests[request_id]
            report, before = running.decoder.report, running.counted
            now = Counted(figures_of(report), len(report.objectives))
            counted.append(before.figures)
            uncounted.append(now.figures)
            objectives += report.objectives[before.objectives : now.objectives]
            running.counted = now
            if running.decoder.pending is None and report.written:
                token_entropies.append(report.cumulative_entropy / report.written)
            if group.restored is not None:
                recomputed += group.sequences * running.kept.extent.rows.stop
        pairs = zip(zip(*counted, strict=True), zip(*uncounted, strict=True), strict=True)
        counts = [sum(new) - sum(old) for old, new in pairs]
        return StepFigures(
            started=self._started,
            ended=time.time_ns(),
            requests=len(plan.groups),
            batches=self.batches,
            recomputed_rows=recomputed,
            counts=dict(zip(COUNTED, counts, strict=True)),
            seconds=self.seconds,
            objectives=tuple(objectives),
            token_entropies=tuple(token_entropies),
        )
