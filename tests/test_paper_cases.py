"""The case studies' measures and plots, on rows made by hand. No engine."""

import math
import re
from pathlib import Path
from typing import Any

import checkout  # noqa: F401
import numpy as np
import pytest

from benchmarks.paper.cases import EXPERIMENTS
from benchmarks.paper.cases.correlation import interval, pearson, said
from benchmarks.paper.cases.lines import Line, collapsed, points
from benchmarks.paper.cases.memory import draw_memory, memory_table
from benchmarks.paper.cases.objective import CHOICES, mean_of, objectives, share_above
from benchmarks.paper.cases.order import (
    digits_before_factors,
    factors_first,
    is_equation,
    product_first,
    verdict_first,
    verdict_is_right,
    work_contradicts,
)
from benchmarks.paper.estimates import Results, accuracy
from benchmarks.paper.problems import TINY
from vllm_infogain.embedded.tasks import check

EQUATION = "3*7=0010101"
WORK = "7*3=21,12+21=33,yes"


def row(text: str, order: list[int], index: int = 0, **report: Any) -> dict[str, Any]:
    return {"index": index, "text": text, "report": {"decode_order": order, **report}}


def test_a_product_is_first_if_most_of_its_digits_stand_before_both_factors():
    # places: a 0, * 1, b 2, = 3, digits 4 to 10
    written_last = row(EQUATION, [10, 8, 11, 9, 1, 2, 3, 4, 5, 6, 7])
    assert (digits_before_factors(written_last), product_first(written_last), factors_first(written_last)) == (7, 1, 0)
    first = row(EQUATION, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11])
    assert (digits_before_factors(first), product_first(first), factors_first(first)) == (0, 0, 1)
    half = row(EQUATION, [0, 8, 4, 9, 1, 2, 3, 5, 6, 7, 10])
    assert (digits_before_factors(half), product_first(half), factors_first(half)) == (3, 0, 0)
    one_more = row(EQUATION, [0, 8, 5, 9, 1, 2, 3, 4, 6, 7, 10])
    assert product_first(one_more) == 1


def test_digits_of_the_same_step_as_the_factor_stand_no_earlier():
    assert digits_before_factors(row(EQUATION, [1, 5, 2, 5, 1, 1, 2, 2, 3, 3, 4])) == 2


def test_a_text_that_is_no_equation_says_nothing_of_an_order():
    nonsense = row("3*7=00101", list(range(12)))
    assert (product_first(nonsense), factors_first(nonsense), is_equation(nonsense)) == (None, None, 0)
    assert is_equation(row("3*7=1111111", [])) == 1, "its form, not its truth"


def test_a_verdict_is_first_if_most_of_the_work_follows_it():
    comma = WORK.rindex(",")
    in_order = list(range(len(WORK)))
    assert verdict_first(row(WORK, in_order)) == 0
    assert verdict_first(row(WORK, [place + 1 for place in range(comma)] + [20, 0, 21, 22])) == 1
    middle = comma // 2 + 1
    assert verdict_first(row(WORK, [*range(comma), 20, middle - 2, 21, 22])) == 1
    assert verdict_first(row(WORK, [*range(comma), 20, middle, 21, 22])) == 0
    assert verdict_first(row("7*3=21,12", in_order)) is None


def test_a_verdict_is_right_by_the_claim_and_may_contradict_the_work():
    for index, problem in enumerate(TINY["tiny-judgement"](20)):
        right = problem.answer
        assert check(problem, right)
        assert verdict_is_right(row(right, [], index)) == 1
        assert work_contradicts(row(right, [], index)) == 0
        other = right.replace("yes", "YES").replace("no", "yes").replace("YES", "no")
        assert verdict_is_right(row(other, [], index)) == 0
        assert work_contradicts(row(other, [], index)) == 1
        claim = problem.prompt.rpartition("=")[2]
        wrong_work = re.sub(r"\d+,(yes|no)$", f"{int(claim) + 1},no", right)
        assert work_contradicts(row(wrong_work, [], index)) == 0, "it says what its own work says"
    assert work_contradicts(row("7*3=", [])) is None
    assert verdict_is_right(row("", [])) == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [("1234\n3412\n2143\n4321", 0), ("1111\n1111\n1111\n1111", 0), ("1234\n3412\n2143", 1), ("3*7=21,21+8=29", 0),
     ("3*7=99,1+1=1", 0), ("3*7=21,21+8", 1), ("", 1), ("1234\n3412\n2143\n432+", 1)],
)  # fmt: skip
def test_a_text_has_collapsed_without_the_form_of_an_answer(text: str, expected: int):
    assert collapsed(row(text, [])) == expected


STEPS = [
    {"objective": [-0.5, -0.1, None], "chosen": 1},
    {"objective": [], "chosen": 0},
    {"objective": [0.2, -1.0], "chosen": 0},
]


def test_objectives_are_those_of_steps_that_compared_some():
    one = row("", [], trajectory=STEPS)
    assert objectives(one, CHOICES["all candidates"]) == [-0.5, -0.1, 0.2, -1.0]
    assert objectives(one, CHOICES["the greedy action"]) == [-0.5, 0.2]
    assert objectives(one, CHOICES["the action taken"]) == [-0.1, 0.2]
    assert mean_of(CHOICES["the action taken"])(one) == pytest.approx(0.05)
    assert share_above(CHOICES["all candidates"], 0.01)(one) == 0.25
    assert mean_of(CHOICES["all candidates"])(row("", [], trajectory=STEPS[1:2])) is None


def test_pearsons_r_is_numpys():
    draws = np.random.default_rng(0)
    xs = draws.normal(size=40)
    ys = xs + draws.normal(size=40)
    assert pearson(list(xs), list(ys)) == pytest.approx(np.corrcoef(xs, ys)[0, 1])
    assert pearson([1, 2, 3], [6, 4, 2]) == pytest.approx(-1)
    assert math.isnan(pearson([1, 2, 3], [1, 1, 1]))


def test_the_interval_of_r_holds_it_nineteen_times_in_twenty():
    draws, inside, r = np.random.default_rng(1), 0, 0.6
    for _ in range(1000):
        xs = draws.normal(size=24)
        ys = r * xs + math.sqrt(1 - r * r) * draws.normal(size=24)
        low, high = interval(pearson(list(xs), list(ys)), 24)
        inside += low <= r <= high
    assert 930 <= inside <= 970
    assert said([1, 2, 3, 4], [1, 1, 1, 1]) == "", "what does not vary goes with nothing"


def of_cell(cell: Any, count: int = 8) -> list[dict[str, Any]]:
    """Rows that differ from one to the next, in accuracy and costs."""
    text = {"tiny-sudoku": "1234\n3412\n2143\n4321", "tiny-countdown": "3*7=21,21+8=29", "tiny-judgement": WORK,
            "tiny-multiplication": EQUATION}[cell.task]  # fmt: skip
    report = {"cumulative_entropy": 1.0, "forwards": 9, "rows": 100, "steps": 10, "bypassed_steps": 4}
    return [
        row(text, list(range(26)), index, trajectory=STEPS, **{name: value + index for name, value in report.items()})
        | {"grade": {"accuracy": float(index % 2)}, "cpu_seconds": 0.01 * (index + 1), "seconds": 0.01}
        for index in range(count)
    ]


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=lambda one: one.name)
def test_every_case_has_a_table_and_a_small_labelled_figure(experiment: Any, tmp_path: Path):
    results = Results({cell: of_cell(cell) for cell in experiment.cells(tiny=True)})
    text = experiment.layout(experiment, results)
    assert "50.0 ±" in text or experiment.name == "figure6", "half of the rows are right"
    for name in results.settings:
        line, _, _ = name.partition(", steps")
        assert line.split(", ")[0] in text
    path = tmp_path / "figure.svg"
    experiment.draw(experiment, results, path)
    drawn = path.read_text()
    assert path.stat().st_size < 70_000, "it lies in the repository"
    for label in LABELS[experiment.name]:
        assert label in drawn


LABELS = {
    "multiplication": ("% of the answers", "K=1", "K=2"),
    "table1": ("% of the answers", "verdict first"),
    "figure3b": ("cumulative entropy, nats", "right, %"),
    "table7": ("steps", "right, %", "without the form"),
    "figure4": ("rows per answer", "right, %", "cumulative entropy, nats"),
    "figure5": ("token temperature", "right, %"),
    "figure9": ("gamma", "CPU ms", "cumulative entropy, nats", "right, %"),
    "figure6": ("J, nats", "% of the candidates"),
    "presets": ("CPU ms", "right, %"),
}


def test_cells_of_a_line_are_those_of_its_numbers():
    line = Line.over("x", (1, 2), "n", lambda n: {"sampler": "best_of_n", "num_generations": int(n)})
    cell = type("Cell", (), {})
    rows = {}
    for n, setting in line.settings.items():
        one = cell()
        one.task, one.setting = "tiny-sudoku", setting
        rows[one] = [{"index": 0, "grade": {"accuracy": n - 1.0}}, {"index": 1, "grade": {"accuracy": n - 1.0}}]
    found = points(Results(rows), line, accuracy, task="tiny-sudoku")
    assert [(x, estimate and estimate.mean) for x, estimate in found] == [(1, 0), (2, 1)]


def test_memory_is_given_over_that_of_the_fewest_candidates(tmp_path: Path):
    first = {"peak_pages": 10, "page_bytes": 1_000_000, "peak_bytes": 2e9, "rows_per_token": 16.0}
    found = {1: first, 8: first | {"peak_pages": 15, "peak_bytes": 2.1e9}}
    assert "| 8 | 15 | 15.0 | 1.50 | 2100 | 1.05 | 16 |" in memory_table(found)
    draw_memory(found, tmp_path / "figure.svg")
    assert "N, candidates per step" in (tmp_path / "figure.svg").read_text()
