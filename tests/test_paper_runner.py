"""The runner of the paper's tables: cells, files that a second start goes on from, means, pages. No engine."""

import json
import math
from pathlib import Path

import checkout  # noqa: F401
import pytest

from benchmarks.paper.catalogue import experiments
from benchmarks.paper.engines import Output, Request
from benchmarks.paper.estimates import Estimate, Results, accuracy, average, estimate, of_report
from benchmarks.paper.experiment import Cell, Experiment, Setting
from benchmarks.paper.files import CellFile
from benchmarks.paper.layout import by_task, page
from benchmarks.paper.problems import TINY, Question, questions
from benchmarks.paper.run import Job, decode_missing, seconds_left
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.params import parse_params

ENTROPY = Setting("Entropy", {"sampler": "entropy"})
INFO_GAIN = Setting("Info-Gain", {"sampler": "info_gain"})
EXPERIMENT = Experiment(
    name="table0", title="Table 0", tasks=(), tiny_tasks=("tiny-sudoku", "tiny-countdown"), runs=2,
    settings=(ENTROPY, INFO_GAIN), layout=by_task, paper={("Info-Gain", 1): {"average": 62.0}}, paper_model="M",
)  # fmt: skip


def asked(task: str, count: int = 5) -> list[Question]:
    return [
        Question(i, f"{task} {i}", 4, 0.7, (), lambda text: {"accuracy": float(text.endswith("1"))})
        for i in range(count)
    ]


class Echo:
    """Answers with the seed; counts what it was asked, and may be killed after some rows."""

    def __init__(self, killed_after: int = 10**9) -> None:
        self.requests: list[Request] = []
        self.left = killed_after

    def decode(self, requests):
        if len(requests) > self.left:
            raise KeyboardInterrupt
        self.left -= len(requests)
        self.requests += requests
        report = {"cumulative_entropy": 2.0, "forwards": 3}
        return [Output(f"{request.seed % 2}", [1], report, 0.5, 0.25) for request in requests]


def job(folder: Path, count: int = 5, **which) -> Job:
    tasks = {task: asked(task, count) for task in EXPERIMENT.tiny_tasks}
    return Job(EXPERIMENT.cells(tiny=True, **which), tasks, folder)


def test_a_start_after_an_end_decodes_what_is_missing_and_nothing_twice(tmp_path: Path):
    whole = Echo()
    decode_missing(job(tmp_path / "whole"), whole, 2, show_progress=False)
    expected = by_task(EXPERIMENT, job(tmp_path / "whole").results())
    ended = Echo(killed_after=20)
    with pytest.raises(KeyboardInterrupt):
        decode_missing(job(tmp_path / "ended"), ended, 2, show_progress=False)
    again = job(tmp_path / "ended")
    left = sum(map(len, again.missing().values()))
    assert 0 < left < again.count
    second = Echo()
    decode_missing(again, second, 3, show_progress=False)
    assert len(second.requests) == left + 1, "one to warm up"
    assert by_task(EXPERIMENT, again.results()) == expected
    third = Echo()
    decode_missing(job(tmp_path / "ended"), third, 3, show_progress=False)
    assert not third.requests


@pytest.mark.parametrize("kept", ["a part of a row", "a part of the first line", "the first line alone"])
def test_a_torn_line_is_dropped_and_its_row_decoded_again(kept: str, tmp_path: Path):
    first = job(tmp_path)
    decode_missing(first, Echo(), 2, show_progress=False)
    cell = first.cells[0]
    path = first.files[cell].path
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    torn = {
        "a part of a row": whole[:-20], "a part of the first line": lines[0][:10], "the first line alone": lines[0],
    }[kept]  # fmt: skip
    path.write_bytes(torn)
    again = job(tmp_path)
    assert [one.index for one in again.missing()[cell]] == ([4] if kept == "a part of a row" else [0, 1, 2, 3, 4])
    decode_missing(again, Echo(), 2, show_progress=False)
    assert path.read_bytes() == whole
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_rows_of_a_question_that_was_worded_otherwise_do_not_count(tmp_path: Path):
    before = job(tmp_path)
    decode_missing(before, Echo(), 9, show_progress=False)
    cell = before.cells[0]
    changed = [*asked(cell.task)[:4], Question(4, "another", 4, 0.7, (), lambda text: {})]
    assert len(CellFile(tmp_path, cell).read(changed)) == 4


def test_a_quick_look_is_gone_on_with_by_the_whole_run(tmp_path: Path):
    decode_missing(job(tmp_path, count=2, runs=1), Echo(), 9, show_progress=False)
    missing = job(tmp_path).missing()
    assert {len(left) for cell, left in missing.items() if cell.run == 0} == {3}
    assert {len(left) for cell, left in missing.items() if cell.run == 1} == {5}


def test_a_dry_run_counts_rows_and_writes_none(tmp_path: Path):
    one = job(tmp_path)
    assert one.count == 2 * 2 * 2 * 2 * 5, "runs x K x tasks x samplers x problems"
    echo = Echo()
    assert seconds_left(one, echo) > 0
    assert len(echo.requests) == 1 + 2 * 4, "one to warm up, then each cell of the first run once"
    assert not list(tmp_path.iterdir())


def test_settings_of_equal_parameters_share_their_rows(tmp_path: Path):
    settings = (ENTROPY, Setting("the same", {"sampler": "entropy"}))
    cells = [Cell("tiny-sudoku", setting, 1, None, 0) for setting in settings]
    shared = Job(cells, {"tiny-sudoku": asked("tiny-sudoku")}, tmp_path)
    assert shared.count == 5
    decode_missing(shared, Echo(), 9, show_progress=False)
    assert {len(rows) for rows in shared.results().rows.values()} == {5}


def test_the_error_is_over_problems_and_runs_of_one_problem_are_no_new_ones():
    assert estimate({"a": [1.0], "b": [0.0], "c": [1.0], "d": [0.0]}).error == pytest.approx(math.sqrt(1 / 3 / 4))
    assert estimate({"a": [1.0] * 9, "b": [0.0] * 9, "c": [1.0], "d": [0.0]}).error == pytest.approx(
        math.sqrt(1 / 3 / 4)
    )
    assert estimate({}) is None
    assert f"{estimate({'a': [1.0, 0.0]}):.1f}" == "0.5", "of one problem there is none"
    assert average([Estimate(1.0, 0.3, 5), Estimate(0.0, 0.4, 5)]) == Estimate(0.5, pytest.approx(0.25), 10)
    assert average([Estimate(1.0, 0.3, 5), None]) is None, "no mean of other tasks than the line beside has"


def test_a_table_has_a_line_per_k_and_sampler_and_the_papers_figure_where_it_is_known(tmp_path: Path):
    done = job(tmp_path, count=4)
    decode_missing(done, Echo(), 9, show_progress=False)
    said = page(EXPERIMENT, done.results(), ["Said."], "table0.svg")
    lines = [[cell.strip() for cell in line[1:-1].split("|")] for line in said.splitlines() if line.startswith("|")]
    head = ["K", "sampler", "Sudoku", "Countdown", "average", "paper, M", "entropy", "forwards", "CPU ms"]
    assert lines[0] == head
    by_name = {tuple(line[:2]): dict(zip(head, line, strict=True)) for line in lines[2:]}
    assert by_name["1", "Info-Gain"]["paper, M"] == "62"
    assert by_name["2", "Info-Gain"]["paper, M"] == ""
    assert by_name["1", "Entropy"]["Sudoku"] == "50.0 ± 28.9"
    assert by_name["1", "Entropy"]["entropy"] == "2.0 ± 0.0"
    assert by_name["1", "Entropy"]["CPU ms"] == "250"
    assert said.startswith("# Table 0\n\nSaid.\n")
    assert said.endswith("![Table 0](table0.svg)\n")


def test_every_cell_of_every_experiment_asks_for_what_the_engine_admits():
    lengths = {task: questions(task, 1)[0].max_tokens for task in TINY}
    seen = 0
    for experiment in experiments().values():
        for tiny in (True, False):
            for cell in {one.key: one for one in experiment.cells(tiny=tiny, runs=1)}.values():
                length = cell.max_tokens or lengths.get(cell.task, 256)
                try:
                    parse_params(cell.knobs, defaults={}, temperature=0.7, seed=0, canvas_length=length)
                except ParameterError as error:
                    raise AssertionError(f"{experiment.name}: {cell}") from error
                seen += 1
    assert seen


def test_what_an_experiment_has_not_is_named():
    with pytest.raises(
        ValueError, match="table0 has no Beam; it has tiny-sudoku, tiny-countdown and Entropy, Info-Gain"
    ):
        EXPERIMENT.cells(tiny=True, samplers=["Beam"])


def test_rows_are_selected_by_their_cells():
    cell = Cell("tiny-sudoku", ENTROPY, 1, None, 0)
    row = {"index": 0, "grade": {"accuracy": 1.0}, "report": {"forwards": 3}}
    results = Results({cell: [row], Cell("tiny-sudoku", INFO_GAIN, 1, None, 0): []})
    assert results.estimate(accuracy, setting="Entropy").mean == 1.0
    assert results.estimate(of_report("forwards"), setting="Entropy", tokens_per_step=1).mean == 3
    assert results.estimate(accuracy, setting="Info-Gain") is None
