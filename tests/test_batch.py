"""`python -m vllm_infogain.batch`: two replicas on Ray give what one local engine gives, whatever is killed."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from engines import running
from held_back import GO_ON, TAKES
from marked import refuse_unmarked
from ray_cluster import MARK, QUIRKS, members, ray_cluster
from vllm import SamplingParams
from waiting import PATIENCE, wait_until

import vllm_infogain
from vllm_infogain.batch.folder import AS_JSON, Folder
from vllm_infogain.batch.rows import row_request
from vllm_infogain.embedded.evaluation import held_out
from vllm_infogain.embedded.tasks import CANVAS

OF_A_COMMAND = 3 * PATIENCE  # it starts Ray and two engines
pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(3 * OF_A_COMMAND)]

HOLD = ["--engine-args", '{"worker_extension_cls": "held_back.Extension"}']
FIELDS = tuple(SamplingParams.__struct_fields__)
KNOBS = [
    {"sampler": "entropy", "block_length": 0},
    {"sampler": "info_gain", "bypass_threshold": 1, "block_length": 8, "return_trajectory": True},
    {"sampler": "eb", "sampling_params": {"stop": ["="], "logprobs": 1}},
    {"sampling_params": {"extra_args": {"sampler": "beam", "beam_width": 2, "num_candidates": 4}}, "stop": "\n"},
    {"sampler": "best_of_n", "num_generations": 2, "logit_bias": {"9": -1.5}, "seed": 3},
]
PROBLEMS = [*held_out("sudoku", 27), *held_out("countdown", 27), *held_out("judgement", 26)]
ROWS = [
    {
        "id": f"row {number}",
        "prompt": problem.prompt,
        "max_tokens": CANVAS[problem.task],
        "temperature": 0.7 * (number % 2),
        "metadata": number,
        **KNOBS[number % len(KNOBS)],
    }
    for number, problem in enumerate(PROBLEMS)
]
assert len(ROWS) > 2 * TAKES, "two engines that are held back cannot decode them all"
CHAT = {"id": "chat", "messages": [{"role": "user", "content": PROBLEMS[0].prompt}], "max_tokens": 20}
BAD = [
    ("{no json", "line 82 is no JSON"),
    ({"id": "unknown", "prompt": "x", "tempature": 1}, "tempature=1: unknown"),
    ({"id": "refused", "prompt": "x", "max_tokens": 4000}, "max_tokens=4000: prompt"),
    ({"id": "mistyped", "prompt": "x", "temperature": "hot"}, "temperature='hot': Expected `float`"),
]
NO_JSON = 81  # its number is its id


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

    def __init__(self, process: subprocess.Popen, folder: Folder, log: Path, go_on: Path) -> None:
        self.process, self.folder, self.log, self.go_on = process, folder, log, go_on

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def members(self, title: str = "") -> list[psutil.Process]:
        """Processes, Ray's and the engines' among them, whose title has this text."""
        return members({MARK: str(self.go_on)}, title)

    def wait_for_a_part(self) -> None:
        def runs() -> bool:
            assert self.process.poll() is None, self.said()
            return True

        wait_until(lambda: runs() and self.folder.rows_done() > 0, self.said, every=0.2, patience=OF_A_COMMAND)

    def end(self, code: int = 0) -> None:
        """It ends, with this code, and nothing of it stays."""
        assert self.process.wait(OF_A_COMMAND) == code, self.said()
        wait_until(lambda: not self.members(), lambda: f"outlived the command: {self.members()}", every=0.5)

    def summary(self) -> dict:
        self.end()
        return json.loads(self.said().splitlines()[-1])


@contextmanager
def batch(source: Path, out: Path, *flags: str, held_back: bool = False) -> Iterator[Batch]:
    """The command on two replicas.

    Args:
        flags: with those of HOLD, engines can be held back.
        held_back: engines stand still before all is done, until there is the file `go_on`.
    """
    log, go_on = out.with_suffix(".log"), out.with_suffix(".go_on")
    command = [sys.executable, "-m", "vllm_infogain.batch", str(source), str(out), "--replicas", "2", *flags]
    environment = {MARK: str(go_on), GO_ON: str(go_on), "PYTHONPATH": str(Path(__file__).parent)}
    environment |= {"OMP_NUM_THREADS": "1", **QUIRKS}
    if not held_back:
        go_on.touch()
    refuse_unmarked()
    with log.open("w") as file:
        variables = os.environ | environment
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=variables, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
        )  # fmt: skip
    run = Batch(process, Folder(out), log, go_on)
    try:
        yield run
    finally:
        for left in run.members():
            left.kill()
        process.wait()


def check(rows: list[dict], expected: dict, bad: list = BAD) -> None:
    """Every id once; all as the local engine has it; the bad rows with their errors."""
    identifiers = [row["id"] for row in rows]
    assert len(identifiers) == len(set(identifiers)) == len(expected) + len(bad)
    by_id = {row["id"]: row for row in rows}
    for name, (tokens, text, report) in expected.items():
        row = by_id[name]
        assert (row["error"], row["token_ids"], row["text"], row["report"]) == (None, tokens, text, report), name
    for row in ROWS:
        assert by_id[row["id"]]["metadata"] == row["metadata"]
        assert (by_id[row["id"]]["logprobs"] is not None) == ("logprobs" in row.get("sampling_params", {}))
    for row, said in bad:
        found = by_id[row["id"] if isinstance(row, dict) else NO_JSON]
        assert said in found["error"]
        assert found["text"] is None


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for part in out.glob("*.jsonl") for line in part.read_text().splitlines()]


def parquet_rows(out: Path) -> list[dict]:
    rows = [row for part in out.glob("*.parquet") for row in pq.read_table(part).to_pylist()]
    for row in rows:
        row |= {name: row[name] and json.loads(row[name]) for name in AS_JSON}
        row["id"] = NO_JSON if row["id"] == str(NO_JSON) else row["id"]
    return rows


def test_a_killed_command_goes_on_and_every_row_comes_once_as_of_one_engine(source, expected, tmp_path):
    out = tmp_path / "out"
    with batch(source, out, *HOLD, held_back=True) as run:
        run.wait_for_a_part()
        run.process.kill()
        run.end(-signal.SIGKILL)
        done = run.folder.rows_done()
    assert 0 < done < len(ROWS)
    with batch(source, out, *HOLD) as run:
        summary = run.summary()
    assert (summary["rows"], summary["errors"]) == (len(ROWS) + 1 + len(BAD), len(BAD))
    assert summary["done_before"] == done
    check(lines(out), expected)
    with batch(source, out, *HOLD) as run:
        assert run.summary()["done_before"] == summary["rows"], "there is nothing left to do"


def test_the_job_ends_whole_though_a_replica_and_the_engine_of_the_other_are_killed(source, expected, tmp_path):
    out = tmp_path / "out"
    with batch(source, out, *HOLD, "--format", "parquet", held_back=True) as run:
        run.wait_for_a_part()
        replica, other = run.members("ray::MapWorker")
        (engine,) = [process for process in run.members("VLLM::EngineCore") if process.ppid() == other.pid]
        replica.kill()
        engine.kill()
        psutil.wait_procs([replica, engine, other], timeout=PATIENCE)
        assert run.folder.rows_done() < len(ROWS)
        run.go_on.touch()
        assert run.summary()["errors"] == len(BAD)
    check(parquet_rows(out), expected)


def test_ctrl_c_leaves_nothing_behind_but_what_is_done(source, expected, tmp_path):
    out = tmp_path / "out"
    with batch(source, out, *HOLD, held_back=True) as run:
        run.wait_for_a_part()
        os.killpg(run.process.pid, signal.SIGINT)  # as a terminal does
        run.end(130)
        assert "the same command goes on from here" in run.said()
    with batch(source, out, *HOLD) as run:
        assert run.summary()["done_before"] > 0
    check(lines(out), expected)


def test_a_cluster_of_two_nodes_decodes_a_parquet_file_and_stays(expected, tmp_path):
    table, out = tmp_path / "rows.parquet", tmp_path / "out"
    columns = {name for row in [*ROWS, CHAT] for name in row}
    filled_up = [{name: row.get(name) for name in columns} for row in [*ROWS, CHAT]]
    pq.write_table(pa.Table.from_pylist(filled_up), table)
    with ray_cluster(nodes=2, cpus=3) as cluster:
        with batch(table, out, "--address", cluster["RAY_ADDRESS"]) as run:
            assert run.summary()["errors"] == 0
        wait_until(lambda: not members(cluster, "MapWorker"), lambda: "replicas stay", every=0.5)
        assert len(members(cluster, "raylet/raylet")) == 2
    check(parquet_rows(out), expected, bad=[])
