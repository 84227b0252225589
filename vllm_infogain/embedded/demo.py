"""The main job: held-out puzzles, solved by greedy samplers and by Info-Gain on real vLLM (`make demo`).

Prints a table of accuracies and costs, then one puzzle being filled step by step by two samplers side by side.
"""

import argparse
import os
from collections.abc import Sequence

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import vllm_infogain
from vllm_infogain.embedded.evaluation import Answer, Score, held_out, solve
from vllm_infogain.embedded.tasks import CANVAS, Problem

SAMPLERS = ("entropy", "confidence", "margin", "info_gain")
GIVENS = 4
MASK, NEWLINE, END = "_", "↵", "■"  # how a canvas is printed; a dot is a blank of the puzzle, and nothing else
HEADER = f"{'task':10} {'sampler':11} {'K':>1} {'accuracy':>15} {'entropy/nats':>13} {'steps':>6} {'rows':>7} {'s':>6}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", type=int, default=200, help="held-out problems per task (default: %(default)s)")
    arguments = parser.parse_args()
    if arguments.problems < 1:
        parser.error(f"--problems={arguments.problems}: give 1 or more")
    try:
        tasks = {"sudoku": held_out("sudoku", arguments.problems, givens=GIVENS)}
        tasks["countdown"] = held_out("countdown", arguments.problems)
    except ValueError as error:
        parser.error(f"--problems={arguments.problems}: {error}")

    print("Starting vLLM with the embedded model (about 20 s) ...", flush=True)
    llm = vllm_infogain.load_llm(disable_log_stats=True)
    solve(llm, tasks["sudoku"][:8], {})  # the first batch pays for what is set up on first use

    print(f"\n{arguments.problems} held-out problems per task, temperature 0, the whole canvas as one block.")
    print(f"Sudoku: 4x4 with {GIVENS} givens, any valid completion counts. K: tokens written per step.")
    print("entropy, steps and rows are means per answer: the entropy of each token when it was written, summed;")
    print("denoising steps; positions run through the model. s: seconds for all answers in one batch.\n")
    print(HEADER)
    sudokus: dict[tuple[str, int], Score] = {}
    for task, problems in tasks.items():
        for tokens_per_step in (1, 2):
            for sampler in SAMPLERS:
                knobs = {"sampler": sampler, "tokens_per_step": tokens_per_step}
                score = solve(llm, problems, knobs)
                print(row(task, sampler, tokens_per_step, score), flush=True)
                if task == "sudoku":
                    sudokus[sampler, tokens_per_step] = score

    problem = telling_problem(sudokus["entropy", 2].answers, sudokus["info_gain", 2].answers)
    print("\nOne puzzle, two tokens per step; [x] was written in that step, H is the entropy it had (nats).")
    print(f"{MASK} not written yet, {NEWLINE} end of the line, {END} end of the text")
    show_side_by_side(llm, problem, ("entropy", "info_gain"), tokens_per_step=2)
    print("\nNext: make serve, then ask the server as the README shows.")


def row(task: str, sampler: str, tokens_per_step: int, score: Score) -> str:
    return (
        f"{task:10} {sampler:11} {tokens_per_step} "
        f"{100 * score.accuracy:7.1f} ± {100 * score.standard_error:3.1f} % "
        f"{score.mean('cumulative_entropy'):13.2f} {score.mean('steps'):6.1f} {score.mean('rows'):7.0f} "
        f"{score.seconds:6.1f}"
    )


def telling_problem(greedy: Sequence[Answer], ours: Sequence[Answer]) -> Problem:
    """A puzzle that only Info-Gain solved, or the first one."""
    pairs = zip(greedy, ours, strict=True)
    return next((mine.problem for other, mine in pairs if mine.solved and not other.solved), ours[0].problem)


def show_side_by_side(llm, problem: Problem, samplers: Sequence[str], tokens_per_step: int) -> None:
    """Print a Sudoku's canvas after every step of each sampler."""
    columns, width = [], 34
    for sampler in samplers:
        knobs = {"sampler": sampler, "tokens_per_step": tokens_per_step, "return_trajectory": True}
        (answer,) = solve(llm, [problem], knobs).answers
        verdict = "solved" if answer.solved else "wrong"
        columns.append([f"{sampler}: {verdict}", *frames(llm.get_tokenizer(), problem, answer)])
    print("\npuzzle\n  " + "\n  ".join(problem.prompt.split("\n")[1:]))
    for frame in range(max(map(len, columns))):
        print()
        blocks = [(column[frame] if frame < len(column) else "").split("\n") for column in columns]
        for line in range(max(map(len, blocks))):
            print("".join((block[line] if line < len(block) else "").ljust(width) for block in blocks).rstrip())


def frames(tokenizer, problem: Problem, answer: Answer) -> list[str]:
    """The canvas after each step, the new tokens in brackets, and where they went."""
    canvas, result = [MASK] * CANVAS[problem.task], []
    for number, step in enumerate(answer.report["trajectory"], start=1):
        new = dict(zip(step["positions"], step["tokens"], strict=True))
        for position, token in new.items():
            text = tokenizer.decode([token])
            canvas[position] = {"\n": NEWLINE, tokenizer.eos_token: END}.get(text, text)
        cells = [f"[{text}]" if position in new else f" {text} " for position, text in enumerate(canvas)]
        costs = " ".join(f"{entropy:.2f}" for entropy in step["entropies"])
        lines = ["".join(cells[start : start + 5]) for start in range(0, len(cells), 5)]
        result.append("\n".join([f"step {number}  H {costs}", *lines]))
    return result


if __name__ == "__main__":
    main()
