"""Which of two texts is better, for every pair of Table 5: by a judge behind an endpoint, or by a task's own rules."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks.json_lines import append_lines, read_lines
from benchmarks.paper.estimates import Results, Row
from benchmarks.paper.experiment import Cell
from benchmarks.paper.judge import Ask, Judgement, Pair, judged
from benchmarks.paper.problems import Question

BATCH = 32  # pairs between two writes
Prefer = Callable[[Cell, Cell], Mapping[int, float]]  # cells of ours and of another -> preferences for ours, by index


def compared(results: Results, ours: str, prefer: Prefer) -> Results:
    """With every other sampler's rows saying how they fared against ours: `preference` for ours, 1, 0 or between, and
    `longer`, by how many characters ours is. Rows without a verdict say neither."""
    rows = dict(results.rows)
    for cell, other in pairs_of_cells(results, ours):
        lengths = {row["index"]: len(row["text"]) for row in results.rows[cell]}
        preferences = prefer(cell, other)
        rows[other] = [
            {**row, "preference": preferences[index], "longer": lengths[index] - len(row["text"])}
            if (index := row["index"]) in preferences and index in lengths
            else row
            for row in results.rows[other]
        ]
    return Results(rows)


def pairs_of_cells(results: Results, ours: str) -> Iterator[tuple[Cell, Cell]]:
    """A cell of ours and one of another sampler, of the same task, K, temperature and run."""
    places = {_place(cell): cell for cell in results.rows if cell.setting.name == ours}
    for cell in results.rows:
        if cell.setting.name != ours and _place(cell) in places:
            yield places[_place(cell)], cell


def _place(cell: Cell) -> tuple[object, ...]:
    return (cell.task, cell.tokens_per_step, cell.temperature, cell.run)


def by_rules(results: Results) -> Prefer:
    """1 if ours alone is right, 0 if the other alone is, else a tie."""

    def prefer(ours: Cell, theirs: Cell) -> Mapping[int, float]:
        right = {row["index"]: row["grade"]["accuracy"] for row in results.rows[ours]}
        others = {row["index"]: row["grade"]["accuracy"] for row in results.rows[theirs]}
        return {index: (1 + right[index] - others[index]) / 2 for index in right.keys() & others.keys()}

    return prefer


class Judge:
    """Asks once about every pair, and keeps the verdicts in files as cells' rows are kept."""

    def __init__(self, ask: Ask, name: str, folder: Path, concurrency: int = 8) -> None:
        self._ask = ask
        self._name = name.replace("/", "--")
        self._folder = folder
        self._concurrency = concurrency

    def prefer(self, results: Results, questions: Mapping[str, Sequence[Question]]) -> Prefer:
        def prefer(ours: Cell, theirs: Cell) -> Mapping[int, float]:
            path = self._folder / f"{self._name}-{ours.key}-{theirs.key}.jsonl"
            first, second = (_texts(results.rows[cell]) for cell in (ours, theirs))
            prompts = {one.index: one.prompt for one in questions[ours.task]}
            both = sorted(first.keys() & second.keys())
            self._judge({index: Pair(prompts[index], first[index], second[index]) for index in both}, path)
            return _preferences(path)

        return prefer

    def _judge(self, pairs: Mapping[int, Pair], path: Path) -> None:
        done = {line["index"] for line in read_lines(path)}
        left = [index for index in pairs if index not in done]
        with ThreadPoolExecutor(self._concurrency) as pool:
            for start in range(0, len(left), BATCH):
                part = left[start : start + BATCH]
                found = list(pool.map(lambda index: judged(pairs[index], self._ask), part))
                append_lines(path, [{"index": index, **vars(one)} for index, one in zip(part, found, strict=True)])


def _preferences(path: Path) -> dict[int, float]:
    found = {line.pop("index"): Judgement(**line).preference for line in read_lines(path)}
    return {index: preference for index, preference in found.items() if preference is not None}


def _texts(rows: Sequence[Row]) -> dict[int, str]:
    return {row["index"]: row["text"] for row in rows}
