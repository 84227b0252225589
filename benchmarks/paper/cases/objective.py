"""The distribution of J over candidate actions (Figure 6)."""

from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.paper.drawing import axes
from benchmarks.paper.estimates import Results, Row, Value
from benchmarks.paper.experiment import Experiment, Setting
from benchmarks.paper.layout import k_of, percent, shown, table
from benchmarks.paper.problems import TITLES

Choose = Callable[[Sequence[float], int], Sequence[float]]  # of a step's J, and the index of the one taken


def objectives(row: Row, choose: Choose) -> list[float]:
    """J, in nats, of the candidates chosen of every step that compared some."""
    found: list[float] = []
    for step in row["report"]["trajectory"]:
        if step["objective"]:
            found += choose([one for one in step["objective"] if one is not None], step["chosen"])
    return found


# Without `prune`, every candidate has a J, the greedy action's first.
CHOICES: dict[str, Choose] = {
    "all candidates": lambda all_of_step, taken: all_of_step,
    "the greedy action": lambda all_of_step, taken: all_of_step[:1],
    "the action taken": lambda all_of_step, taken: all_of_step[taken : taken + 1],
}


def mean_of(choose: Choose) -> Value:
    def value(row: Row) -> float | None:
        found = objectives(row, choose)
        return sum(found) / len(found) if found else None

    return value


def share_above(choose: Choose, bound: float) -> Value:
    def value(row: Row) -> float | None:
        found = objectives(row, choose)
        return sum(one > bound for one in found) / len(found) if found else None

    return value


ABOVE = 0.01  # nats


def objective_table(experiment: Experiment, results: Results) -> str:
    head = ["task", "K", "sampler", *(f"mean J, {name}" for name in CHOICES), f"candidates with J above {ABOVE}"]
    rows = []
    for task in results.tasks:
        for count in results.tokens_per_step:
            for name in results.settings:
                which = {"task": task, "setting": name, "tokens_per_step": count}
                means = [shown(results.estimate(mean_of(choose), **which), ".3f") for choose in CHOICES.values()]
                above = percent(results.estimate(share_above(CHOICES["all candidates"], ABOVE), **which))
                rows.append([TITLES[task], k_of(count), name, *means, above])
    return table(head, rows)


def draw_objective(experiment: Experiment, results: Results, path: Path) -> None:
    """One plot per task and K, of the first setting: J of all candidates, and of those taken."""
    panels = [(task, count) for task in results.tasks for count in results.tokens_per_step]
    name = results.settings[0]
    with axes(path, count=len(panels), size=(3.2, 3.2)) as plots:
        for one, (task, count) in zip(plots, panels, strict=True):
            for label in ("all candidates", "the action taken"):
                values = [
                    value
                    for _, row in results.select(task=task, setting=name, tokens_per_step=count)
                    for value in objectives(row, CHOICES[label])
                ]
                one.hist(
                    values, bins=50, range=(-1.5, 0.5), histtype="step", label=label,
                    weights=[100 / len(values)] * len(values),
                )  # fmt: skip
            one.axvline(0, color="grey", linewidth=0.8)
            one.set_title(f"{TITLES[task]}, K={count}")
            one.set_xlabel("J, nats")
        plots[0].set_ylabel("% of the candidates")
        plots[0].legend(fontsize=8, loc="upper left")


LOOKAHEAD = {"sampler": "info_gain", "bypass_threshold": 1.0, "return_trajectory": True}
FIGURE6 = Experiment(
    name="figure6",
    title="Figure 6: the distribution of J",
    tasks=("gsm8k",),
    tiny_tasks=("tiny-sudoku", "tiny-countdown"),
    settings=(Setting("Info-Gain", LOOKAHEAD),),
    runs=1,
    layout=objective_table,
    draw=draw_objective,
    says="N is 8 and nothing is bypassed. For K = 1 and a consistent model the mean of J over tokens is at most 0\n"
    "(Proposition C.1); a trained model is not consistent everywhere, and with K = 2 there is no such bound.",
)

EXPERIMENTS = (FIGURE6,)
