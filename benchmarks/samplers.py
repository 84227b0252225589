"""Every sampler on every task of the embedded model: accuracy, cumulative entropy, rows, CPU seconds.

    python -m benchmarks.samplers [--problems 100] [--out benchmarks/samplers.md]

Every answer is checked by its task's rules. Writes the table into the docs and ends in one line of JSON.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # all of the engine's CPU time is this process's

import vllm_infogain
from benchmarks.environment import environment, settings_text
from benchmarks.front_points import TEMPERATURE, problems_of
from vllm_infogain.embedded.evaluation import held_out, solve
from vllm_infogain.embedded.tasks import CANVAS
from vllm_infogain.request.params import ADAPTIVE_SAMPLERS, SAMPLERS

SETTINGS = [
    *({"sampler": sampler} for sampler in SAMPLERS),
    {"sampler": "info_gain", "bypass_threshold": 1.0},
    {"sampler": "info_gain", "bypass_threshold": 1.0, "position_temperature": 1.0, "prune": True},
    {"sampler": "info_gain", "bypass_threshold": 1.0, "state_uncertainty": "sum", "position_temperature": 5.0},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=100)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    llm = vllm_infogain.load_llm(disable_log_stats=True)
    solve(llm, held_out("countdown", 8), {})  # the first batch pays for what is set up on first use
    machine = environment()
    print(f"environment: {machine}")
    lines = [
        "# Every sampler on the embedded model",
        "",
        "Written by `python -m benchmarks.samplers`. Held-out problems (Sudoku: four givens; multiplication: the bare",
        "`multiply`, whose factors the model chooses), the whole canvas as one block, defaults but for what is named.",
        f"{arguments.problems} problems per cell, temperature 0 (multiplication 1). A cell: accuracy ± standard error,",
        "cumulative entropy in nats, forward rows per token, CPU seconds of all problems in one batch, at one thread.",
        "K is `tokens_per_step`; `adaptive`, `eb`, `threshold` and `factor` choose how many; they have one row.",
        "",
        f"Machine: {machine['cpu']}, vLLM {machine['vllm']}, torch {machine['torch']}.",
        "",
        "| K | settings | " + " | ".join(TEMPERATURE) + " |",
        "|---|---|" + "---|" * len(TEMPERATURE),
    ]
    results = []
    print("\n".join(lines[-2:]))
    for tokens_per_step in (1, 2):
        for knobs in SETTINGS:
            if tokens_per_step > 1 and knobs["sampler"] in ADAPTIVE_SAMPLERS:
                continue
            cells = []
            for task, temperature in TEMPERATURE.items():
                problems = problems_of(task, arguments.problems)
                knobs_now = {**knobs, "tokens_per_step": tokens_per_step}
                started = time.process_time()
                score = solve(llm, problems, knobs_now, temperature=temperature)
                seconds = time.process_time() - started
                rows = score.mean("rows") / CANVAS[task]
                cells.append(
                    f"{100 * score.accuracy:.0f} ± {100 * score.standard_error:.0f} %, "
                    f"{score.mean('cumulative_entropy'):.2f}, {rows:.0f}, {seconds:.1f} s"
                )
                entropy = score.mean("cumulative_entropy")
                figures = {"accuracy": score.accuracy, "entropy": entropy, "rows_per_token": rows}
                figures["cpu_seconds"] = seconds
                results.append({"task": task, **knobs_now, **figures})
            lines.append(f"| {tokens_per_step} | {settings_text(knobs)} | " + " | ".join(cells) + " |")
            print(lines[-1], flush=True)
    arguments.out.write_text("\n".join(lines) + "\n")
    print(json.dumps({"benchmark": "samplers", "problems": arguments.problems, "results": results}))


if __name__ == "__main__":
    main()
