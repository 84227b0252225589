"""Ours compared with something else: the oracle's tokens, the authors' loop, the exact mode."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.authors_loop import Loop, Setting
from benchmarks.engines import Result, drive, measure, random_jobs, sudoku_jobs
from benchmarks.front_points import problems_of
from benchmarks.llm import Job
from benchmarks.models import RANDOM_SHAPE, random_checkpoint
from vllm_infogain.embedded.tasks import CANVAS, check
from vllm_infogain.embedded.tokenizer import decode_answer
from vllm_infogain.reference import oracle
from vllm_infogain.reference.llada import LLaDA

PROMPT, LOOP_CANVAS = 64, 64
# CPU seconds of the authors' own scripts, by (sampler, block), as our notes have them; from another day and model file.
PUBLISHED = {("info_gain", 16): 83.9, ("info_gain", 32): 79.0, ("greedy", 16): 20.8, ("greedy", 32): 19.1}
LOOKAHEAD: dict[str, Any] = {"sampler": "info_gain", "num_candidates": 8, "bypass_threshold": 1.0}
CACHES: dict[str, dict[str, Any]] = {
    "none": {"cache": "none"},
    "prefix": {"cache": "prefix"},
    "dual": {"cache": "dual"},
    "dual, refreshed every 4 steps": {"cache": "dual", "cache_refresh": 4},
}


def verify(llm: Any, model: LLaDA, mask_id: int, jobs: Sequence[Job]) -> None:
    """Exact mode gives the oracle's tokens, and the greedy loop's."""
    from vllm_infogain.request.from_vllm import decoding_params

    for job, result in zip(jobs, drive(llm, jobs), strict=True):
        params = decoding_params("", job.sampling_params(), llm.llm_engine.vllm_config)
        expected = [oracle.decode(model, job.prompt, params, mask_id).tokens]
        if job.knobs["sampler"] == "entropy" and job.temperature == 0:
            setting = Setting(job.max_tokens, job.knobs["block_length"] or job.max_tokens)
            expected.append(Loop(model, mask_id, setting).run(job.prompt).tokens)
        if any(result.tokens != tokens for tokens in expected):
            raise SystemExit(f"wrong output for {job.knobs}: {result.tokens}, expected {expected}")


def verify_random(llm: Any, model: LLaDA) -> None:
    exact = {"cache": "none", "block_length": 4}
    greedy = random_jobs(2, 8, {"sampler": "entropy", **exact}, prompt=16)
    lookahead = random_jobs(1, 8, {**LOOKAHEAD, "num_candidates": 4, **exact}, prompt=16, temperature=0.7)
    verify(llm, model, RANDOM_SHAPE.mask_token_id, greedy + lookahead)


def verify_embedded(llm: Any) -> None:
    from vllm_infogain.embedded import model_path

    model = LLaDA.from_checkpoint(model_path())
    settings = [{"sampler": "entropy"}, {"sampler": "info_gain", "tokens_per_step": 2}]
    jobs = [job for knobs in settings for job in sudoku_jobs(llm, 2, {**knobs, "cache": "none"})]
    verify(llm, model, model.shape.mask_token_id, jobs)


@dataclass(frozen=True)
class LoopRow:
    """CPU seconds for one canvas, the loop's and ours."""

    sampler: str
    block: int
    settings: str
    loop_seconds: float
    loop_sampler_share: float
    loop_candidates: float  # distinct ones per step
    seconds: float
    candidates: float
    ratio: float  # of the seconds
    rows_ratio: float  # of the positions computed, the loop's over ours
    published_seconds: float | None


def random_model() -> LLaDA:
    return LLaDA.from_checkpoint(random_checkpoint())


def against_loop(llm: Any, model: LLaDA, blocks: Sequence[int], steps_sampled: int | None) -> list[LoopRow]:
    """One request on an idle engine with cache `dual`, against the loop. Tokens drawn at 0.7 where look-ahead is."""
    rows = []
    cases = [("info_gain", "the paper's", 0.1), ("info_gain", "position_temperature 1", 1.0), ("greedy", "", 0.0)]
    for sampler, settings, spread in cases:
        for block in blocks:
            setting = Setting(LOOP_CANVAS, block)
            knobs: dict[str, Any] = {"sampler": "entropy"}
            temperature = 0.0
            if sampler == "info_gain":
                temperature = 0.7
                setting = Setting(LOOP_CANVAS, block, LOOKAHEAD["num_candidates"], temperature, spread)
                knobs = {**LOOKAHEAD, "position_temperature": spread}
            knobs |= {"cache": "dual", "block_length": block, "return_trajectory": True}
            jobs = random_jobs(1, LOOP_CANVAS, knobs, prompt=PROMPT, temperature=temperature)
            run = measure(llm, jobs)
            report = run.results[0].report
            assert report is not None, "nothing was cut short"
            loop = Loop(model, RANDOM_SHAPE.mask_token_id, setting)
            theirs = loop.run(jobs[0].prompt, steps_sampled, decode_order(report))
            rows.append(
                LoopRow(
                    sampler,
                    block,
                    settings,
                    theirs.canvas_seconds,
                    theirs.sampler_share,
                    theirs.candidates / theirs.steps,
                    run.cpu_seconds,
                    (report["candidates"] or report["steps"]) / report["steps"],
                    theirs.canvas_seconds / run.cpu_seconds,
                    theirs.candidates / theirs.steps * (PROMPT + LOOP_CANVAS) / (report["rows"] / LOOP_CANVAS),
                    PUBLISHED.get((sampler, block)) if spread <= 0.1 else None,
                )
            )
    return rows


def decode_order(report: dict[str, Any]) -> list[tuple[int, int]]:
    """(canvas offset, token) in the order written."""
    steps = report["trajectory"]
    return [pair for step in steps for pair in zip(step["positions"], step["tokens"], strict=True)]


@dataclass(frozen=True)
class Disagreement:
    """A cached mode against exact mode: same requests, same seeds."""

    task: str
    sampler: str
    block: int
    cache: str
    differing: float  # share of canvas positions
    agreeing_steps: float  # before the first step that writes something else
    accuracy: float | None
    rows_per_token: float


def disagreement(llm: Any, task: str, jobs: Sequence[Job], problems: Sequence[Any] = ()) -> list[Disagreement]:
    """Every cached mode on these jobs; `problems` are what the jobs' answers are checked against, if any."""
    rows: list[Disagreement] = []
    exact: list[Result] = []
    for name, knobs in CACHES.items():
        knobs = {**knobs, "return_trajectory": True}
        results = drive(llm, [replace(job, knobs={**job.knobs, **knobs}) for job in jobs])
        exact = exact or results
        both = list(zip(results, exact, strict=True))
        pairs = [pair for ours, theirs in both for pair in zip(ours.tokens, theirs.tokens, strict=True)]
        solved = [check(p, decode_answer(r.tokens)) for p, r in zip(problems, results, strict=False)]
        rows.append(
            Disagreement(
                task,
                jobs[0].knobs["sampler"],
                jobs[0].knobs["block_length"],
                name,
                sum(a != b for a, b in pairs) / len(pairs),
                sum(agreeing_steps(ours.report, theirs.report) for ours, theirs in both) / len(both),
                sum(solved) / len(solved) if solved else None,
                sum(r.report["rows"] for r in results if r.report) / len(pairs),
            )
        )
    return rows


def agreeing_steps(ours: dict[str, Any] | None, theirs: dict[str, Any] | None) -> int:
    """The steps before the first that writes something else: what comes after it starts from another state."""
    writes = []
    for report in (ours, theirs):
        assert report is not None, "nothing was cut short"
        writes.append([(step["positions"], step["tokens"]) for step in report["trajectory"]])
    return next((i for i, (a, b) in enumerate(zip(*writes, strict=False)) if a != b), len(writes[0]))


def embedded_disagreement(llm: Any, task: str, number: int, knobs: dict[str, Any]) -> list[Disagreement]:
    problems = problems_of(task, number)
    encode = llm.get_tokenizer().encode
    jobs = [Job(encode(p.prompt), knobs, CANVAS[task], seed=seed) for seed, p in enumerate(problems)]
    return disagreement(llm, task, jobs, problems)
