"""Means with standard errors, of the rows of many cells."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benchmarks.paper.experiment import Cell

Row = Mapping[str, Any]
Value = Callable[[Row], float | None]  # None: the row has none, and does not count


@dataclass(frozen=True)
class Estimate:
    mean: float
    error: float  # standard error over the draw of problems; nan of a single one
    count: int  # problems

    def __format__(self, form: str) -> str:
        return f"{self.mean:{form}}" + ("" if math.isnan(self.error) else f" ± {self.error:{form}}")

    def times(self, factor: float) -> "Estimate":
        return Estimate(self.mean * factor, self.error * factor, self.count)


def accuracy(row: Row) -> float | None:
    return row["grade"].get("accuracy")


def of_report(name: str) -> Value:
    """A figure of the reports: cumulative_entropy (nats), forwards, rows, steps, ..."""
    return lambda row: row["report"][name]


def cpu_ms(row: Row) -> float | None:
    return None if row["cpu_seconds"] is None else 1000 * row["cpu_seconds"]


def estimate(values: Mapping[Any, Sequence[float]]) -> Estimate | None:
    """Of values by problem. Runs of one problem are no new problems: its mean counts once."""
    means = [sum(of_one) / len(of_one) for of_one in values.values() if of_one]
    if not means:
        return None
    mean = sum(means) / len(means)
    if len(means) == 1:
        return Estimate(mean, math.nan, 1)
    variance = sum((one - mean) ** 2 for one in means) / (len(means) - 1)
    return Estimate(mean, math.sqrt(variance / len(means)), len(means))


def average(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Over tasks, each with the same weight; None if one of them is missing."""
    known = [one for one in estimates if one is not None]
    if not known or len(known) < len(estimates):
        return None
    error = math.sqrt(sum(one.error**2 for one in known)) / len(known)
    return Estimate(sum(one.mean for one in known) / len(known), error, sum(one.count for one in known))


@dataclass(frozen=True)
class Results:
    """All rows of an experiment, by cell."""

    rows: Mapping["Cell", Sequence[Row]]

    def select(self, **which: Any) -> Iterator[tuple["Cell", Row]]:
        """Rows of the cells with these fields: `task`, `setting` (its name), `tokens_per_step`, `temperature`, ..."""
        name = which.pop("setting", None)
        for cell, rows in self.rows.items():
            if name in (None, cell.setting.name) and all(getattr(cell, key) == value for key, value in which.items()):
                for row in rows:
                    yield cell, row

    def estimate(self, value: Value, **which: Any) -> Estimate | None:
        """Of all rows selected; None if there are none."""
        values: dict[Any, list[float]] = defaultdict(list)
        for cell, row in self.select(**which):
            if (one := value(row)) is not None:
                values[cell.task, row["index"]].append(one)
        return estimate(values)

    def average(self, value: Value, **which: Any) -> Estimate | None:
        """The mean over tasks."""
        return average([self.estimate(value, task=task, **which) for task in self.tasks])

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(cell.task for cell in self.rows))

    @property
    def settings(self) -> list[str]:
        return list(dict.fromkeys(cell.setting.name for cell in self.rows))

    @property
    def tokens_per_step(self) -> list[int | None]:
        return list(dict.fromkeys(cell.tokens_per_step for cell in self.rows))

    @property
    def temperatures(self) -> list[float | None]:
        return list(dict.fromkeys(cell.temperature for cell in self.rows))
