"""`python -m vllm_infogain.batch`: two replicas on Ray give what one local engine gives, killed in between or not."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
from engines import running
from vllm import SamplingParams
from waiting import PATIENCE, wait_until

import vllm_infogain
from vllm_infogain.batch.folder import Folder
from vllm_infogain.batch.rows import row_request
from vllm_infogain.embedded.evaluation import held_out
from vllm_infogain.embedded.tasks import CANVAS

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]

FIELDS = tuple(SamplingParams.__struct_fields__)
KNOBS = [
    {"sampler": "entropy", "block_length": 0},
    {"sampler": "info_gain", "bypass_threshold": 1, "block_length": 8, "return_trajectory": True},
    {"sampler": "eb", "sampling_params": {"stop": ["="], "logprobs": 1}},
    {"sampling_params": {"extra_args": {"sampler": "beam", "beam_width": 2, "num_candidates": 4}}, "stop": "\n"},
    {"sampler": "best_of_n", "num_generations": 2, "logit_bias": {"9": -1.5}, "seed": 3},
]
PROBLEMS = [*held_out("sudoku", 40), *held_out("countdown", 40), *held_out("judgement", 40)]
ROWS = [
    {
        "id": f"row {number}",
        "prompt": problem.prompt,
        "max_tokens": CANVAS[problem.task],
        "temperature": 0.7 * (number % 2),
        "metadata": number,
        **KNOBS[number % len(KNOBS)],
    }
    for number, problem in enumerate(PROBLEMS * 2)
]
CHAT = {"id": "chat", "messages": [{"role": "user", "content": PROBLEMS[0].prompt}], "max_tokens": 20}
BAD = [
    ("{no json", "line 242 is no JSON"),
    ({"id": "unknown", "prompt": "x", "tempature": 1}, "tempature=1: unknown"),
    ({"id": "refused", "prompt": "x", "max_tokens": 4000}, "max_tokens=4000: prompt"),
    ({"id": "mistyped", "prompt": "x", "temperature": "hot"}, "temperature='hot': Expected `float`"),
]
NO_JSON = 241  # its number is its id


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("batch") / "rows.jsonl"
    rows = [*ROWS, CHAT, *(row for row, _ in BAD)]
    path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def expected() -> dict[str, tuple[list[int], str, dict]]:
    """By id: tokens, text and report of one local engine."""
    asked = [row_request(_columns(row), row["id"], defaults={}, seed=0, fields=FIELDS) for row in [*ROWS, CHAT]]
    params = [SamplingParams(**request.sampling_params) for request in asked]
    with running(None, model=object()) as engine:
        outputs = engine.llm.generate([request.prompt for request in asked[:-1]], params[:-1], use_tqdm=False)
        outputs += engine.llm.chat([asked[-1].prompt], params[-1:], use_tqdm=False)
    return {
        row["id"]: (list(output.outputs[0].token_ids), output.outputs[0].text, vllm_infogain.report(output))
        for row, output in zip([*ROWS, CHAT], outputs, strict=True)
    }


def _columns(row):
    return {name: value for name, value in row.items() if name != "id"}


class Batch:
    """The command, running."""

    def __init__(self, process: subprocess.Popen, folder: Folder, log: Path) -> None:
        self.process, self.folder, self.log = process, folder, log

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def members(self) -> list[psutil.Process]:
        """Its processes, Ray's and the engines' among them."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def wait_for_rows(self, count: int) -> None:
        def happened() -> bool:
            assert self.process.poll() is None, self.said()
            return self.folder.rows_done() >= count

        wait_until(happened, self.said, every=0.02)

    def summary(self) -> dict:
        assert self.process.wait(PATIENCE) == 0, self.said()
        return json.loads(self.said().splitlines()[-1])


@contextmanager
def batch(source: Path, out: Path) -> Iterator[Batch]:
    log = out.with_suffix(".log")
    command = [sys.executable, "-m", "vllm_infogain.batch", str(source), str(out), "--replicas", "2"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file, env=os.environ | {"OMP_NUM_THREADS": "1"})
    run = Batch(process, Folder(out), log)
    try:
        yield run
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def end(run: Batch, how: Callable[[], None]) -> None:
    """End the command, and see that nothing of it stays."""
    members = run.members()
    assert members
    how()
    run.process.wait(PATIENCE)
    _, alive = psutil.wait_procs(members, timeout=PATIENCE)
    assert not alive, f"outlived the command: {alive}"


def check(rows: list[dict], expected: dict) -> None:
    """Every id once; all as the local engine has it; the bad rows with their errors."""
    identifiers = [row["id"] for row in rows]
    assert len(identifiers) == len(set(identifiers)) == len(ROWS) + 1 + len(BAD)
    by_id = {row["id"]: row for row in rows}
    for name, (tokens, text, report) in expected.items():
        row = by_id[name]
        assert (row["error"], row["token_ids"], row["text"], row["report"]) == (None, tokens, text, report), name
    for row in ROWS:
        assert by_id[row["id"]]["metadata"] == row["metadata"]
        assert (by_id[row["id"]]["logprobs"] is not None) == ("logprobs" in row.get("sampling_params", {}))
    for row, said in BAD:
        found = by_id[row["id"] if isinstance(row, dict) else NO_JSON]
        assert said in found["error"]
        assert found["text"] is None


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for part in out.glob("*.jsonl") for line in part.read_text().splitlines()]


def test_a_killed_command_goes_on_and_every_row_comes_once_as_of_one_engine(source, expected, tmp_path):
    out = tmp_path / "out"
    with batch(source, out) as run:
        run.wait_for_rows(1)
        end(run, run.process.kill)
        assert run.process.returncode == -signal.SIGKILL
        done = run.folder.rows_done()
    assert 0 < done < len(ROWS)
    with batch(source, out) as run:
        summary = run.summary()
    assert (summary["rows"], summary["errors"]) == (len(ROWS) + 1 + len(BAD), len(BAD))
    assert summary["done_before"] == done
    check(lines(out), expected)
    with batch(source, out) as run:
        assert run.summary()["done_before"] == summary["rows"], "there is nothing left to do"
