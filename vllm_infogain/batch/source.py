"""The input: JSONL or Parquet in, rows with an id of their own out, written once as what Ray reads."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vllm_infogain.batch.rows import ID

SUFFIXES = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}
STAGED = pa.schema([("id", pa.string()), ("row", pa.string())])


class InputError(ValueError):
    """Nothing of the input can be decoded before this is mended."""


@dataclass(frozen=True)
class Row:
    key: str  # the id as text, by which rows are told apart
    identifier: Any  # the id as given
    columns: dict[str, Any]  # all others
    error: str | None = None  # why there are no columns


def files_of(path: Path) -> list[Path]:
    """The file, or all files of the folder.

    Raises:
        InputError: there is none, or of more than one format.
    """
    files = [path] if path.is_file() else sorted(file for file in path.glob("*") if file.suffix in SUFFIXES)
    formats = {SUFFIXES.get(file.suffix) for file in files}
    if len(formats) != 1 or None in formats:
        raise InputError(f"{path}: give a file, or a folder of files, ending in .jsonl or all in .parquet")
    return files


def read_rows(files: list[Path], id_column: str | None) -> Iterator[Row]:
    """In their order. A row without an id has its number as id, counted from 0 over all files.

    Raises:
        InputError: an id is neither text nor a whole number.
    """
    name = id_column or ID
    number = 0
    for file in files:
        for columns in _parquet(file) if SUFFIXES[file.suffix] == "parquet" else _lines(file):
            if isinstance(columns, str):
                yield Row(str(number), number, {}, f"{file.name}: {columns}")
            else:
                identifier = columns.pop(name, None)
                if identifier is None:
                    if id_column is not None:
                        raise InputError(f"row {number} of {file.name} has no {id_column!r}; give every row one")
                    identifier = number
                if not isinstance(identifier, str | int) or isinstance(identifier, bool):
                    raise InputError(f"{name}={identifier!r} in row {number}: give text or a whole number")
                yield Row(str(identifier), identifier, columns)
            number += 1


def _lines(file: Path) -> Iterator[dict[str, Any] | str]:
    """Rows; of a line that is none, what is wrong with it."""
    with file.open(encoding="utf-8", errors="surrogateescape") as lines:
        for count, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                line.encode()
                row = json.loads(line)
                yield row if isinstance(row, dict) else f"line {count} is no object"
            except ValueError as error:  # of JSON, or of UTF-8
                yield f"line {count} is no JSON: {error}"


def _parquet(file: Path) -> Iterator[dict[str, Any]]:
    for batch in pq.ParquetFile(file).iter_batches(1024):
        yield from batch.to_pylist()


def count_rows(files: list[Path], id_column: str | None) -> int:
    """How many rows there are.

    Raises:
        InputError: two rows have one id.
    """
    keys: set[str] = set()
    for row in read_rows(files, id_column):
        if row.key in keys:
            raise InputError(f"two rows have the id {row.identifier!r}; give each its own")
        keys.add(row.key)
    return len(keys)


def digest(files: list[Path]) -> str:
    """Of the files' bytes."""
    hashed = hashlib.blake2b(digest_size=16)
    for file in files:
        with file.open("rb") as stream:
            while part := stream.read(1 << 20):
                hashed.update(part)
    return hashed.hexdigest()


def stage(files: list[Path], id_column: str | None, folder: Path, rows_per_file: int) -> None:
    """Write all rows as Parquet of two columns of text, whatever columns and types each has: no table that Ray makes of
    some rows can then change or refuse another's."""
    folder.mkdir(parents=True)
    rows = read_rows(files, id_column)
    for index in range(1 << 62):
        part = list(islice(rows, rows_per_file))
        if not part:
            return
        texts = [
            json.dumps({"id": row.identifier, "columns": row.columns, "error": row.error}, default=str) for row in part
        ]
        table = pa.table({"id": [row.key for row in part], "row": texts}, schema=STAGED)
        pq.write_table(table, folder / f"{index:08}.parquet")
