"""Table 5's comparisons, by rules and by a judge whose verdicts are kept, and replicas' part files. No engine."""

import json
from pathlib import Path

import checkout  # noqa: F401
import pytest

from benchmarks.paper import replicas
from benchmarks.paper.estimates import Results
from benchmarks.paper.experiment import Cell, Experiment, Setting
from benchmarks.paper.layout import win_rates
from benchmarks.paper.problems import Question
from benchmarks.paper.run import Job
from benchmarks.paper.verdicts import Judge, by_rules, compared

OURS, THEIRS = Setting("Info-Gain", {"sampler": "info_gain"}), Setting("Entropy", {"sampler": "entropy"})
CELLS = [Cell("writing", setting, 1, 0.5, 0) for setting in (OURS, THEIRS)]
QUESTIONS = {"writing": [Question(index, f"Write {index}.", 8, 0.7, (), lambda text: {}) for index in range(4)]}
EXPERIMENT = Experiment(
    name="table0", title="Table 0", tasks=("writing",), tiny_tasks=(), settings=(OURS, THEIRS), layout=win_rates,
    tokens_per_step=(1,), temperatures=(0.5,), compares="Info-Gain",
)  # fmt: skip


def rows(texts: list[str], right: list[float]) -> list[dict]:
    report = {"cumulative_entropy": 1.0}
    return [
        {"index": index, "text": text, "grade": {"accuracy": each}, "report": report}
        for index, (text, each) in enumerate(zip(texts, right, strict=True))
    ]


RESULTS = Results(
    {CELLS[0]: rows(["good", "good one", "bad", "same"], [1, 1, 0, 1]),
     CELLS[1]: rows(["bad", "bad", "good", "same"], [0, 1, 1, 0])}
)  # fmt: skip


def test_by_rules_the_right_answer_wins_and_two_of_a_kind_tie():
    judged = compared(RESULTS, "Info-Gain", by_rules(RESULTS))
    assert [row["preference"] for _, row in judged.select(setting="Entropy")] == [1, 0.5, 0, 1]
    assert [row["longer"] for _, row in judged.select(setting="Entropy")] == [1, 5, -1, 0]
    table = win_rates(EXPERIMENT, judged)
    assert "| 1 | Entropy | 62.5% (" in table
    assert "| 1 | Info-Gain | 1.0 ± 0.0 |" in table


def test_a_judge_is_asked_once_about_each_pair_and_its_verdicts_are_kept(tmp_path: Path):
    asked = []

    def ask(question: str) -> str:
        """Prefers what says good; of equals says nothing that is a verdict."""
        asked.append(question)
        first, second = question.split("<text_a>")[1].split("<text_b>")
        return {(True, False): "Verdict: A", (False, True): "Verdict: B"}.get(("good" in first, "good" in second), "?")

    judge = Judge(ask, "org/judge", tmp_path)
    judged = compared(RESULTS, "Info-Gain", judge.prefer(RESULTS, QUESTIONS))
    assert [row.get("preference") for _, row in judged.select(setting="Entropy")] == [1, 1, 0, None]
    assert len(asked) == 8
    (path,) = tmp_path.glob("*.jsonl")
    with path.open("a") as file:
        file.write('{"index": 3, "ours_f')  # being written when it was killed
    again = compared(RESULTS, "Info-Gain", judge.prefer(RESULTS, QUESTIONS))
    assert again.rows == judged.rows
    assert len(asked) == 8
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert compared(RESULTS, "Info-Gain", judge.prefer(RESULTS, QUESTIONS)).rows == judged.rows
    assert len(asked) == 10, "both orders of one pair"


def test_finished_rows_of_a_batch_that_was_ended_go_to_their_cells(tmp_path: Path):
    job = Job(CELLS, QUESTIONS, tmp_path / "rows")
    asked = [replicas.row_of(cell, one, plain=False) for cell in CELLS for one in QUESTIONS["writing"]]
    assert len({row["id"] for row in asked}) == 8
    assert asked[0]["messages"] == [{"role": "user", "content": "Write 0."}]
    assert {row["num_candidates"] for row in asked[:4]} == {8}
    assert "num_candidates" not in asked[4]
    out = tmp_path / "batches" / "1" / "out"
    out.mkdir(parents=True)
    done = [{"id": row["id"], "text": "x", "token_ids": [1], "report": {"forwards": 3}, "error": None} for row in asked]
    lines = [json.dumps(line) + "\n" for line in done]
    (out / "part_0.jsonl").write_text("".join(lines[:3]) + lines[3][:20])
    replicas.take(job, out.parent)
    assert not out.exists(), "its rows are all taken"
    assert {cell: [one.index for one in left] for cell, left in job.missing().items()} == {
        CELLS[0]: [3], CELLS[1]: [0, 1, 2, 3],
    }  # fmt: skip
    out.mkdir(parents=True)
    (out / "part_0.jsonl").write_text("".join(lines[2:7]) + json.dumps(done[7] | {"error": "no room"}) + "\n")
    replicas.take(job, out.parent)
    assert out.exists(), "a row's error stays to be read"
    assert {cell: [one.index for one in left] for cell, left in job.missing().items()} == {CELLS[1]: [3]}
    assert [row["text"] for _, row in job.results().select(setting="Info-Gain")] == ["x"] * 4


def test_rows_with_errors_are_named_and_asked_for_again(tmp_path: Path, monkeypatch):
    job = Job(CELLS, QUESTIONS, tmp_path / "rows")

    def decode(batch: Path, options, count: int, left: int, show_progress: bool) -> None:
        rows = [json.loads(line) for line in (batch / "rows.jsonl").read_text().splitlines()]
        assert (count, left) == (8, len(rows))
        (batch / "out").mkdir()
        (batch / "out" / "part_0.jsonl").write_text(
            "".join(
                json.dumps({"id": row["id"], "text": "", "token_ids": [], "report": {}, "error": error}) + "\n"
                for row, error in zip(rows, [None] * 7 + errors, strict=False)
            )
        )

    errors = ["no room"]
    monkeypatch.setattr(replicas, "_run", decode)
    with pytest.raises(RuntimeError, match=r"1 of 8 rows have errors.*no room"):
        replicas.decode_missing(job, tmp_path / "batches", [], plain=True, show_progress=False)
    errors = [None]
    replicas.decode_missing(job, tmp_path / "batches", [], plain=True, show_progress=False)
    assert not job.missing()
