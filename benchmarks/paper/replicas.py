"""Many replicas of the engine, by the batch command: all missing rows are one file of its input.

A batch that was ended leaves finished rows in its part files. The next start takes them first, and asks a new batch for
the rest.
"""

import json
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.json_lines import Row, read_lines
from benchmarks.paper.engines import Output, Request
from benchmarks.paper.experiment import Cell
from benchmarks.paper.problems import Question
from benchmarks.paper.run import Job

SECONDS_BETWEEN_LOOKS = 1.0


def decode_missing(job: Job, folder: Path, options: Sequence[str], plain: bool, show_progress: bool = True) -> None:
    """Decode what the job's files lack.

    Args:
        folder: of the batches.
        options: of the batch command: model, replicas, engine arguments.
        plain: prompts as text, not as chats.

    Raises:
        RuntimeError: the command failed, or some of its rows did.
    """
    for batch in sorted(folder.glob("*")):
        take(job, batch)
    missing = job.missing()
    if not missing:
        return
    batch = folder / str(1 + max((int(one.name) for one in folder.glob("*")), default=0))
    batch.mkdir(parents=True)
    rows = [row_of(cell, question, plain) for cell, questions in missing.items() for question in questions]
    (batch / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _run(batch, options, job.count, len(rows), show_progress)
    take(job, batch)
    if batch.exists():
        errors = [line["error"] for line in _parts(batch) if line["error"]]
        raise RuntimeError(f"{len(errors)} of {len(rows)} rows have errors, see {batch}; the first: {errors[:1]}")


def row_of(cell: Cell, question: Question, plain: bool) -> dict[str, Any]:
    """As the batch command takes it."""
    request = Request.of(cell, question)
    return {
        "id": f"{cell.key}/{question.index}",
        **({"prompt": request.prompt} if plain else {"messages": request.chat()}),
        "max_tokens": request.max_tokens, "temperature": request.temperature, "seed": request.seed,
        **({"stop": list(request.stop)} if request.stop else {}), **request.knobs,
    }  # fmt: skip


def take(job: Job, batch: Path) -> None:
    """Move a batch's finished rows to the cells' files. The batch is removed, unless it has rows of other jobs or
    errors."""
    missing = {cell.key: (cell, {one.index: one for one in left}) for cell, left in job.missing().items()}
    found: dict[str, dict[int, Row]] = defaultdict(dict)
    is_all = True
    for line in _parts(batch):
        key, _, index = str(line["id"]).rpartition("/")
        if key not in job.keys or line["error"]:
            is_all = False
        elif key in missing and int(index) in missing[key][1]:
            found[key][int(index)] = line
    for key, lines in found.items():
        cell, questions = missing[key]
        outputs = [Output(line["text"], line["token_ids"], line["report"], None, None) for line in lines.values()]
        job.store(cell, [questions[index] for index in lines], outputs)
    if is_all:
        shutil.rmtree(batch)


def _parts(batch: Path) -> Iterator[Row]:
    for part in sorted((batch / "out").glob("part_*.jsonl")):
        yield from read_lines(part)


def _run(batch: Path, options: Sequence[str], count: int, left: int, show_progress: bool) -> None:
    from tqdm import tqdm

    from vllm_infogain.batch.folder import Folder

    out = batch / "out"
    command = [sys.executable, "-m", "vllm_infogain.batch", str(batch / "rows.jsonl"), str(out), *options]
    with (
        subprocess.Popen(command, stdout=subprocess.DEVNULL) as process,
        tqdm(total=count, initial=count - left, unit="row", disable=not show_progress) as bar,
    ):
        while process.poll() is None:
            time.sleep(SECONDS_BETWEEN_LOOKS)
            bar.update(count - left + Folder(out).rows_done() - bar.n)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}; its messages are above")
