"""What each task asks, and the worked examples for `--num_fewshot`.

The forms are the paper's: what is given, how many examples, how an answer is marked. The wording is ours.
"""

import ast
import re
from typing import Any

Doc = dict[str, Any]

STEPS = r"Solve the problem step by step, and put the final answer into \boxed{}."


def gsm8k(doc: Doc) -> str:
    return f"{STEPS}\n\nProblem: {doc['question']}\nSolution:"


def math500(doc: Doc) -> str:
    return f"{STEPS}\n\nProblem: {doc['problem']}\nSolution:"


def humaneval(doc: Doc) -> str:
    return f"Complete this Python function. Write code only, without comments or explanations.\n\n{doc['prompt']}"


def mbpp(doc: Doc) -> str:
    """The paper's form gives the function's name and parameters, and no test."""
    return (
        f"Write this Python function. Write code only, without comments or explanations.\n\n{doc['text']}\n"
        f"Its name and parameters: {signature(doc['code'], doc['test_list'])}\n"
    )


def signature(code: str, tests: list[str]) -> str:
    """Of the first function that the tests call and the solution defines."""
    functions = {node.name: node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)}
    name = next(name for name in re.findall(r"\w+", " ".join(tests)) if name in functions)
    return f"{name}({ast.unparse(functions[name].args)})"


def sudoku(doc: Doc) -> str:
    return f"Puzzle:\n{in_rows(doc['Puzzle'])}\n<answer>\n"


def sudoku_target(doc: Doc) -> str:
    return f"{in_rows(doc['Solution'])}\n</answer>"


def in_rows(cells: str) -> str:
    return "\n".join(cells[start : start + 4] for start in range(0, 16, 4))


def countdown(doc: Doc) -> str:
    return f"Question: {doc['input']},{doc['output']}\nSolution:"


def countdown_target(doc: Doc) -> str:
    """Of an example: its steps. A problem of the test set comes without a solution."""
    return f"The answer is: {doc['steps']}" if "steps" in doc else str(doc["output"])


def gsm8k_examples() -> list[Doc]:
    return [
        {"question": "A shelf has 4 rows of 7 cups. 5 cups are broken. How many cups are whole?",
         "answer": r"There are 4 * 7 = 28 cups. 28 - 5 = 23 of them are whole. The answer is \boxed{23}."},
        {"question": "Lea reads 12 pages a day. Her book has 300 pages. How many days does she need?",
         "answer": r"She needs 300 / 12 = 25 days. The answer is \boxed{25}."},
        {"question": "A ticket costs $8, and children pay half. What do 2 adults and 3 children pay?",
         "answer": r"The adults pay 2 * 8 = 16 dollars. A child pays 8 / 2 = 4 dollars, so the children pay 3 * 4 = 12 "
                   r"dollars. Together that is 16 + 12 = 28 dollars. The answer is \boxed{28}."},
        {"question": "A tank holds 90 litres and is one third full. How many litres fit in?",
         "answer": r"It holds 90 / 3 = 30 litres now, so 90 - 30 = 60 litres fit in. The answer is \boxed{60}."},
    ]  # fmt: skip


def math500_examples() -> list[Doc]:
    return [
        {"problem": "Compute $2^5 - 3^3$.", "answer": r"$2^5 - 3^3 = 32 - 27 = \boxed{5}$."},
        {"problem": "Solve $4x - 6 = 3x + 1$ for $x$.", "answer": r"$4x - 3x = 1 + 6$, so $x = \boxed{7}$."},
        {"problem": "A fair die is rolled twice. What is the probability that both rolls are even?",
         "answer": r"Each roll is even with probability $\frac{1}{2}$, so both are with probability "
                   r"$\boxed{\frac{1}{4}}$."},
        {"problem": "What is the distance between $(1, 2)$ and $(3, 6)$?",
         "answer": r"$\sqrt{2^2 + 4^2} = \sqrt{20} = \boxed{2\sqrt{5}}$."},
    ]  # fmt: skip


def sudoku_examples() -> list[Doc]:
    pairs = (
        "0230401000003021 1234431221433421",
        "1032000000202014 1432324141232314",
        "2000403000000021 2314413212433421",
        "0240140000000023 3241143223144123",
        "2000031010040000 2143431212343421",
    )
    return [{"Puzzle": puzzle, "Solution": solution} for puzzle, solution in map(str.split, pairs)]


def countdown_examples() -> list[Doc]:
    return [
        {"input": "7,6,11", "output": "53", "steps": "7*6=42,42+11=53"},
        {"input": "48,5,8", "output": "11", "steps": "48/8=6,6+5=11"},
        {"input": "63,21,17", "output": "67", "steps": "63+21=84,84-17=67"},
    ]
