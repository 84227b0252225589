"""`python -m benchmarks.paper` on real engines: killed and gone on with, on every family, and against a server."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import checkout
import paper_problems
import pytest
from checkpoints import write_dream, write_llada, write_sdar
from marked import refuse_unmarked
from math_verify_installed import needs_math_verify
from waiting import wait_until

from benchmarks.json_lines import read_lines
from benchmarks.paper.__main__ import main
from benchmarks.paper.tables import REASONING, TABLE2

pytestmark = [pytest.mark.engine, pytest.mark.slow]

TINY = ("--limit", "4", "--runs", "1", "--tasks", "tiny-sudoku", "tiny-multiplication", "--batch-size", "2", "--quiet")


def command(out: Path) -> list[str]:
    return [sys.executable, "-m", "benchmarks.paper", "table2", *TINY, "--out", str(out), "--no-figure"]


def start(out: Path) -> "subprocess.Popen[bytes]":
    refuse_unmarked()
    return subprocess.Popen(command(out), cwd=checkout.ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def rows_of(out: Path) -> int:
    return sum(len(read_lines(path)) - 1 for path in out.glob("*/*.jsonl"))


def table(out: Path) -> list[str]:
    """But for the times, which no two runs share."""
    lines = [line for line in (out / "table2.md").read_text().splitlines() if line.startswith("|")]
    assert lines[0].endswith("| CPU ms |")
    return [line.rpartition("|")[0].rpartition("|")[0] for line in lines]


def test_a_run_that_was_killed_and_started_again_ends_with_the_table_of_one_that_was_not(tmp_path: Path):
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    count = 2 * 2 * 4 * len(TABLE2.settings)  # K, tasks, problems
    with start(killed) as process:
        wait_until(lambda: rows_of(killed) >= 20 or process.poll() is not None, lambda: f"{rows_of(killed)} rows")
        process.kill()
    assert 20 <= rows_of(killed) < count
    first = max(killed.glob("*/*.jsonl"), key=lambda path: path.stat().st_mtime)
    first.write_bytes(first.read_bytes()[:-30])  # as if it had been ended while it wrote
    for out in (killed, whole):
        with start(out) as process:
            assert process.wait() == 0
        assert rows_of(out) == count
    assert table(killed) == table(whole)
    assert len(table(whole)) == 2 + 2 * (len(TABLE2.settings) + 1)


@needs_math_verify
@pytest.mark.parametrize("write", [write_llada, write_dream, write_sdar], ids=["llada", "dream", "sdar"])
def test_every_cell_of_table_2_runs_through_on_a_checkpoint_of_every_family(write, tmp_path: Path):
    refuse_unmarked()
    long = "max_sequence_length" if write is write_llada else "max_position_embeddings"
    write(tmp_path / "model", **{long: 4096})
    engine_args = {"dtype": "float32", "block_size": 32, "kv_cache_memory_bytes": 256 << 20}
    (tmp_path / "data").mkdir()
    data = paper_problems.write(tmp_path / "data")
    asked = ["table2", "--model", str(tmp_path / "model"), "--data", str(data), "--runs", "1", "--quiet"]
    asked += ["--engine-args", json.dumps(engine_args), "--set", "max_gen_toks=32", "--out", str(tmp_path / "out")]
    assert main(asked) == 0
    rows = [row for path in (tmp_path / "out").glob("*/*.jsonl") for row in read_lines(path)[1:]]
    assert len(rows) == 2 * len(REASONING) * len(TABLE2.settings)
    for row in rows:
        assert row["report"]["written"] == 32
        assert row["report"]["cumulative_entropy"] > 0
        assert row["grade"]["accuracy"] in (0, 1)
        assert row["text"]
    lines = [line for line in (tmp_path / "out" / "table2.md").read_text().splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 2 * (len(TABLE2.settings) + 1)
    figures = re.compile(r"\| [12] \| .+ \| \d+\.\d \| ")
    assert all(figures.match(line) for line in lines[2:] if "without look-ahead" not in line)
    assert (tmp_path / "out" / "table2.svg").read_text().startswith("<?xml")
