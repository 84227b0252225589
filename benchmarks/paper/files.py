"""Files of raw outputs: one per cell, JSON lines, which a second start goes on from."""

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.json_lines import Row, append_lines, drop_torn_line, read_lines
from benchmarks.paper.experiment import Cell
from benchmarks.paper.problems import Question


class CellFile:
    """The rows of one cell. The first line says what was asked; owner: the runner."""

    def __init__(self, folder: Path, cell: Cell) -> None:
        self.path = folder / f"{cell.key}.jsonl"
        self._cell = cell

    def read(self, questions: Sequence[Question]) -> dict[int, Row]:
        """Rows of these questions, by index. Rows of questions that were worded otherwise do not count."""
        checksums = {one.index: one.checksum for one in questions}
        rows = {row["index"]: row for row in read_lines(self.path) if "index" in row}
        return {index: rows[index] for index in checksums if rows.get(index, {}).get("prompt") == checksums[index]}

    def append(self, rows: Iterable[Row]) -> None:
        drop_torn_line(self.path)
        head = [] if self.path.exists() else [self._cell.description()]
        append_lines(self.path, [*head, *rows])


def folder_of(out: Path, model: str | None) -> Path:
    """Where a model's rows lie. Another model, or the same with other weights, has another folder."""
    from vllm_infogain import engine_defaults

    path = Path(engine_defaults.model_args(model)["model"])
    name = (model or "infogain-tiny").strip("/").replace("/", "--")
    return out / (f"{name}-{_digest(path)}" if path.is_dir() else name)


def _digest(checkpoint: Path) -> str:
    """Of its configuration, and of its weights' first MiB and sizes."""
    hashed = hashlib.blake2b(digest_size=4)
    for file in sorted([*checkpoint.glob("*.json"), *checkpoint.glob("*.safetensors")]):
        with file.open("rb") as stream:
            hashed.update(f"{file.name} {file.stat().st_size}".encode() + stream.read(1 << 20))
    return hashed.hexdigest()
