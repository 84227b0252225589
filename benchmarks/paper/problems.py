"""The problems of every task: what is asked, how long an answer may be, and who grades it.

Tasks of checkpoints are those of `tasks/`, read through lm-eval, so that their prompts are those that lm-eval makes.
Tasks of the embedded model have names that begin with `tiny-`.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from vllm_infogain.embedded.evaluation import HELD_OUT_SEED, held_out
from vllm_infogain.embedded.tasks import CANVAS, Problem, check, sudoku

TASKS = Path(__file__).parent / "tasks"
TEMPERATURE = 0.7  # the paper's, of tokens
TINY_COUNT = 300  # problems of a task, unless a limit is given

Grade = Mapping[str, float]


@dataclass(frozen=True)
class Question:
    """One problem, as every engine is asked it."""

    index: int  # among the task's problems
    prompt: str
    max_tokens: int
    temperature: float
    stop: tuple[str, ...]
    grade: Callable[[str], Grade]

    @property
    def checksum(self) -> int:
        """By which rows are known that answer another prompt."""
        return zlib.crc32(self.prompt.encode())


# Makers of the first `count` problems, by the task's name.
TINY: dict[str, Callable[[int], list[Problem]]] = {
    "tiny-sudoku": lambda count: held_out("sudoku", count, givens=4),
    "tiny-sudoku-empty": lambda count: [sudoku(Random(HELD_OUT_SEED), givens=0)] * count,  # any valid grid is right
    "tiny-countdown": lambda count: held_out("countdown", count),
    "tiny-judgement": lambda count: held_out("judgement", count),
    "tiny-multiplication": lambda count: held_out("multiplication", count),
}
TITLES = {
    "gsm8k": "GSM8K", "math500": "MATH-500", "humaneval": "HumanEval", "mbpp": "MBPP", "sudoku": "Sudoku",
    "countdown": "Countdown", "writing": "creative writing", "tiny-sudoku": "Sudoku",
    "tiny-sudoku-empty": "empty Sudoku", "tiny-countdown": "Countdown", "tiny-judgement": "judgement",
    "tiny-multiplication": "multiplication",
}  # fmt: skip


def questions(task: str, limit: int | None = None, data: str | None = None) -> list[Question]:
    """The first `limit` problems of a task, or all.

    Args:
        data: a folder of local files, as of `tasks/rows.py`; without, from where they are published.
    """
    if task in TINY:
        return [tiny_question(index, one) for index, one in enumerate(TINY[task](limit or TINY_COUNT))]
    return _of_lm_eval(task, limit, data)


def tiny_question(index: int, problem: Problem) -> Question:
    def grade(text: str) -> Grade:
        return {"accuracy": float(check(problem, text))}

    return Question(index, problem.prompt, CANVAS[problem.task], TEMPERATURE, (), grade)


def _of_lm_eval(task: str, limit: int | None, data: str | None) -> list[Question]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(
        include_path=str(TASKS), include_defaults=False, metadata={} if data is None else {"data": data}
    )
    name = f"paper_{task}"
    of_lm_eval = manager.load(name)["tasks"][name]
    of_lm_eval.build_all_requests(limit=limit, rank=0, world_size=1)
    made = []
    for instance in of_lm_eval.instances:
        prompt, asked = instance.args
        made.append(
            Question(
                instance.doc_id, prompt, asked["max_gen_toks"], asked["temperature"], tuple(asked["until"]),
                _grader(of_lm_eval, instance.doc),
            )
        )  # fmt: skip
    return made


def _grader(of_lm_eval: Any, doc: Any) -> Callable[[str], Grade]:
    return lambda text: of_lm_eval.process_results(doc, [text])
