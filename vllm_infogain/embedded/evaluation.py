"""Solving problems of the embedded model's tasks through `LLM.generate`, and scoring the answers."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import vllm_infogain
from vllm_infogain.embedded.tasks import CANVAS, Problem, check, countdown, judgement, multiplication, sudoku

HELD_OUT_SEED = 20260218
MOST_REPEATS = 1000  # draws in a row that bring no new problem, after which there is hardly one left


@dataclass(frozen=True)
class Answer:
    problem: Problem
    text: str
    solved: bool
    report: dict[str, Any]  # as `vllm_infogain.report` gives it


@dataclass(frozen=True)
class Score:
    """Means over the answers of one setting; entropies in nats."""

    answers: Sequence[Answer]
    seconds: float  # for all of them, in one batch

    @property
    def accuracy(self) -> float:
        return sum(answer.solved for answer in self.answers) / len(self.answers)

    @property
    def standard_error(self) -> float:
        """Of the accuracy, over the draw of problems (binomial)."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / len(self.answers))

    def mean(self, name: str) -> float:
        """Mean of a figure of the reports: steps, rows, cumulative_entropy, ..."""
        return sum(answer.report[name] for answer in self.answers) / len(self.answers)


def held_out(task: str, count: int, **options: Any) -> list[Problem]:
    """`count` distinct held-out problems of a task, the same ones at every call.

    Multiplication has too few prompts to hold any out: it is the bare `multiply`, `count` times over, whose factors
    are the model's to choose (draw tokens at a temperature above 0).

    Raises:
        ValueError: the task has fewer.
    """
    rng = Random(HELD_OUT_SEED)
    if task == "multiplication":
        return [multiplication(rng, free=True) for _ in range(count)]
    make = {"sudoku": sudoku, "countdown": countdown, "judgement": judgement}[task]
    problems: dict[str, Problem] = {}
    repeats = 0
    while len(problems) < count:
        problem = make(rng, "test", **options)
        repeats = repeats + 1 if problem.prompt in problems else 0
        if repeats == MOST_REPEATS:
            raise ValueError(f"{task} has no {count} held-out problems; ask for at most {len(problems)}")
        problems.setdefault(problem.prompt, problem)
    return list(problems.values())


def solve(
    llm: Any, problems: Sequence[Problem], knobs: Mapping[str, Any], *, temperature: float = 0.0, seed: int = 0
) -> Score:
    """Decode every problem on its task's canvas, all in one batch, each with a seed of its own."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            max_tokens=CANVAS[problem.task],
            temperature=temperature,
            seed=seed + index,
            extra_args={"block_length": 0, **knobs},
        )
        for index, problem in enumerate(problems)
    ]
    start = time.perf_counter()
    outputs = llm.generate([problem.prompt for problem in problems], params, use_tqdm=False)
    seconds = time.perf_counter() - start
    answers = []
    for problem, output in zip(problems, outputs, strict=True):
        text = output.outputs[0].text
        answers.append(Answer(problem, text, check(problem, text), vllm_infogain.report(output)))
    return Score(answers, seconds)
