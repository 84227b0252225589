"""What is written first: factors or product of an equation, the work or the verdict of a judgement (Table 1).

Both answers depend on their parts one way only: a product follows from its factors, a verdict from the work.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path

from benchmarks.paper.drawing import axes, bars
from benchmarks.paper.estimates import Results, Row, Value, accuracy, of_report
from benchmarks.paper.experiment import Experiment, Setting
from benchmarks.paper.layout import given, k_of, percent, shown, table
from benchmarks.paper.problems import TINY, TINY_COUNT
from vllm_infogain.embedded.tasks import Problem

EQUATION = re.compile(r"[1-9]\*[1-9]=[01]{7}")
FACTORS, PRODUCT = (0, 2), range(4, 11)  # offsets in the canvas of "3*7=0010101"
VERDICT = re.compile(r".+,(yes|no)")
TRACED = {"return_trajectory": True}
COSTS = {"entropy": "cumulative_entropy", "rows": "rows"}  # columns, of reports


def digits_before_factors(row: Row) -> int | None:
    """Digits of the product that stood when the second factor was written; None: the text is no equation."""
    order = row["report"]["decode_order"]
    if not EQUATION.fullmatch(row["text"]):
        return None
    return sum(order[place] < max(order[factor] for factor in FACTORS) for place in PRODUCT)


def product_first(row: Row) -> float | None:
    """Whether most of the product stood before both factors did."""
    digits = digits_before_factors(row)
    return None if digits is None else float(digits > len(PRODUCT) / 2)


def factors_first(row: Row) -> float | None:
    """Whether both factors stood before any digit of the product."""
    digits = digits_before_factors(row)
    return None if digits is None else float(digits == 0)


def is_equation(row: Row) -> float:
    """Whether the text has the form of one, true or not."""
    return float(EQUATION.fullmatch(row["text"]) is not None)


def verdict_first(row: Row) -> float | None:
    """Whether the verdict was written before most of the work that it follows from; None: the text has none."""
    if not VERDICT.fullmatch(row["text"]):
        return None
    order, comma = row["report"]["decode_order"], row["text"].rindex(",")
    return float(sum(order[place] < order[comma + 1] for place in range(comma)) < comma / 2)


def verdict_is_right(row: Row) -> float:
    """Whether it says what is true of the claim, whatever the work says; no verdict is a wrong one."""
    return float(row["text"].rpartition(",")[2] == _problem(row["index"]).answer.rpartition(",")[2])


def work_contradicts(row: Row) -> float | None:
    """Whether the verdict is not what follows from the answer's own work, of answers that have both; or None."""
    match = re.fullmatch(r".+,.+=(\d+),(yes|no)", row["text"])
    if match is None:
        return None
    claim = re.search(r"=(\d+)$", _problem(row["index"]).prompt)
    assert claim is not None
    return float((int(match[1]) == int(claim[1])) != (match[2] == "yes"))


@cache
def _problems(count: int) -> list[Problem]:
    return TINY["tiny-judgement"](count)


def _problem(index: int) -> Problem:
    return _problems(TINY_COUNT * (1 + index // TINY_COUNT))[index]


def lines(results: Results, values: Sequence[Value]) -> Iterator[tuple[int | None, str, list[str], list[str]]]:
    """K, setting, its shares in %, and what it costs."""
    for count in results.tokens_per_step:
        for name in results.settings:
            which = {"setting": name, "tokens_per_step": count}
            shares = [percent(results.estimate(value, **which)) for value in values]
            yield count, name, shares, [shown(results.estimate(of_report(one), **which)) for one in COSTS.values()]


def multiplication_table(experiment: Experiment, results: Results) -> str:
    shares = ("product first", "paper", "factors first", "paper", "an equation", "right")
    rows = []
    for count, name, cells, costs in lines(results, (product_first, factors_first, is_equation, accuracy)):
        paper = experiment.paper.get((name, count), {})
        first = [cells[0], given(paper.get("product_first")), cells[1], given(paper.get("factors_first"))]
        rows.append([k_of(count), name, *first, *cells[2:], *costs])
    return table(["K", "sampler", *shares, *COSTS], rows)


def judgement_table(experiment: Experiment, results: Results) -> str:
    values = {
        "verdict first": verdict_first, "verdict against the work": work_contradicts,
        "verdict right": verdict_is_right, "all right": accuracy,
    }  # fmt: skip
    rows = [[k_of(count), name, *cells, *costs] for count, name, cells, costs in lines(results, [*values.values()])]
    return table(["K", "sampler", *values, *COSTS], rows)


def draw_multiplication(experiment: Experiment, results: Results, path: Path) -> None:
    _draw(results, path, {"product first": product_first, "factors first": factors_first, "right": accuracy})


def draw_judgement(experiment: Experiment, results: Results, path: Path) -> None:
    _draw(results, path, {"verdict first": verdict_first, "verdict right": verdict_is_right, "all right": accuracy})


def _draw(results: Results, path: Path, values: Mapping[str, Value]) -> None:
    """One plot per K: the values as bars, by setting."""
    counts = results.tokens_per_step
    with axes(path, count=len(counts), size=(4.8, 3.8)) as plots:
        for one, count in zip(plots, counts, strict=True):
            groups = {
                label: [results.estimate(value, setting=name, tokens_per_step=count) for name in results.settings]
                for label, value in values.items()
            }
            bars(one, results.settings, groups, 100)
            one.set_title(f"K={count}")
            one.set_ylabel("% of the answers")
            one.set_ylim(0, 122)  # with room for the legend
            one.set_yticks(range(0, 101, 20))
            one.legend(fontsize=8, loc="upper center", ncols=len(values), columnspacing=1)


# Look-ahead never bypassed: the digits of a product look sure before there are factors.
LOOKAHEAD = {"sampler": "info_gain", "bypass_threshold": 1.0, **TRACED}
SUM = {"state_uncertainty": "sum"}
MANY = {"num_candidates": 32, "position_temperature": 5.0}  # proposals of all places, not those of the surest
SETTINGS = (
    Setting("Entropy", {"sampler": "entropy", **TRACED}),
    Setting("Left to right", {"sampler": "ar", **TRACED}),
    Setting("Info-Gain", LOOKAHEAD),
    Setting("Info-Gain, sum", LOOKAHEAD | SUM),
    Setting("Info-Gain, wide", LOOKAHEAD | MANY),
    Setting("Info-Gain, wide, sum", LOOKAHEAD | MANY | SUM),
)

# Of longer answers, whose rows are many: the paper's bypass, and half as many candidates.
JUDGES = (
    *SETTINGS[:2],
    Setting("Info-Gain", {"sampler": "info_gain", **TRACED}),
    Setting("Info-Gain, sum", {"sampler": "info_gain", **TRACED, **SUM}),
    Setting("Info-Gain, wide, sum", LOOKAHEAD | MANY | SUM | {"num_candidates": 16}),
)

MULTIPLICATION = Experiment(
    name="multiplication",
    title="One-way multiplication: which is written first, the factors or their product",
    tasks=(),
    tiny_tasks=("tiny-multiplication",),
    settings=SETTINGS,
    temperatures=(1.0,),
    runs=1,
    layout=multiplication_table,
    paper_model="its model",
    draw=draw_multiplication,
    paper={
        ("Entropy", 1): {"product_first": 73.2},
        ("Info-Gain", 1): {"factors_first": 84},
    },
    says="The prompt is the bare `multiply`; the model chooses the factors. Product first: more than half of its\n"
    "seven binary digits stand when the second factor is written. Factors first: none does. Both are shares of the\n"
    "texts that have the form of an equation. Wide: N is 32, position temperature 5. No bypass; token temperature 1.",
)

TABLE1 = Experiment(
    name="table1",
    title="Table 1: judgement, the work and its verdict",
    tasks=(),
    tiny_tasks=("tiny-judgement",),
    settings=JUDGES,
    tokens_per_step=(1,),
    runs=1,
    layout=judgement_table,
    draw=draw_judgement,
    says="Verdict first: it is written before more than half of the work that it follows from. Verdict against the\n"
    "work: `yes` where the work's own result is not the claimed one, or `no` where it is. All right: work and\n"
    "verdict. Wide: N is 16, position temperature 5, no bypass. Token temperature 0.7.",
)

EXPERIMENTS = (MULTIPLICATION, TABLE1)
