"""The stats of every engine step on their way from the scheduler to `/metrics`, and into vLLM's traces.

They travel in `SchedulerStats.kv_connector_stats`, a field of vLLM's statistics that takes a free form. vLLM's own
loggers hand it to a KV connector and fail where there is none, so ours comes before them and takes its part out.
"""

from contextlib import suppress
from typing import Any

import prometheus_client

from vllm_infogain.compat import (
    AggregateStatLoggerBase,
    ModelRunnerOutput,
    PrometheusStatLogger,
    SchedulerStats,
    VllmConfig,
    instrument_manual,
)
from vllm_infogain.engine.records import StepResult, StepStats
from vllm_infogain.engine.stats import PHASES

KEY = "infogain"  # of our stats in `kv_connector_stats`

COUNTERS = {  # what is counted, by `Report` where it has that name: metric and its help text
    "steps": [
        ("vllm:diffusion_num_denoising_steps", "Number of denoising steps."),
        ("infogain:steps", "Actions taken; of beam and best_of_n those of the winner, once it is known."),
    ],
    "canvas_positions": [("vllm:diffusion_num_canvas_positions", "Number of canvas positions evaluated.")],
    "written": [("vllm:diffusion_num_committed_tokens", "Number of committed (finalized) tokens.")],
    "bypassed_steps": [("infogain:bypassed_steps", "Steps of look-ahead whose positions were all sure.")],
    "candidates": [("infogain:candidates", "Distinct candidate actions evaluated by look-ahead.")],
    "rows": [("infogain:rows", "Model rows computed for states and candidates: sequences times positions.")],
    "candidate_rows": [("infogain:candidate_rows", "Model rows computed for candidates.")],
    "recomputed_rows": [("infogain:recomputed_rows", "Model rows computed again because of preemptions.")],
    "forwards": [("infogain:forwards", "Forwards of requests; one that serves several counts for each.")],
    "batches": [("infogain:model_forwards", "Forwards of the model, each for all requests of a step.")],
    "refreshes": [("infogain:cache_refreshes", "Forwards of requests that computed the cached keys and values anew.")],
}
GAUGES = {
    "scratch_pages": ("infogain:scratch_pages", "Scratch KV pages of candidates in the last step."),
    "most_scratch_pages": ("infogain:most_scratch_pages", "Most scratch KV pages of candidates in one step."),
}
ENTROPY_BUCKETS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 8)
OBJECTIVE_BUCKETS = (-10, -5, -3, -2, -1, -0.5, -0.3, -0.1, -0.03, -0.01, 0, 0.01, 0.03, 0.1, 0.3, 0.5, 1, 2, 3, 5)
HISTOGRAMS = {  # each is a sequence of observations
    "token_entropies": (
        "infogain:entropy_per_token_nats",
        "Cumulative entropy per position written, of each request whose canvas got full.",
        ENTROPY_BUCKETS,
    ),
    "objectives": (
        "infogain:objective_nats",
        "J of the candidate taken, of each step that compared some.",
        OBJECTIVE_BUCKETS,
    ),
}
# prometheus_client gives no sum of a histogram that takes negative values.
OBJECTIVE_SUM = ("infogain:objective_sum_nats", "The sum of all observations in infogain:objective_nats.")
SECONDS = ("infogain:step_seconds", "Seconds of the worker's steps by phase: prepare, forward, read, decide.")


class StepStatsExporter:
    """Joins a step's stats with what the scheduler knows, and hands them on. Owner: the scheduler."""

    def __init__(self, vllm_config: VllmConfig) -> None:
        self._traces = vllm_config.observability_config.otlp_traces_endpoint is not None
        self._stats = StepStats()
        self._scratch_pages = 0
        self._most_scratch_pages = 0

    def record(self, output: ModelRunnerOutput, scratch_pages: int) -> None:
        """A step has run, with so many scratch pages."""
        self._stats = output.stats if isinstance(output, StepResult) else StepStats()
        self._scratch_pages = scratch_pages
        self._most_scratch_pages = max(self._most_scratch_pages, scratch_pages)
        if self._traces and self._stats.batches:
            trace(self._stats)

    def attach(self, scheduler_stats: SchedulerStats | None) -> SchedulerStats | None:
        """vLLM's statistics of the step, if it keeps any, with ours in them; counted once."""
        if scheduler_stats is not None:
            pages = {"scratch_pages": self._scratch_pages, "most_scratch_pages": self._most_scratch_pages}
            ours = {KEY: vars(self._stats) | pages}
            scheduler_stats.kv_connector_stats = {**(scheduler_stats.kv_connector_stats or {}), **ours}
        self._stats = StepStats()
        return scheduler_stats


def trace(stats: StepStats) -> None:
    """One span per step, of the engine core's process."""
    rows = stats.counts["rows"] + stats.recomputed_rows
    attributes: dict[str, float] = {"requests": stats.requests, "rows": rows, "forwards": stats.batches}
    attributes |= {f"seconds.{phase}": seconds for phase, seconds in stats.seconds.items()}
    named = {f"infogain.{name}": value for name, value in attributes.items()}
    instrument_manual("infogain_step", stats.started, stats.ended, named)


def take(scheduler_stats: SchedulerStats | None) -> dict[str, Any] | None:
    """The step's stats, which it takes out of vLLM's."""
    if scheduler_stats is None or KEY not in (scheduler_stats.kv_connector_stats or {}):
        return None
    assert scheduler_stats.kv_connector_stats is not None
    stats = scheduler_stats.kv_connector_stats.pop(KEY)
    scheduler_stats.kv_connector_stats = scheduler_stats.kv_connector_stats or None
    return stats


class InfoGainStatLogger(AggregateStatLoggerBase):
    """Our metrics of all engines behind one front end.

    They are kept as those of vLLM's logger are: in prometheus_client's registry, which vLLM serves, or by Ray.
    """

    _registered: list[Any] = []  # metrics of this process, whose registry takes a name once

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int], theirs: PrometheusStatLogger) -> None:
        while self._registered:
            with suppress(KeyError):  # vLLM's logger took those out that bear its prefix
                prometheus_client.REGISTRY.unregister(self._registered.pop())
        Counter, Gauge, Histogram = theirs._counter_cls, theirs._gauge_cls, theirs._histogram_cls  # noqa: N806
        takes_negative = issubclass(Histogram, prometheus_client.Histogram)  # Ray's has positive bounds only
        # Labels as on vLLM's own metrics.
        self._model = vllm_config.model_config.served_model_name
        self._engines = engine_indexes
        self._counters = {
            key: [self._new(Counter, name, text) for name, text in metrics] for key, metrics in COUNTERS.items()
        }
        self._gauges = {
            key: self._new(Gauge, name, text, multiprocess_mode="mostrecent") for key, (name, text) in GAUGES.items()
        }
        self._histograms = {
            key: self._new(Histogram, name, text, buckets=buckets)
            for key, (name, text, buckets) in HISTOGRAMS.items()
            if takes_negative or min(buckets) > 0
        }
        self._objective_sum = self._new(Gauge, *OBJECTIVE_SUM, multiprocess_mode="sum") if takes_negative else {}
        self._seconds = {
            phase: {engine: counter.labels(self._model, str(engine), phase) for engine in engine_indexes}
            for counter in [self._register(Counter(*SECONDS, labelnames=["model_name", "engine", "phase"]))]
            for phase in PHASES
        }

    def _register(self, metric: Any) -> Any:
        self._registered.append(metric)
        return metric

    def _new(self, kind: Any, name: str, text: str, **settings: Any) -> dict[int, Any]:
        """A metric's child for each engine."""
        metric = self._register(kind(name, text, labelnames=["model_name", "engine"], **settings))
        return {engine: metric.labels(self._model, str(engine)) for engine in self._engines}

    def record(self, scheduler_stats, iteration_stats, mm_cache_stats=None, engine_idx: int = 0) -> None:
        stats = take(scheduler_stats)
        if stats is None:
            return
        amounts = stats | stats["counts"]
        for name, counters in self._counters.items():
            for counter in counters:
                counter[engine_idx].inc(amounts.get(name, 0))
        for name, gauge in self._gauges.items():
            gauge[engine_idx].set(stats[name])
        for name, histogram in self._histograms.items():
            for value in stats[name]:
                histogram[engine_idx].observe(value)
        if self._objective_sum:
            self._objective_sum[engine_idx].inc(sum(stats["objectives"]))
        for phase, seconds in stats["seconds"].items():
            self._seconds[phase][engine_idx].inc(seconds)

    def log_engine_initialized(self) -> None: ...
