"""What accuracy costs: every sampler, K, N, gamma and cache on the embedded model's tasks, and who is on the front.

    python -m benchmarks.front [--problems 300] [--seeds 3] [--tasks sudoku ...] [--only adaptive ...] [--keep FILE]

Accuracy against forwards, rows and CPU milliseconds per problem. Settings that draw nothing run once, others once per
seed. Writes front.md and front.png, and ends in one line of JSON. With `--keep` a second start goes on from there.
"""

import argparse
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # all of the engine's CPU time is this process's

from benchmarks.environment import environment, settings_text
from benchmarks.front_plot import plot
from benchmarks.front_points import COSTS, TEMPERATURE, Kept, Point, Run, on_front, plan, points_of, problems_of, tables
from vllm_infogain.embedded import model_path
from vllm_infogain.embedded.evaluation import held_out, solve

SEED_APART = 10_000  # between the first problems' seeds of two runs


def _of(sampler: str, **knobs: Any) -> dict[str, Any]:
    return {"sampler": sampler, **knobs}


SETTINGS: list[dict[str, Any]] = [
    *(_of("adaptive", **knobs) for knobs in (
        {}, {"entropy_bound": 0.0}, {"num_candidates": 2}, {"num_candidates": 8}, {"bypass_threshold": 0.8},
        {"bypass_threshold": 0.95}, {"tokens_per_step": 2},
    )),
    *(_of("threshold", threshold=gamma) for gamma in (0.7, 0.8, 0.9, 0.95)),
    *(_of("eb", entropy_bound=bound) for bound in (0.05, 0.1, 0.2)),
    *(_of("factor", factor=factor) for factor in (0.5, 1.0)),
    *(_of(sampler, tokens_per_step=k) for k in (1, 2) for sampler in ("confidence", "entropy", "klass")),
    *(_of(sampler, tokens_per_step=2) for sampler in ("margin", "ar", "pc", "uniform", "maskgit", "best_of_n")),
    _of("info_gain", tokens_per_step=1),
    *(_of(sampler, tokens_per_step=2) for sampler in ("info_gain", "lookum", "beam")),
    _of("info_gain", tokens_per_step=2, state_uncertainty="sum", position_temperature=1.0),
    _of("info_gain", tokens_per_step=2, num_candidates=16, bypass_threshold=1.0, position_temperature=1.0, prune=True),
    *(_of("threshold", block_length=8, cache=cache) for cache in ("none", "prefix", "dual")),
    *(_of("adaptive", block_length=8, cache=cache) for cache in ("none", "prefix", "dual")),
]  # fmt: skip


def measured(llm: Any, task: str, settings: dict[str, Any], seed: int, count: int, model: str) -> Run:
    problems = problems_of(task, count)
    started = time.process_time()
    score = solve(llm, problems, settings, temperature=TEMPERATURE[task], seed=SEED_APART * seed)
    cpu_ms = 1e3 * (time.process_time() - started) / count
    solved = [answer.solved for answer in score.answers]
    return Run(task, settings, seed, model, solved, score.mean("forwards"), score.mean("rows"), cpu_ms)


def model_digest() -> str:
    return hashlib.sha256((Path(model_path()) / "model.safetensors").read_bytes()).hexdigest()[:16]


def run_all(
    llm: Any, wanted: Sequence[tuple[str, dict[str, Any], int]], count: int, kept: Kept, model: str
) -> list[Run]:
    from tqdm import tqdm

    runs = []
    for task, settings, seed in (bar := tqdm(wanted, unit="run")):
        bar.set_postfix_str(f"{task}, {settings_text(settings)}")
        run = kept.find(task, settings, seed)
        if run is None:
            run = measured(llm, task, settings, seed, count, model)
            kept.add(run)
        runs.append(run)
    return runs


def text_of(points: Sequence[Point], arguments: argparse.Namespace, machine: Mapping[str, object], picture: str) -> str:
    lines = [
        "# What accuracy costs",
        "",
        f"Written by `python -m benchmarks.front --problems {arguments.problems} --seeds {arguments.seeds}`: held-out",
        "problems of the embedded model (Sudoku: four givens; multiplication: the bare `multiply`), a run's all in one",
        "batch, at temperature 0 (multiplication 1). The whole canvas is one block, defaults but for what is named.",
        f"Settings that draw nothing, or take long, run once, others with {arguments.seeds} seeds. Errors are standard",
        "errors over problems. Forwards, rows (positions that a forward computes) and CPU time are means per problem;",
        "rows of a look-ahead count all its candidates. A setting is on a front if none is as right for less.",
        "",
        f"Machine: {machine['cpu']}, {machine['threads']} thread, vLLM {machine['vllm']}, torch {machine['torch']}.",
        "",
        f"![Accuracy against forwards, rows and CPU time, by task]({picture})",
    ]
    return "\n".join([*lines, *tables(points, arguments.tasks)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tasks", nargs="+", choices=TEMPERATURE, default=[*TEMPERATURE], metavar="TASK")
    parser.add_argument("--only", nargs="+", metavar="SAMPLER", help="of these samplers alone")
    parser.add_argument("--keep", type=Path, help="finished runs, one per line; a second start goes on from there")
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).with_suffix(".md"), help="the picture lies beside it"
    )
    arguments = parser.parse_args()
    settings = [one for one in SETTINGS if not arguments.only or one["sampler"] in arguments.only]
    if not settings:
        parser.error(f"--only: give some of {', '.join(dict.fromkeys(one['sampler'] for one in SETTINGS))}")

    import vllm_infogain

    llm = vllm_infogain.load_llm(disable_log_stats=True)
    solve(llm, held_out("countdown", 8), {})  # the first batch pays for what is set up on first use
    machine, model = environment(), model_digest()
    wanted = plan(arguments.tasks, settings, arguments.seeds)
    runs = run_all(llm, wanted, arguments.problems, Kept(arguments.keep, model, arguments.problems), model)
    points = points_of(runs)
    picture = arguments.out.with_suffix(".png")
    plot({task: [one for one in points if one.task == task] for task in arguments.tasks}, COSTS, on_front, picture)
    arguments.out.write_text(text_of(points, arguments, machine, picture.name))
    print(arguments.out.read_text())
    print(json.dumps({"benchmark": "front", "model": model, **machine, "points": [asdict(one) for one in points]}))


if __name__ == "__main__":
    main()
