"""The output folder: part files of finished rows, and beside them, in `.job`, what a second start goes on from."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vllm_infogain.batch import source

# Of a Parquet part; what has no fixed form is JSON as text.
PARTS = pa.schema([
    ("id", pa.string()), ("text", pa.string()), ("token_ids", pa.list_(pa.int64())), ("prompt_tokens", pa.int64()),
    ("report", pa.string()), ("logprobs", pa.string()), ("metadata", pa.string()), ("error", pa.string()),
])  # fmt: skip
AS_JSON = ("report", "logprobs", "metadata")


class Folder:
    """Owner: the driver."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.rows = self.path / ".job" / "rows"  # the input, staged
        self.done = self.path / ".job" / "done"  # Ray's checkpoint: ids of rows whose part is written
        self._job = self.path / ".job" / "job.json"

    def open(self, job: Mapping[str, Any]) -> dict[str, Any] | None:
        """Make it this job's. What `close_staging` was told, if that has been.

        Raises:
            InputError: it holds something else.
        """
        if self._job.exists():
            known = json.loads(self._job.read_text())
            differing = sorted(name for name in job if known.get(name) != job[name])
            if differing:
                raise source.InputError(
                    f"{self.path} holds a job with another {', '.join(differing)}; go on with the same, or give "
                    "another folder"
                )
            return known
        if self.path.exists() and any(entry.name != ".job" for entry in self.path.iterdir()):
            raise source.InputError(f"{self.path} is not empty, and no job of this command; give another folder")
        shutil.rmtree(self._job.parent, ignore_errors=True)  # of a start that was ended before its first row
        self._job.parent.mkdir(parents=True)
        return None

    def close_staging(self, job: Mapping[str, Any]) -> None:
        """The input is staged whole: from here on a second start goes on."""
        written = self._job.with_suffix(".tmp")
        written.write_text(json.dumps(job))
        written.rename(self._job)

    def rows_done(self) -> int:
        committed = [file for file in self.done.glob("*.parquet") if not file.name.endswith(".pending.parquet")]
        return sum(pq.read_metadata(file).num_rows for file in committed)

    def parts(self) -> list[Path]:
        return sorted(self.path.glob("part_*"))

    def errors(self) -> Iterator[str | None]:
        """Of every row in the parts."""
        for part in self.parts():
            if part.suffix == ".parquet":
                yield from pq.read_table(part, columns=["error"])["error"].to_pylist()
            else:
                with part.open(encoding="utf-8") as lines:
                    yield from (json.loads(line)["error"] for line in lines)


def output_row(identifier: Any, data: Mapping[str, Any], metadata: Any, error: str | None) -> dict[str, Any]:
    """One row of the output, in the order of its columns.

    Args:
        data: what Ray's engine stage has to say.
        error: why there is no text.
    """
    blank: dict[str, Any] = dict.fromkeys(PARTS.names)
    if error:
        return blank | {"id": identifier, "metadata": metadata, "error": error}
    return blank | {
        "id": identifier,
        "text": data["generated_text"],
        "token_ids": list(data["generated_tokens"]),
        "prompt_tokens": data["num_input_tokens"],
        "report": data["metrics"]["infogain"],
        "logprobs": data["logprobs"],
        "metadata": metadata,
    }


def part_table(texts: list[str]) -> pa.Table:
    """Rows of the output, each as JSON, as a table of one schema, whatever rows are among them."""
    rows = [json.loads(text) for text in texts]
    for row in rows:
        row["id"] = str(row["id"])
        for name in AS_JSON:
            row[name] = None if row[name] is None else json.dumps(row[name])
    return pa.Table.from_pylist(rows, schema=PARTS)
