"""Decodes what the cells' files lack, and reads all of their rows."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.json_lines import Row
from benchmarks.paper.engines import Engine, Output, Request
from benchmarks.paper.estimates import Results
from benchmarks.paper.experiment import Cell
from benchmarks.paper.files import CellFile
from benchmarks.paper.problems import Question

Questions = Mapping[str, Sequence[Question]]  # by task


@dataclass(frozen=True)
class Batch:
    """Questions of one cell that are decoded together."""

    cell: Cell
    questions: Sequence[Question]


class Job:
    """All cells of an experiment, with their questions and files."""

    def __init__(self, cells: Sequence[Cell], questions: Questions, folder: Path) -> None:
        self.cells = cells
        self.questions = questions
        self.folder = folder
        self.files = {cell: CellFile(folder, cell) for cell in cells}
        self.keys = {cell.key for cell in cells}

    @property
    def count(self) -> int:
        """Rows that there will be. A row that two settings share counts once."""
        return sum(len(self.questions[cell.task]) for cell in self._distinct())

    def missing(self) -> dict[Cell, list[Question]]:
        """What is still to be decoded, by cell."""
        found = {}
        for cell in self._distinct():
            questions = self.questions[cell.task]
            done = self.files[cell].read(questions)
            if left := [one for one in questions if one.index not in done]:
                found[cell] = left
        return found

    def store(self, cell: Cell, questions: Sequence[Question], outputs: Sequence[Output]) -> None:
        """Grade, and write to the cell's file."""
        self.files[cell].append(row(one, output) for one, output in zip(questions, outputs, strict=True))

    def results(self) -> Results:
        """All rows that the files have."""
        return Results({cell: list(self.files[cell].read(self.questions[cell.task]).values()) for cell in self.cells})

    def _distinct(self) -> list[Cell]:
        return list({cell.key: cell for cell in self.cells}.values())


def row(question: Question, output: Output) -> Row:
    return {
        "index": question.index, "prompt": question.checksum, "text": output.text, "tokens": output.tokens,
        "report": output.report, "grade": dict(question.grade(output.text)), "seconds": output.seconds,
        "cpu_seconds": output.cpu_seconds,
    }  # fmt: skip


def batches(missing: Mapping[Cell, Sequence[Question]], size: int) -> Iterator[Batch]:
    """Each of one cell, so that times are the cell's."""
    for cell, questions in missing.items():
        for start in range(0, len(questions), size):
            yield Batch(cell, questions[start : start + size])


def decode_missing(job: Job, engine: Engine, batch_size: int, show_progress: bool = True) -> None:
    """Decode batch by batch; each is in its file before the next begins."""
    from tqdm import tqdm

    missing = job.missing()
    if not missing:
        return
    left = sum(map(len, missing.values()))
    first = next(batches(missing, 1))
    engine.decode([Request.of(first.cell, first.questions[0])])  # pays for what is set up on first use
    with tqdm(total=job.count, initial=job.count - left, unit="row", disable=not show_progress) as bar:
        for batch in batches(missing, batch_size):
            bar.set_postfix_str(batch.cell.key.rpartition("-")[0], refresh=False)
            outputs = engine.decode([Request.of(batch.cell, question) for question in batch.questions])
            job.store(batch.cell, batch.questions, outputs)
            bar.update(len(outputs))


def seconds_left(job: Job, engine: Engine) -> float:
    """From a measurement of one question of each cell of the first run that has rows left, per task in one batch."""
    missing = job.missing()
    total, is_warm = 0.0, False
    for task in job.questions:
        left = {cell: questions for cell, questions in missing.items() if cell.task == task}
        if not left:
            continue
        run = min(cell.run for cell in left)
        requests = [Request.of(cell, questions[0]) for cell, questions in left.items() if cell.run == run]
        if not is_warm:
            engine.decode(requests[:1])
            is_warm = True
        start = time.perf_counter()
        engine.decode(requests)
        total += (time.perf_counter() - start) / len(requests) * sum(map(len, left.values()))
    return total
