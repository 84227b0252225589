"""Files of JSON lines that a kill may cut off in the midst of one."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def append_lines(path: Path, rows: Iterable[Row]) -> None:
    """On the disk when it returns."""
    drop_torn_line(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write("".join(f"{json.dumps(row)}\n" for row in rows))
        file.flush()
        os.fsync(file.fileno())


def read_lines(path: Path) -> list[Row]:
    """All whole lines; what follows the last line end was being written when its process ended."""
    if not path.exists():
        return []
    whole, end, _ = path.read_text().rpartition("\n")
    return [json.loads(line) for line in (whole + end).splitlines()]


def drop_torn_line(path: Path) -> None:
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == 0:
        path.unlink()  # not even its first line
    elif whole < len(content):
        os.truncate(path, whole)
