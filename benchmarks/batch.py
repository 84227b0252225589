"""Rows per second of the batch command, against one local `LLM.generate` of the same rows in the same run.

    python -m benchmarks.batch [--rows 10000] [--replicas 1 2]

Short prompts on the embedded model, 12 tokens in few steps: what Ray costs per row weighs most on such. The engine of
`LLM.generate` and that of each replica have one thread, and no process gives way to others. Every row's tokens are
compared with the local engine's: a difference ends the run. CPU seconds are those of all processes, Ray's too, and
hardly depend on what else the machine has to do. Seconds do, so its load stands beside them. Prints the environment, a
table and, last, one line of JSON.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from itertools import islice
from math import isclose
from pathlib import Path
from random import Random
from threading import Event, Thread
from typing import Any

import psutil

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from benchmarks.environment import environment
from benchmarks.llm import started
from benchmarks.tables import Tables

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"  # as users have it; other benchmarks need an engine in this process

KNOBS: list[dict[str, Any]] = [
    {"sampler": "threshold"},
    {"sampler": "eb"},
    {"sampler": "info_gain", "tokens_per_step": 4},
]
Outputs = dict[int, tuple[list[int], dict[str, Any]]]  # by id: tokens and report
MARK = "VLLM_INFOGAIN_BENCHMARK"  # in the environment of all that a command starts


@dataclass(frozen=True)
class Span:
    rows: int
    seconds: float
    cpu_seconds: float | None = None


class ProcessTimes:
    """CPU seconds of all processes with a mark in their environment, as last seen: some outlive who started them."""

    def __init__(self, mark: str) -> None:
        self.mark = mark
        self.seen: dict[tuple[int, float], float] = {}
        self.ended = Event()
        self.thread = Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "ProcessTimes":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def seconds(self) -> float:
        return sum(self.seen.values())

    def _watch(self) -> None:
        while not self.ended.wait(0.5):
            for process in psutil.process_iter():
                try:
                    key = process.pid, process.create_time()
                    if key in self.seen or process.environ().get(MARK) == self.mark:
                        times = process.cpu_times()
                        self.seen[key] = times.user + times.system
                except psutil.Error:
                    pass  # somebody else's, or gone


def make_rows(count: int) -> list[dict[str, Any]]:
    """Multiplications with the samplers in turn, each row with a seed of its own."""
    from vllm_infogain.embedded.tasks import CANVAS, multiplication

    rng = Random(5)
    return [
        {
            "id": number, "prompt": multiplication(rng).prompt, "max_tokens": CANVAS["multiplication"],
            "temperature": 1, "block_length": 0, **KNOBS[number % len(KNOBS)],
        }
        for number in range(count)
    ]  # fmt: skip


def generate(rows: list[dict[str, Any]]) -> tuple[Outputs, Span, Span]:
    """By one local engine: `LLM.generate` alone, and with the engine's start and end."""
    from vllm import SamplingParams

    import vllm_infogain
    from vllm_infogain.batch.rows import row_request

    fields = SamplingParams.__struct_fields__
    asked = [row_request(row | {"id": None}, str(row["id"]), defaults={}, seed=0, fields=fields) for row in rows]
    params = [SamplingParams(**request.sampling_params) for request in asked]
    os.environ[MARK] = "here"
    start, cpu_start = time.perf_counter(), time.process_time()
    with ProcessTimes("here") as times, started() as llm:
        ready = time.perf_counter()
        outputs = llm.generate([request.prompt for request in asked], params, use_tqdm=False)
        generated = time.perf_counter()
    end = time.perf_counter()
    cpu_seconds = time.process_time() - cpu_start + times.seconds()
    found = {
        row["id"]: (list(output.outputs[0].token_ids), vllm_infogain.report(output))
        for row, output in zip(rows, outputs, strict=True)
    }
    return found, Span(len(rows), generated - ready), Span(len(rows), end - start, cpu_seconds)


def run_command(source: Path, out: Path, replicas: int) -> tuple[Outputs, Span, Span]:
    """By the command: from its first part to its last, and from its start to its end."""
    command = [sys.executable, "-m", "vllm_infogain.batch", str(source), str(out), "--replicas", str(replicas)]
    variables = os.environ | {MARK: str(out), "RAY_worker_niceness": "0"}  # of itself 15
    start = time.perf_counter()
    with ProcessTimes(str(out)) as times:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=variables)
    seconds = time.perf_counter() - start
    parts = sorted((part.stat().st_mtime, part) for part in out.glob("part_*.jsonl"))
    rows = [[json.loads(line) for line in part.read_text().splitlines()] for _, part in parts]
    later = sum(map(len, islice(rows, 1, None)))
    found = {row["id"]: (row["token_ids"], row["report"]) for part in rows for row in part}
    return found, Span(later, parts[-1][0] - parts[0][0]), Span(len(found), seconds, times.seconds())


def check(found: Outputs, expected: Outputs) -> None:
    """Same ids and tokens; the same work, with the entropy to what a batch of another size changes in its digits.

    Raises:
        SystemExit: naming how many rows differ.
    """
    if found.keys() != expected.keys():
        raise SystemExit(f"{len(found)} rows of {len(expected)} came back")
    differing = [name for name, output in found.items() if not _same(output, expected[name])]
    if differing:
        raise SystemExit(f"{len(differing)} rows differ from the local engine's, such as {differing[:5]}")


def _same(ours: tuple[list[int], dict[str, Any]], theirs: tuple[list[int], dict[str, Any]]) -> bool:
    entropy = "cumulative_entropy"
    exact = [(tokens, {**report, entropy: None}) for tokens, report in (ours, theirs)]
    return exact[0] == exact[1] and isclose(ours[1][entropy], theirs[1][entropy], rel_tol=1e-4, abs_tol=1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 2])
    arguments = parser.parse_args()
    rows, tables = make_rows(arguments.rows), Tables()
    tables.say(f"environment: {environment()}")

    def row(what: str, span: Span) -> None:
        rate, load = span.rows / span.seconds, os.getloadavg()[0]
        ratio = rate / (alone.rows / alone.seconds)
        cpu = "" if span.cpu_seconds is None else f"{span.cpu_seconds:.0f}"
        cells = (what, f"{span.seconds:.0f}", cpu, f"{rate:.1f}", f"{ratio:.2f}", f"{load:.1f}")
        tables.row(cells, what=what, **asdict(span), rows_per_second=rate, ratio=ratio, load=load)

    columns = ("what", "seconds", "CPU seconds", "rows/s", "over `LLM.generate`", "load at its end")
    tables.head("batch", f"{len(rows)} rows, load before {os.getloadavg()[0]:.1f}", columns)
    expected, alone, whole = generate(rows)
    row("`LLM.generate`", alone)
    row("the same, with the engine's start", whole)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "rows.jsonl"
        source.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        for replicas in arguments.replicas:
            found, decoding, whole = run_command(source, Path(folder) / f"out{replicas}", replicas)
            check(found, expected)
            row(f"the command, replicas: {replicas}, from its first part to its last", decoding)
            row("the same, all starts included", whole)
    print(json.dumps({"benchmark": "batch", "environment": environment(), "rows": len(rows), **tables.rows}))


if __name__ == "__main__":
    main()
