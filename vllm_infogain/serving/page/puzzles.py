"""Whether an answer is right, for prompts that are puzzles of the embedded model. Imports neither torch nor vLLM."""

import re

from vllm_infogain.embedded.tasks import Problem, check

ANSWER = "<|answer|>"  # stands between prompt and answer where the answer is partly given
PROMPTS = {  # task: what its prompts look like; only these can be judged
    "sudoku": r"sudoku(\n[1-4.]{4}){4}",
    "countdown": r"countdown( [0-9]{1,3}){3} = [0-9]{1,3}",
    "multiplication": r"multiply( [1-9]\*[1-9])?",
    "judgement": r"judge [0-9]{1,3}[-+*][0-9]{1,3}[-+*][0-9]{1,3}=[0-9]{1,4}",
}


def is_solved(prompt: str, text: str) -> bool | None:
    """By the task's rules: any right answer counts. None: the prompt is no puzzle.

    Args:
        prompt: as sent; of one with masks in place, what stands before the answer.
        text: the whole answer, without end tokens.
    """
    question = prompt.partition(ANSWER)[0]
    for task, pattern in PROMPTS.items():
        if re.fullmatch(pattern, question):
            return check(Problem(task, question, answer=""), text)
    return None
