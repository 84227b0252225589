"""A problem of each of the paper's tasks, and files of them as `--data` reads them."""

import gzip
import json
from pathlib import Path
from typing import Any

import checkout  # noqa: F401

from benchmarks.paper.tasks import rows

FUNCTION = 'def double(x):\n    """Twice x."""\n'
# Of each task: a problem, a generation that solves it, one that does not.
PROBLEMS: dict[str, tuple[dict[str, Any], str, str]] = {
    "gsm8k": ({"question": "2 + 3?", "answer": "2 + 3 = 5\n#### 5"}, r"It is \boxed{5}.", r"It is \boxed{6}."),
    "math500": ({"problem": "Half of 1?", "answer": r"\frac{1}{2}"}, r"\boxed{0.5}", r"\boxed{2}"),
    "humaneval": (
        {"task_id": "H/0", "prompt": FUNCTION, "canonical_solution": "    return 2 * x\n",
         "test": "def check(candidate):\n    assert candidate(4) == 8\n", "entry_point": "double"},
        "    return x + x\n", "    return x\n",
    ),
    "mbpp": (
        {"text": "Double it.", "code": "def double(x, y=0):\n    return 2 * x", "test_list": ["assert double(4) == 8"],
         "test_setup_code": "", "challenge_test_list": [], "task_id": 11},
        "```python\ndef double(x):\n    return x + x\n```", "```python\ndef double(x):\n    return x\n```",
    ),
    "sudoku": (
        {"Puzzle": "0102200002100320", "Solution": "3142243142131324"}, "3142\n2431\n4213\n1324\n", "3142\n2431\n",
    ),
    "countdown": (
        {"input": "49,55,53", "output": "51"}, "The answer is: 49+55=104,104-53=51", "The answer is: 104-53=51",
    ),
    "writing": ({"source": "a site", "prompt": "Write a story."}, "Once upon a time", "No"),
}  # fmt: skip


def write(folder: Path) -> Path:
    """A folder of local files, each of one problem."""
    for task, (problem, _, _) in PROBLEMS.items():
        path = folder / rows.SOURCES[task].local
        text = json.dumps(problem) + "\n"
        if path.suffix == ".csv":
            text = "\n".join([",".join(problem), ",".join(problem.values())])
        path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return folder
