"""Test sets and real outputs that are no part of the project: in `../shared/data`, or where INFOGAIN_DATA says."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import checkout
import pytest

FOLDER = Path(os.environ.get("INFOGAIN_DATA", checkout.ROOT.parent / "shared" / "data"))
needs_shared_data = pytest.mark.skipif(
    not (FOLDER / "llada_generations.jsonl.gz").exists(),
    reason=f"no data in {FOLDER}: set INFOGAIN_DATA to a folder of the test sets and llada_generations.jsonl.gz",
)


def lines_of(name: str) -> list[dict[str, Any]]:
    """Of a file of JSON lines."""
    with gzip.open(FOLDER / name, "rt") if name.endswith(".gz") else (FOLDER / name).open() as file:
        return [json.loads(line) for line in file]


def outputs_of(task: str) -> list[dict[str, Any]]:
    """Real outputs of LLaDA-8B-Instruct: question, generation, answer."""
    return [line for line in lines_of("llada_generations.jsonl.gz") if line["task"] == task]
