"""What lm-eval records of each generation: the graders' verdicts, under the metrics' names.

lm-eval imports this file by its path, from wherever it runs, so the checkout's root may not be on the path of modules.
"""

import sys
from pathlib import Path
from typing import Any

if (root := str(Path(__file__).parents[3])) not in sys.path:
    sys.path.append(root)

from benchmarks.paper.graders import countdown as countdown_grader
from benchmarks.paper.graders import mathematics, programs
from benchmarks.paper.graders import sudoku as sudoku_grader

Doc = dict[str, Any]
Scores = dict[str, float]


def gsm8k(doc: Doc, generations: list[str]) -> Scores:
    gold = mathematics.gsm8k_gold(doc["answer"])
    return {
        "accuracy": float(mathematics.solves_gsm8k(generations[0], gold)),
        "last_number": float(mathematics.ends_with(generations[0], gold)),
    }


def math500(doc: Doc, generations: list[str]) -> Scores:
    return {
        "accuracy": float(mathematics.solves_math(generations[0], doc["answer"])),
        "same_form": float(mathematics.in_gold_form(generations[0], doc["answer"])),
    }


def humaneval(doc: Doc, generations: list[str]) -> Scores:
    verdict = programs.human_eval(generations[0], doc["prompt"], doc["test"], doc["entry_point"])
    return {"accuracy": float(verdict.passed)}


def mbpp(doc: Doc, generations: list[str]) -> Scores:
    verdict = programs.mbpp(generations[0], doc["code"], doc["test_list"], doc["test_setup_code"])
    return {"accuracy": float(verdict.passed)}


def sudoku(doc: Doc, generations: list[str]) -> Scores:
    return {
        "accuracy": float(sudoku_grader.solves(generations[0], doc["Puzzle"])),
        "cells": sudoku_grader.share_of_cells(generations[0], doc["Puzzle"], doc["Solution"]),
    }


def countdown(doc: Doc, generations: list[str]) -> Scores:
    numbers = [int(number) for number in doc["input"].split(",")]
    return {"accuracy": float(countdown_grader.solves(generations[0], numbers, int(doc["output"])))}


def writing(doc: Doc, generations: list[str]) -> Scores:
    """Its length alone: which of two texts is better is for a judge to say."""
    return {"words": float(len(generations[0].split()))}
