"""What `/metrics` counts is what the requests' own reports add up to; and every step is a span in vLLM's traces."""

import json
import re
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import openai
import promql_parser
import pytest
from collector import collecting
from engines import MASK_ID, Job, running
from prometheus_client import REGISTRY
from scrape import left_midway, scrape, total, wait_for
from server import openai_client, serve_tiny
from vllm.v1.metrics import ray_wrappers
from vllm.v1.metrics.ray_wrappers import RayPrometheusStatLogger
from vllm_infogain.patches import stat_logger
from waiting import wait_until

import vllm_infogain
from vllm_infogain import compat
from vllm_infogain.engine import identity, metrics
from vllm_infogain.engine.records import StepResult, StepStats
from vllm_infogain.engine.stats import COUNTS

DASHBOARD = Path(vllm_infogain.__file__).parent / "engine" / "grafana_dashboard.json"
SERVED = "tiny"
CACHED = {"cache": "dual", "block_length": 8}
STANDING, SUFFIX = [9] * 4, [10] * 5  # text in a canvas and behind it
INFILL = {"diffusion_seed_canvas": [*STANDING, *[MASK_ID] * 8], "suffix_token_ids": SUFFIX}
JOBS = [
    Job("judge 1+2*3=7", {"bypass_threshold": 1.0}, 16),
    Job("multiply 3*4", {"tokens_per_step": 2, "bypass_threshold": 0.3, "block_length": 8, "cost_weight": 0}, 24),
    Job("countdown 3 7 8 = 29", {"prune": True, "bypass_threshold": 1.0, "position_temperature": 1.0}, 16),
    Job("judge 1+1=2", {"sampler": "lookum", **CACHED}, 20),
    Job("sudoku", {"sampler": "beam", "beam_width": 3, "num_candidates": 3, **CACHED}, 12),
    Job("best", {"sampler": "best_of_n", "num_generations": 3, "cache": "prefix", "block_length": 8}, 16),
    Job("entropy", {"sampler": "entropy"}, 10),
    Job("klass", {"sampler": "klass", "cache_refresh": 2, "tokens_per_step": 3, **CACHED}, 30),
    Job("eb", {"sampler": "eb", "entropy_bound": 1.0}, 18),
    Job("infill", {"sampler": "margin", **INFILL}, 12),
]


def length(job: Job) -> int:
    """Positions of one sequence: characters, the two tokens around them, and the canvas."""
    return len(job.prompt) + 2 + job.max_tokens


@pytest.fixture(scope="module")
def collector():
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def url(tmp_path_factory, collector):
    traces = ("--otlp-traces-endpoint", collector.endpoint)
    directory = tmp_path_factory.mktemp("tiny")
    with serve_tiny(directory, *traces, name=SERVED, environment=collector.environment) as address:
        yield address


@pytest.fixture(scope="module")
def client(url):
    with openai_client(url) as client:
        yield client


def send(client: openai.OpenAI, job: Job, stream: bool = False, **fields: Any):
    extra = {"ignore_eos": job.ignore_eos, "vllm_xargs": {**job.knobs, "return_trajectory": True}} | fields
    return client.completions.create(
        model=SERVED, prompt=job.prompt, max_tokens=job.max_tokens, temperature=0, stream=stream, extra_body=extra
    )


def expected_figures(reports: list[dict[str, Any]]) -> dict[str, float]:
    """Counters and observations that requests with these reports make."""
    sums = {name: sum(report[name] for report in reports) for name in COUNTS}
    compared = [step for report in reports for step in report["trajectory"] if step["objective"]]
    return {
        "vllm:diffusion_num_denoising_steps_total": sums["steps"],
        "vllm:diffusion_num_canvas_positions_total": sums["canvas_positions"],
        "vllm:diffusion_num_committed_tokens_total": sums["written"],
        "infogain:steps_total": sums["steps"],
        "infogain:bypassed_steps_total": sums["bypassed_steps"],
        "infogain:forwards_total": sums["forwards"],
        "infogain:cache_refreshes_total": sums["refreshes"],
        "infogain:rows_total": sums["rows"],
        "infogain:candidate_rows_total": sums["candidate_rows"],
        "infogain:candidates_total": sums["candidates"],
        "infogain:recomputed_rows_total": 0,
        "infogain:objective_nats_count": len(compared),
        "infogain:entropy_per_token_nats_count": len(reports),
    }


def objectives(reports: list[dict[str, Any]]) -> list[float]:
    return [
        step["objective"][step["chosen"]] for report in reports for step in report["trajectory"] if step["objective"]
    ]


def metric(sample: str) -> str:
    return re.sub("_(total|bucket|count|sum|created)$", "", sample)


def growth(before, after, names) -> dict[str, float]:
    return {name: total(after, name) - total(before, name) for name in names}


# The server.


@pytest.fixture(scope="module")
def traffic(client, url):
    """Metrics before and after every job was sent twice, once streamed; and the reports of the former."""
    before = scrape(url)
    reports = [send(client, job).choices[0].infogain for job in JOBS]
    for job in JOBS:
        assert sum(len(chunk.choices[0].token_ids) for chunk in send(client, job, True, return_token_ids=True)) > 0
    # A block that ends at a stop token was written whole.
    full = send(client, JOBS[1], return_token_ids=True).choices[0].token_ids
    stopped = send(client, JOBS[1], stop_token_ids=[full[2]])
    assert stopped.usage.completion_tokens <= 3
    reports = [*reports, *reports, send(client, JOBS[1]).choices[0].infogain]
    reports.append(stopped.choices[0].infogain)
    reports.append(reports[1])
    reached = {name: value + total(before, name) for name, value in expected_figures(reports).items()}
    return before, wait_for(url, reached), reports


@pytest.mark.engine
def test_every_counter_is_the_sum_of_the_requests_reports(traffic):
    before, after, reports = traffic
    expected = expected_figures(reports)
    assert growth(before, after, expected) == expected
    assert expected["infogain:bypassed_steps_total"] > 0
    assert expected["infogain:cache_refreshes_total"] > 0
    assert 0 < expected["infogain:candidate_rows_total"] < expected["infogain:rows_total"]


@pytest.mark.engine
def test_a_report_is_what_its_trajectory_says(traffic):
    for report in traffic[2]:
        steps = report["trajectory"]
        assert report["steps"] == len(steps)
        assert report["written"] == sum(len(step["positions"]) for step in steps)
        assert report["bypassed_steps"] == sum(step["bypassed"] for step in steps)
        assert report["cumulative_entropy"] == pytest.approx(sum(sum(step["entropies"]) for step in steps))


@pytest.mark.engine
def test_rows_are_sequences_times_positions_where_nothing_is_cached(traffic):
    look_ahead, _, pruned, *_ = reports = traffic[2]
    for job, report in ((JOBS[0], look_ahead), (JOBS[2], pruned)):
        assert report["candidate_rows"] == report["candidates"] * length(job)
        states = report["rows"] - report["candidate_rows"]
        assert states % length(job) == 0
        assert report["canvas_positions"] * length(job) == report["rows"] * job.max_tokens
    greedy, job = reports[6], JOBS[6]
    assert greedy["rows"] == greedy["forwards"] * length(job)
    assert greedy["candidate_rows"] == greedy["candidates"] == 0


@pytest.mark.engine
def test_text_that_stood_there_is_computed_but_not_written(traffic):
    job, report = JOBS[9], traffic[2][9]
    assert report["written"] == report["steps"] == job.max_tokens - len(STANDING)
    assert report["canvas_positions"] == report["forwards"] * job.max_tokens
    assert report["rows"] == report["forwards"] * (length(job) + len(SUFFIX))


@pytest.mark.engine
def test_a_window_inside_the_canvas_evaluates_canvas_positions_only(traffic):
    job, report = JOBS[3], traffic[2][3]
    blocks = -(-job.max_tokens // 8)
    assert report["refreshes"] == blocks
    assert report["rows"] - report["canvas_positions"] == blocks * (length(job) - job.max_tokens)


@pytest.mark.engine
def test_the_tokens_of_whole_canvases_are_those_that_vllm_counts(traffic):
    before, after, reports = traffic
    (tokens,) = growth(before, after, ["vllm:generation_tokens_total"]).values()
    dropped = sum(report["written"] for report in reports) + 2 * len(STANDING) - tokens
    stopped = reports[-2]
    assert 0 <= dropped < stopped["written"], "only what stood behind the stop token is not sent"


@pytest.mark.engine
def test_the_histograms_hold_every_observation(traffic):
    before, after, reports = traffic
    entropies = [report["cumulative_entropy"] / report["written"] for report in reports]
    gains = objectives(reports)
    sums = growth(before, after, ["infogain:entropy_per_token_nats_sum", "infogain:objective_sum_nats"])
    assert list(sums.values()) == pytest.approx([sum(entropies), sum(gains)])
    for name, values in (("infogain:entropy_per_token_nats", entropies), ("infogain:objective_nats", gains)):
        buckets = f"{name}_bucket"
        for bound in {dict(labels)["le"] for sample, labels in after if sample == buckets}:
            counted = total(after, buckets, le=bound) - total(before, buckets, le=bound)
            assert counted == sum(value <= float(bound) for value in values), (name, bound)
    assert min(gains) < 0 < max(gains), "both sides of 0 are tried"


@pytest.mark.engine
def test_all_samples_bear_the_model_and_the_engine_as_vllms_do(traffic):
    labels = {labels for (name, labels) in traffic[1] if name == "vllm:num_requests_running"}
    for (name, ours), _ in traffic[1].items():
        if name.startswith(("infogain:", "vllm:diffusion")):
            rest = frozenset(pair for pair in ours if pair[0] not in ("le", "phase"))
            assert rest in labels, name
    assert labels == {frozenset({("model_name", SERVED), ("engine", "0")})}


@pytest.mark.engine
def test_scratch_pages_are_taken_and_come_back(traffic, url):
    idle = wait_for(url, {"vllm:num_requests_running": 0, "infogain:scratch_pages": 0})
    most = total(idle, "infogain:most_scratch_pages")
    # A look-ahead group of eight in which all but the first hold two pages, for whose forwards it gets up to so many.
    assert most >= 7 * 2


@pytest.mark.engine
def test_an_aborted_request_counts_until_it_ends_and_leaves_nothing_behind(traffic, client, url):
    def begin():
        stream = send(client, Job("gone", {"sampler": "entropy", "block_length": 1}, 900), stream=True)
        assert len([*zip(range(2), stream, strict=False)]) == 2
        return stream

    before, _ = left_midway(url, begin, whole=900)
    idle = {"vllm:num_requests_running": 0, "infogain:scratch_pages": 0, "vllm:kv_cache_usage_perc": 0}
    after = wait_for(url, idle)
    time.sleep(0.5)
    later = scrape(url)
    grown = growth(before, after, expected_figures(traffic[2]))
    assert growth(before, later, grown) == grown, "nothing runs on"
    steps = grown["infogain:steps_total"]
    assert steps > 0
    assert grown["vllm:diffusion_num_committed_tokens_total"] == grown["infogain:forwards_total"] == steps
    assert grown["infogain:rows_total"] == steps * (len("gone") + 2 + 900)
    assert grown["infogain:entropy_per_token_nats_count"] == 0, "its canvas did not get full"


@pytest.mark.engine
def test_every_step_is_a_span_with_its_timings(traffic, collector, url):
    samples = scrape(url)
    forwards = total(samples, "infogain:model_forwards_total")

    def told() -> float:
        return sum(span.attributes["infogain.forwards"] for span in collector.named("infogain_step"))

    wait_until(lambda: told() >= forwards, lambda: f"spans of {told()} of {forwards} forwards came")
    spans = collector.named("infogain_step")
    sums = {name: sum(span.attributes[name] for span in spans) for name in spans[0].attributes}
    assert sums["infogain.forwards"] == forwards
    assert sums["infogain.rows"] == total(samples, "infogain:rows_total")
    for phase in ("prepare", "forward", "read", "decide"):
        seconds = sums[f"infogain.seconds.{phase}"]
        assert seconds == pytest.approx(total(samples, "infogain:step_seconds_total", phase=phase))
        assert seconds > 0
    for span in spans:
        timed = sum(value for name, value in span.attributes.items() if ".seconds." in name)
        assert 0 < timed <= (span.ended - span.started) / 1e9 + 1e-4, "phases do not overlap"
        assert span.attributes["infogain.requests"] == 1, "one at a time was sent"
    ordered = sorted(spans, key=lambda span: span.started)
    assert all(one.ended <= other.started for one, other in pairwise(ordered))


def dashboard_queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


@pytest.mark.parametrize("query", dashboard_queries())
def test_a_query_of_the_dashboard_is_prometheus(query):
    # Grafana fills in what begins with a dollar sign.
    promql_parser.parse(query.replace("$__rate_interval", "5m"))


@pytest.mark.engine
def test_the_dashboard_shows_every_metric_of_ours_and_none_that_is_not_served(traffic):
    dashboard = json.loads(DASHBOARD.read_text())
    expressions = dashboard_queries() + [variable["query"] for variable in dashboard["templating"]["list"]]
    shown = {name for expression in expressions for name in re.findall(r"(?:vllm|infogain):\w+", expression)}
    served = {name for name, _ in traffic[1]}
    assert shown <= served
    ours = {name for name in served if name.startswith(("infogain:", "vllm:diffusion_"))}
    assert {metric(name) for name in ours} == {metric(name) for name in shown if name in ours}


# An engine inside this process.


@pytest.mark.engine
def test_nothing_is_counted_twice_after_a_preemption(checkpoint):
    jobs = [*JOBS[:2], JOBS[3], JOBS[4], JOBS[7]]
    with running(checkpoint, model=object(), disable_log_stats=False) as engine:
        hit = 0

        def between(step: int) -> None:
            nonlocal hit
            if step in (1, 3, 4):
                hit += engine.preempt()

        reports = [vllm_infogain.report(output) for output in engine.drive(jobs, between)]
        labels = {"model_name": engine.llm.llm_engine.vllm_config.model_config.served_model_name, "engine": "0"}
        expected = expected_figures(reports)
        seen = {name: REGISTRY.get_sample_value(name, labels) for name in expected}
        recomputed = seen.pop("infogain:recomputed_rows_total")
    assert hit > len(jobs)
    assert seen == {name: value for name, value in expected.items() if name in seen}
    assert recomputed > 0


# The seam.


def stub_config(scheduler: str = identity.SCHEDULER, endpoint: str | None = None) -> Any:
    return SimpleNamespace(
        scheduler_config=SimpleNamespace(scheduler_cls=scheduler),
        model_config=SimpleNamespace(served_model_name="stub"),
        observability_config=SimpleNamespace(otlp_traces_endpoint=endpoint),
    )


class VLLMsOwn(compat.PrometheusStatLogger):
    def __init__(self) -> None: ...


class VLLMsOwnByRay(RayPrometheusStatLogger):
    def __init__(self) -> None: ...


def manager(config: Any, theirs: compat.PrometheusStatLogger | None = None) -> Any:
    def init(self, vllm_config, engine_idxs=None):
        self.engine_indexes, self.stat_loggers = engine_idxs, [theirs or VLLMsOwn()]

    with mock.patch.object(compat, "StatLoggerManager", type("Manager", (), {"__init__": init})) as patched:
        stat_logger.apply()
        return patched(vllm_config=config, engine_idxs=[0, 1])


def test_only_an_engine_of_ours_gets_our_logger_and_in_front_of_vllms():
    (alone,) = manager(stub_config("vllm.v1.core.sched.scheduler.Scheduler")).stat_loggers
    assert isinstance(alone, VLLMsOwn)
    ours, theirs = manager(stub_config()).stat_loggers
    assert isinstance(ours, metrics.InfoGainStatLogger)
    assert isinstance(theirs, VLLMsOwn)


def test_where_vllms_metrics_are_rays_ours_are_too(monkeypatch):
    kept: dict[tuple[str, str], list[float]] = {}

    class Metric:
        """As Ray's: bounds are positive, and every tag has a value."""

        def __init__(self, name, description, tag_keys, boundaries=(1,)):
            assert min(boundaries) > 0
            self.name, self._tag_keys = name, tag_keys

        def inc(self, value, tags):
            assert set(tags) == set(self._tag_keys)
            kept.setdefault((self.name, tags["engine"]), []).append(value)

        set = observe = inc

    kinds = SimpleNamespace(Counter=Metric, Gauge=Metric, Histogram=Metric)
    monkeypatch.setattr(ray_wrappers, "ray_metrics", kinds)
    step = stats_of(StepStats(counts={"steps": 3}, objectives=(-0.5, 0.25), token_entropies=(0.5,)))
    manager(stub_config(), VLLMsOwnByRay()).stat_loggers[0].record(step, None, engine_idx=1)
    assert kept["infogain_steps", "1"] == [3]
    assert kept["infogain_scratch_pages", "1"] == [7]
    assert kept["infogain_entropy_per_token_nats", "1"] == [0.5]
    assert "infogain_objective_nats" not in {name for name, _ in kept}, "it takes negative values, which Ray's cannot"
    assert REGISTRY.get_sample_value("infogain:steps_total", {"model_name": "stub", "engine": "1"}) is None


def test_a_second_engine_of_a_process_starts_from_zero():
    step = stats_of(StepStats(counts={"steps": 3}, objectives=(-0.5, 0.25)))
    manager(stub_config()).stat_loggers[0].record(step, None, engine_idx=1)
    labels = {"model_name": "stub", "engine": "1"}
    assert REGISTRY.get_sample_value("infogain:steps_total", labels) == 3
    assert REGISTRY.get_sample_value("infogain:objective_sum_nats", labels) == -0.25
    assert REGISTRY.get_sample_value("infogain:steps_total", labels | {"engine": "0"}) == 0
    manager(stub_config())
    assert REGISTRY.get_sample_value("infogain:steps_total", labels) == 0


def stats_of(stats: StepStats, **fields: Any) -> compat.SchedulerStats:
    """vLLM's statistics of one step with these stats."""
    exporter = metrics.StepStatsExporter(stub_config())
    exporter.record(StepResult([], {}, stats=stats), scratch_pages=7)
    return exporter.attach(compat.SchedulerStats(**fields))


def test_figures_leave_the_statistics_as_they_were():
    for theirs in (None, {"transfers": 3}):
        stats = stats_of(StepStats(), kv_connector_stats=theirs)
        assert metrics.take(stats)["scratch_pages"] == 7
        assert stats.kv_connector_stats == theirs
        assert metrics.take(stats) is None
    assert metrics.take(None) is None


def test_a_step_is_told_of_once_and_not_at_all_without_statistics():
    exporter = metrics.StepStatsExporter(stub_config())
    exporter.record(StepResult([], {}, stats=StepStats(counts={"steps": 3})), scratch_pages=1)
    assert exporter.attach(None) is None
    assert metrics.take(exporter.attach(compat.SchedulerStats()))["counts"] == {}
