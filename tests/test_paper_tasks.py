"""The paper's tasks in lm-eval, on a few problems in local files: prompts, data, settings, scores. No engine."""

import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import checkout
import paper_problems
import pytest
from math_verify_installed import needs_math_verify
from paper_problems import PROBLEMS
from waiting import PATIENCE

from benchmarks.paper import problems, settings
from benchmarks.paper.graders import countdown, sudoku
from benchmarks.paper.tasks import prompts, rows
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.params import LOOKAHEAD_SAMPLERS, SAMPLERS, parse_params

TASKS = checkout.ROOT / "benchmarks" / "paper" / "tasks"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return paper_problems.write(tmp_path_factory.mktemp("data"))


def evaluate(
    tasks: list[str], answers: dict[str, str], data: Path, include: Path = TASKS, **more: Any
) -> dict[str, Any]:
    """lm-eval's results with a model that knows by heart what to write for a prompt with each of these words."""
    from lm_eval import simple_evaluate
    from lm_eval.api.model import LM
    from lm_eval.tasks import TaskManager

    class ByHeart(LM):
        def generate_until(self, requests, disable_tqdm=False):
            return [next(answers[word] for word in answers if word in request.args[0]) for request in requests]

        def loglikelihood(self, requests):
            raise AssertionError("no task asks for it")

        loglikelihood_rolling = loglikelihood

    manager = TaskManager(include_path=str(include), include_defaults=False, metadata={"data": str(data)})
    return simple_evaluate(
        ByHeart(), tasks=tasks, task_manager=manager, bootstrap_iters=0, confirm_run_unsafe_code=True, **more
    )


def word_of(problem: dict[str, Any]) -> str:
    """By which its prompt is told from the other tasks'."""
    key = next(key for key in ("question", "problem", "text", "prompt", "input", "Puzzle") if key in problem)
    return prompts.in_rows(problem[key]) if key == "Puzzle" else problem[key]


@needs_math_verify
def test_every_task_scores_what_solves_it_and_what_does_not(data: Path):
    for place, value in ((1, 1.0), (2, 0.0)):
        answers = {word_of(case[0]): case[place] for case in PROBLEMS.values()}
        results = evaluate(["paper"], answers, data)["results"]
        accuracies = {task: scores.get("accuracy,none") for task, scores in results.items() if task != "paper"}
        words = accuracies.pop("paper_writing", None)
        assert accuracies == {f"paper_{task}": value for task in PROBLEMS if task != "writing"}
        assert words is None
        assert results["paper_writing"]["words,none"] == len(PROBLEMS["writing"][place].split())


def test_a_prompt_holds_the_papers_number_of_examples_or_what_is_asked_for(data: Path):
    def shown(task: str, **more: Any) -> str:
        results = evaluate([f"paper_{task}"], {"": "?"}, data, **more)
        return results["samples"][f"paper_{task}"][0]["arguments"][0][0]

    assert shown("sudoku").count("Puzzle:") == 5 + 1
    assert shown("sudoku").endswith("\n\nPuzzle:\n0102\n2000\n0210\n0320\n<answer>\n")
    assert shown("countdown").count("Question:") == 3 + 1
    assert shown("gsm8k").count("Problem:") == 1
    assert shown("gsm8k", num_fewshot=4).count("Problem:") == 4 + 1
    assert "double(x, y=0)" in shown("mbpp")
    assert "assert" not in shown("mbpp")


def test_the_papers_tables_ask_and_grade_as_lm_eval_does(data: Path):
    for task in ("countdown", "humaneval"):
        (question,) = problems.questions(task, None, str(data))
        results = evaluate([f"paper_{task}"], {"": "?"}, data)
        prompt, kwargs = results["samples"][f"paper_{task}"][0]["arguments"][0]
        assert question.prompt == prompt
        assert (question.max_tokens, list(question.stop)) == (kwargs["max_gen_toks"], kwargs["until"])
        problem, right, wrong = PROBLEMS[task]
        assert question.grade(right)["accuracy"] == 1, problem
        assert question.grade(wrong)["accuracy"] == 0, problem


def test_length_stop_strings_and_temperature_are_the_tasks_and_may_be_overridden(data: Path):
    def kwargs(**more: Any) -> dict[str, Any]:
        results = evaluate(["paper_countdown"], {"": "?"}, data, **more)
        return results["samples"]["paper_countdown"][0]["arguments"][0][1]

    assert kwargs() == {"until": ["\n", "Question:"], "max_gen_toks": 48, "do_sample": True, "temperature": 0.7}
    asked = settings.gen_kwargs("countdown", {"max_gen_toks": 24, "tokens_per_step": 2})
    overridden = kwargs(gen_kwargs=asked)
    assert overridden["max_gen_toks"] == 24
    assert overridden["temperature"] == 0.7
    assert overridden["vllm_xargs"]["tokens_per_step"] == 2


def test_a_task_of_ones_own_includes_ours_and_says_what_differs(data: Path, tmp_path: Path):
    (tmp_path / "mine.yaml").write_text(
        f"include: {TASKS / 'countdown.yaml'}\ntask: mine\nnum_fewshot: 0\ndoc_to_text: 'Reach {{{{output}}}}.'\n"
    )
    results = evaluate(["mine"], {"Reach 51.": "49 + 55 - 53"}, data, include=tmp_path)
    assert results["results"]["mine"]["accuracy,none"] == 1.0


def test_one_file_serves_as_data_and_a_missing_one_is_named(data: Path, tmp_path: Path):
    assert rows.problems("sudoku", str(data / "sudoku4_test.csv"))[0]["Puzzle"] == "0102200002100320", "not a number"
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "gsm8k_test.jsonl"))):
        rows.problems("gsm8k", str(tmp_path))
    with pytest.raises(ValueError, match="problems of math500 have no problem"):
        rows.problems("math500", str(data / "gsm8k_test.jsonl"))


def test_the_examples_are_right_and_the_sudokus_have_one_solution_each():
    for example in prompts.countdown_examples():
        numbers = [int(number) for number in example["input"].split(",")]
        assert countdown.solves(prompts.countdown_target(example), numbers, int(example["output"]))
    for example in prompts.sudoku_examples():
        assert solutions(example["Puzzle"]) == [example["Solution"]]
        assert sudoku.solves(prompts.sudoku_target(example), example["Puzzle"])


def solutions(puzzle: str) -> list[str]:
    """All, by trying the rows that fit the given cells."""
    rows = ["".join(row) for row in itertools.permutations("1234")]
    fitting = [
        [row for row in rows if all(given in ("0", cell) for given, cell in zip(puzzle[start:], row, strict=False))]
        for start in range(0, 16, 4)
    ]
    grids = ("".join(chosen) for chosen in itertools.product(*fitting))
    return [grid for grid in grids if sudoku.is_solution(grid, puzzle)]


@pytest.mark.parametrize("task", settings.BLOCKS)
def test_the_papers_settings_are_accepted_for_every_sampler(task: str):
    assert set(settings.BLOCKS) == set(rows.SOURCES)
    for sampler in SAMPLERS:
        knobs = settings.gen_kwargs(task, {"sampler": sampler, "tokens_per_step": 2})["vllm_xargs"]
        params = parse_params(knobs, defaults={}, temperature=0.7, canvas_length=256, seed=0)
        assert (params.sampler, params.tokens_per_step, params.block_length) == (sampler, 2, settings.BLOCKS[task])
        assert ("num_candidates" in knobs) == (sampler in LOOKAHEAD_SAMPLERS)


def test_a_setting_that_the_sampler_does_not_have_is_refused_not_dropped():
    knobs = settings.gen_kwargs("gsm8k", {"sampler": "entropy", "num_candidates": 4})["vllm_xargs"]
    with pytest.raises(ParameterError, match="num_candidates"):
        parse_params(knobs, defaults={}, temperature=0.7, canvas_length=256, seed=0)


def test_the_settings_command_prints_what_lm_eval_takes():
    command = [sys.executable, "-m", "benchmarks.paper.settings", "sudoku", "--offline"]
    asked = ["schedule=linear", "steps=8", "temperature=0", "prune=true"]
    done = subprocess.run(
        [*command, *asked], cwd=checkout.ROOT, capture_output=True, text=True, check=True, timeout=PATIENCE
    )
    assert json.loads(done.stdout) == {
        "temperature": 0,
        "extra_args": {
            "sampler": "info_gain", "block_length": 0, "num_candidates": 8, "position_temperature": 0.1,
            "bypass_threshold": 0.8, "schedule": "linear", "steps": 8, "prune": True,
        },
    }  # fmt: skip
