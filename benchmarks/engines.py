"""Engines in this process, and requests fed to them at a steady concurrency."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from random import Random
from typing import Any

import vllm_infogain
from benchmarks.llm import Job
from benchmarks.models import RANDOM_SHAPE, SPECIALS, random_checkpoint
from benchmarks.stopwatch import Forward, Stopwatch
from vllm_infogain.embedded.evaluation import held_out
from vllm_infogain.reference.llada import LLaDAShape

SHORT = 2.0  # seconds; a shorter measurement is repeated
_request_numbers = count()


@dataclass(frozen=True)
class Result:
    tokens: list[int]
    report: dict[str, Any] | None  # None: cut short


@dataclass(frozen=True)
class Measurement:
    """What a batch of jobs cost. Seconds are wall-clock but for `cpu_seconds`."""

    tokens: int
    seconds: float
    cpu_seconds: float
    parts: dict[str, float]  # seconds of the engine's steps by part, see stopwatch.SHARES
    forwards: list[Forward] = field(repr=False)
    results: list[Result] = field(repr=False)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def rows_per_token(self) -> float:
        return sum(forward.rows for forward in self.forwards) / self.tokens

    @property
    def overhead(self) -> float:
        """Seconds per forward outside of forward and sampler."""
        return sum(self.parts[name] for name in ("scheduler", "inputs", "rest")) / len(self.forwards)

    def share(self, part: str) -> float:
        return self.parts[part] / sum(self.parts.values())

    def figures(self) -> dict[str, Any]:
        """For the line of JSON."""
        return {
            "tokens_per_second": self.tokens_per_second,
            "steps": len(self.forwards),
            "refreshes": sum(forward.refresh for forward in self.forwards),
            "rows_per_token": self.rows_per_token,
            "shares": {part: self.share(part) for part in self.parts},
            "overhead_ms": 1e3 * self.overhead,
        }


def random_model(**engine_args: Any) -> dict[str, Any]:
    """Arguments of `started` for the random model."""
    return {
        "model": str(random_checkpoint()),
        "dtype": "float32",
        "block_size": 32,
        "kv_cache_memory_bytes": 2 << 30,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 4096,
        "max_model_len": RANDOM_SHAPE.max_sequence_length,
    } | engine_args


def shape_of(llm: Any) -> LLaDAShape:
    return LLaDAShape.from_config(llm.llm_engine.vllm_config.model_config.hf_config.to_dict())


def random_jobs(number: int, canvas: int, knobs: dict[str, Any], *, prompt: int = 64, **options: Any) -> list[Job]:
    """Prompts of random tokens, the same at every call."""
    rng = Random(0)
    prompts = [[rng.randrange(len(SPECIALS), RANDOM_SHAPE.vocab_size) for _ in range(prompt)] for _ in range(number)]
    return [Job(prompt, knobs, canvas, seed=seed, **options) for seed, prompt in enumerate(prompts)]


def sudoku_jobs(llm: Any, number: int, knobs: dict[str, Any], **options: Any) -> list[Job]:
    """Held-out puzzles with four givens, the whole canvas as one block unless `knobs` say otherwise."""
    from vllm_infogain.embedded.tasks import CANVAS

    encode = llm.get_tokenizer().encode
    puzzles = held_out("sudoku", number, givens=4)
    knobs = {"block_length": 0, **knobs}
    return [
        Job(encode(puzzle.prompt), knobs, CANVAS["sudoku"], seed=seed, **options) for seed, puzzle in enumerate(puzzles)
    ]


def drive(llm: Any, jobs: Sequence[Job], concurrency: int | None = None, cut_at: int | None = None) -> list[Result]:
    """Decode the jobs with `concurrency` of them under way at any time (None: all), a new one as soon as one ends.

    With `cut_at` a request is aborted once it has handed out that many tokens: blocks cost alike, so that one or two
    tell the price of a long canvas. (A multiple of the server's `steps_per_schedule`: the abort comes no sooner.)
    """
    engine = llm.llm_engine
    waiting = list(enumerate(jobs))[::-1]
    index_of: dict[str, int] = {}
    results: dict[int, Result] = {}
    while waiting or index_of:
        while waiting and len(index_of) < (concurrency or len(jobs)):
            index, job = waiting.pop()
            name = f"benchmark-{next(_request_numbers)}"
            engine.add_request(name, {"prompt_token_ids": job.prompt}, job.sampling_params())
            index_of[name] = index
        for output in engine.step():
            tokens = list(output.outputs[0].token_ids)
            if output.finished:
                results[index_of.pop(output.request_id)] = Result(tokens, vllm_infogain.report(output))
            elif cut_at and len(tokens) >= cut_at:
                engine.abort_request([output.request_id])
                results[index_of.pop(output.request_id)] = Result(tokens, None)
    return [results[index] for index in range(len(jobs))]


def measure(llm: Any, jobs: Sequence[Job], concurrency: int | None = None, cut_at: int | None = None) -> Measurement:
    """The fastest of three runs if they are short, else of one; after a few tokens to warm up."""
    with Stopwatch(llm) as watch:
        drive(llm, jobs[:2], concurrency, cut_at=1)
        runs: list[Measurement] = []
        while not runs or (len(runs) < 3 and runs[0].seconds < SHORT):
            watch.reset()
            started, cpu_started = time.perf_counter(), time.process_time()
            results = drive(llm, jobs, concurrency, cut_at)
            seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
            tokens = sum(len(result.tokens) for result in results)
            runs.append(Measurement(tokens, seconds, cpu_seconds, watch.parts(), watch.forwards, results))
    return min(runs, key=lambda run: run.seconds)
