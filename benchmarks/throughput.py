"""Info-Gain and greedy decoding through the engine: speed, where the time goes, and what the caches cost and change.

    python -m benchmarks.throughput [--model embedded random] [--quick | --full] [--concurrency 1 4 8 16] ...

Two models: the embedded one on held-out Sudokus, and a random-weight LLaDA of 12 layers, d 768, vocabulary 32k. Output
is verified first. Prints tables, targets beside what was measured, and one line of JSON.

vLLM's own benchmarks (`vllm bench throughput`, `vllm bench serve`) run against the plugin too; the commands are printed
at the end, see `benchmarks.models.VLLM_COMMANDS`.
"""

import argparse
import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from benchmarks import comparisons
from benchmarks.child import measure_apart
from benchmarks.engines import Measurement, measure, random_jobs, random_model, shape_of, sudoku_jobs
from benchmarks.environment import environment
from benchmarks.llm import started
from benchmarks.models import VLLM_COMMANDS
from benchmarks.roofline import Machine, Work, measure_machine, phase
from benchmarks.tables import RUN_COLUMNS, Tables, Target

GREEDY: dict[str, Any] = {"sampler": "entropy"}
LOOKAHEAD: dict[str, Any] = {"sampler": "info_gain", "bypass_threshold": 1.0}
DISTINCT = {**LOOKAHEAD, "position_temperature": 1.0}  # nearly all of the N candidates differ
PAPER: dict[str, Any] = {"sampler": "info_gain"}  # N=8, gamma 0.8
PROMPT, BLOCK = 64, 16


def embedded(arguments: argparse.Namespace, tables: Tables, machine: Machine) -> list[Target]:
    """Held-out Sudokus on the embedded model."""
    targets = []
    with started() as llm:
        comparisons.verify_embedded(llm)
        jobs = sudoku_jobs(llm, 1, GREEDY)
        work = Work(shape_of(llm), keys=len(jobs[0].prompt) + jobs[0].max_tokens)
        tables.head("embedded", "Embedded model, Sudoku, canvas 20 as one block, temperature 0", RUN_COLUMNS)
        runs: dict[tuple[str, str, int], Measurement] = {}
        for name, knobs in (("entropy", GREEDY), ("info_gain", PAPER)):
            for cache in ("none", "dual"):
                for requests in arguments.concurrency:
                    jobs = sudoku_jobs(llm, max(8, 3 * requests), {**knobs, "cache": cache})
                    run = runs[name, cache, requests] = measure(llm, jobs, requests)
                    tables.run(f"{name}, {cache}", requests, jobs[0], run, work, machine)
        for number in arguments.candidates:
            jobs = sudoku_jobs(llm, 8, {**DISTINCT, "num_candidates": number})
            run = measure(llm, jobs, 1)
            tables.run("info_gain, gamma 1, position temperature 1", 1, jobs[0], run, work, machine)
        if {1, 8} <= set(arguments.concurrency):
            for name, cache in product(("entropy", "info_gain"), ("none", "dual")):
                alone, full = runs[name, cache, 1], runs[name, cache, 8]
                where = f"embedded, {name}, {cache}"
                gain = full.tokens_per_second / alone.tokens_per_second
                targets.append(Target(f"tokens/s at 8 requests over 1, {where}", ">=", 4, gain))
                targets.append(Target(f"overhead per step (ms), 8 requests, {where}", "<=", 1, 1e3 * full.overhead))
        targets += time_over_greedy(llm, tables, arguments.problems)
        tables.head("embedded_disagreement", f"{DISAGREEMENT}, embedded model", DISAGREEMENT_COLUMNS)
        for task, half in (("sudoku", 10), ("countdown", 12)):
            for knobs in (GREEDY, PAPER):
                for block in (0, half):
                    found = comparisons.embedded_disagreement(
                        llm, task, arguments.problems, {**knobs, "block_length": block}
                    )
                    disagreement_rows(tables, found)
    return targets


def time_over_greedy(llm: Any, tables: Tables, problems: int) -> list[Target]:
    title = "Time per token at batch 1, embedded model on Sudoku: Info-Gain (N=8, gamma 0.8) over greedy (entropy)"
    tables.head("time_per_token", title, ("cache", "K", "greedy ms", "Info-Gain ms", "ratio", "rows per token"))
    targets = []
    for cache in ("none", "dual"):
        for written in (1, 2):
            settings = ({**knobs, "cache": cache, "tokens_per_step": written} for knobs in (GREEDY, PAPER))
            greedy, ours = (measure(llm, sudoku_jobs(llm, problems, knobs), 1) for knobs in settings)
            milliseconds = [1e3 * run.seconds / run.tokens for run in (greedy, ours)]
            rows = [run.rows_per_token for run in (greedy, ours)]
            ratio = milliseconds[1] / milliseconds[0]
            tables.row(
                (cache, written, *milliseconds, ratio, f"{rows[1]:.0f} over {rows[0]:.0f}"),
                cache=cache, tokens_per_step=written, milliseconds=milliseconds, ratio=ratio, rows_per_token=rows,
            )  # fmt: skip
            targets.append(Target(f"time per token over greedy, Sudoku, batch 1, K={written}, {cache}", "<=", 2, ratio))
    return targets


DISAGREEMENT = "Cached modes against exact mode (same steps: those before the first that writes something else)"
DISAGREEMENT_COLUMNS = ("task", "sampler", "block", "cache", "tokens that differ", "same steps",
                        "accuracy", "rows per token")  # fmt: skip


def disagreement_rows(tables: Tables, found: Sequence[comparisons.Disagreement]) -> None:
    for row in found:
        accuracy = "" if row.accuracy is None else f"{100 * row.accuracy:.0f} %"
        cells = (row.task, row.sampler, row.block or "whole canvas", row.cache, f"{100 * row.differing:.1f} %")
        tables.row((*cells, row.agreeing_steps, accuracy, row.rows_per_token), **asdict(row))


def random(arguments: argparse.Namespace, tables: Tables, machine: Machine) -> list[Target]:
    """The 12-layer model; one or two blocks of each canvas are decoded, the rest would cost the same."""
    targets = []
    blocks = (16,) if arguments.quick else (16, 32)
    with started(**random_model()) as llm:
        plain = comparisons.random_model()
        comparisons.verify_random(llm, plain)
        targets += against_loop(llm, plain, tables, blocks, arguments.steps_sampled)
        del plain
        tables.head("random", "12-layer model, prompt 64, cache dual, token temperature 0.7", RUN_COLUMNS)
        runs: dict[tuple[str, int, int], Measurement] = {}

        def run(settings: str, requests: int, canvas: int, knobs: dict[str, Any], block: int = BLOCK) -> Measurement:
            knobs = {"cache": "dual", **knobs, "block_length": block}
            jobs = random_jobs(requests, canvas, knobs, prompt=PROMPT, temperature=0.7)
            measured = measure(llm, jobs, cut_at=block * arguments.blocks)
            work = Work(shape_of(llm), keys=PROMPT + canvas)
            tables.run(f"{settings}, block {block}", requests, jobs[0], measured, work, machine)
            return measured

        for block in blocks if arguments.full else blocks[:1]:
            for name, knobs in (("entropy", GREEDY), ("info_gain", LOOKAHEAD)):
                for requests in arguments.concurrency:
                    runs[name, block, requests] = run(name, requests, 64, knobs, block)
        for number in arguments.candidates:
            run("info_gain, position temperature 1", 1, 64, {**DISTINCT, "num_candidates": number})
        for canvas in arguments.canvas:
            run("entropy", 1, canvas, GREEDY)
            run("info_gain", 1, canvas, LOOKAHEAD)
            for cache in ("none", "prefix") if arguments.full else ():
                run(f"info_gain, {cache}", 1, canvas, {**LOOKAHEAD, "cache": cache})
        targets += random_targets(runs, Work(shape_of(llm), keys=PROMPT + 64), machine)
        if not arguments.quick:
            tables.head("random_disagreement", f"{DISAGREEMENT}, 12-layer model", DISAGREEMENT_COLUMNS)
            cases = ((GREEDY, 0.0, 64), (LOOKAHEAD, 0.7, 32))
            for knobs, temperature, canvas in cases:
                jobs = random_jobs(2, canvas, {**knobs, "block_length": BLOCK}, temperature=temperature)
                disagreement_rows(tables, comparisons.disagreement(llm, "random tokens", jobs))
    return targets + apart(arguments, tables, runs)


def against_loop(
    llm: Any, plain: Any, tables: Tables, blocks: Sequence[int], steps_sampled: int | None
) -> list[Target]:
    share = f"{steps_sampled} of {comparisons.LOOP_CANVAS} steps, scaled" if steps_sampled else "all steps"
    title = (
        f"CPU seconds of one canvas of 64 after a prompt of 64, K=1, no bypass: the loop ({share}) over ours (dual).\n"
        "Published in our notes: the authors' own scripts, measured on another day."
    )
    tables.head("loop", title, ("sampler", "settings", "block", "loop s", "its sampler", "its candidates per step",
                                "ours s", "our candidates per step", "ratio of seconds", "ratio of rows",
                                "published in our notes"))  # fmt: skip
    targets = []
    for row in comparisons.against_loop(llm, plain, blocks, steps_sampled):
        cells = (row.sampler, row.settings, row.block, row.loop_seconds, f"{100 * row.loop_sampler_share:.0f} %")
        ratios = (row.ratio, row.rows_ratio, row.published_seconds or "")
        tables.row((*cells, row.loop_candidates, row.seconds, row.candidates, *ratios), **asdict(row))
        least = 5 if row.sampler == "greedy" or row.block == 32 else 8
        name = f"loop over ours, {row.sampler}, block {row.block}" + (f", {row.settings}" if row.settings else "")
        targets.append(Target(name, ">=", least, row.ratio))
    return targets


def random_targets(runs: dict[tuple[str, int, int], Measurement], work: Work, machine: Machine) -> list[Target]:
    targets = []
    for (name, block, requests), run in runs.items():
        where = f"12-layer model, {name}, block {block}, {requests} requests"
        if requests in (1, 8):
            targets.append(Target(f"sampler's share of a step (%), {where}", "<=", 10, 100 * run.share("sampler")))
        if requests == 8:
            reached = 100 * phase(name, run.forwards, work, machine).peak_share
            targets.append(Target(f"forward's share of the matmul peak (%), {where}", ">=", 50, reached))
            targets.append(Target(f"overhead per step (ms), {where}", "<=", 1, 1e3 * run.overhead))
    return targets


def apart(arguments: argparse.Namespace, tables: Tables, runs: dict[tuple[str, int, int], Measurement]) -> list[Target]:
    """What needs a process of its own: peak memory, bf16."""
    cut = BLOCK * arguments.blocks
    title = "Peak memory of serving one request, 12-layer model, canvas 512, cache dual, a process each"
    tables.head("memory", title, ("N", "GB idle", "peak GB serving", "peak GB since start", "rows per token"))
    peaks = {}
    for number in (1, 8):
        knobs = {**DISTINCT, "num_candidates": number, "cache": "dual", "block_length": 32}
        figures = measure_apart(engine={"kv_cache_memory_bytes": 512 << 20}, canvas=512, knobs=knobs, cut_at=32)
        peaks[number] = figures["peak_bytes"]
        sizes = (figures[name] / 1e9 for name in ("idle_bytes", "peak_bytes", "process_peak_bytes"))
        tables.row((number, *sizes, figures["rows_per_token"]), num_candidates=number, **figures)
    targets = [Target("peak memory N=8 over N=1, canvas 512, dual", "<=", 1.15, peaks[8] / peaks[1])]
    if arguments.quick:
        return targets
    tables.head(
        "bf16", "bf16 beside fp32, 12-layer model, cache dual", ("sampler", "requests", "fp32", "bf16", "ratio")
    )
    for name, knobs in (("entropy", GREEDY), ("info_gain", LOOKAHEAD)):
        for requests in (1, 8):
            if (name, BLOCK, requests) not in runs:
                continue
            figures = measure_apart(
                engine={"dtype": "bfloat16"}, concurrency=requests, canvas=64, cut_at=cut,
                knobs={**knobs, "cache": "dual", "block_length": BLOCK},
            )  # fmt: skip
            single, half = runs[name, BLOCK, requests].tokens_per_second, figures["tokens_per_second"]
            tables.row((name, requests, single, half, half / single), sampler=name, requests=requests, **figures)
    return targets


def parse() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--model", nargs="+", choices=["embedded", "random"], default=["embedded", "random"])
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="a few minutes: less of everything")
    size.add_argument("--full", action="store_true", help="an hour: every combination, and every step of the loop")
    parser.add_argument("--concurrency", type=int, nargs="+", help="default 1 4 8 16")
    parser.add_argument("--candidates", type=int, nargs="+", help="N; default 1 2 4 8 16")
    parser.add_argument("--canvas", type=int, nargs="+", help="default 64 256 512 1024")
    parser.add_argument("--blocks", type=int, default=1, help="blocks to decode of each canvas (12-layer model)")
    parser.add_argument("--problems", type=int, help="Sudokus and Countdowns; default 32")
    parser.add_argument("--out", type=Path, help="a file for the tables, such as benchmarks/throughput.md")
    parser.add_argument("--steps-sampled", type=int, help="steps of the loop that are run; default 12, 0: all")
    arguments = parser.parse_args()
    defaults: dict[str, Any] = {
        "concurrency": [1, 8] if arguments.quick else [1, 4, 8, 16],
        "candidates": [1, 8] if arguments.quick else [1, 2, 4, 8, 16],
        "canvas": [64, 512] if arguments.quick else [64, 256, 512, 1024],
        "problems": 8 if arguments.quick else 32,
        "steps_sampled": 4 if arguments.quick else 0 if arguments.full else 12,
    }
    for name, value in defaults.items():
        if getattr(arguments, name) is None:
            setattr(arguments, name, value)
    arguments.steps_sampled = arguments.steps_sampled or None
    return arguments


def main() -> None:
    arguments, tables = parse(), Tables()
    machine = measure_machine()
    tables.say(f"environment: {environment()}")
    tables.say(f"matmul peak {machine.flops / 1e9:.0f} GFLOP/s; torch.mm alone {machine.torch_flops / 1e9:.0f}")
    targets: list[Target] = []
    if "embedded" in arguments.model:
        targets += embedded(arguments, tables, machine)
    if "random" in arguments.model:
        targets += random(arguments, tables, machine)
    tables.targets(targets)
    tables.say(f"\n{VLLM_COMMANDS}\n")
    if arguments.out:
        command = "python -m benchmarks.throughput --out benchmarks/throughput.md"
        title = f"# Throughput\n\nWritten by `{command}`; its docstring says what is measured.\n"
        arguments.out.write_text("\n".join([title, *tables.text]))
    print(json.dumps({"benchmark": "throughput", "environment": environment(), **tables.rows}))


if __name__ == "__main__":
    main()
