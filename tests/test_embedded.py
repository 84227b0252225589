"""The embedded model: what it was trained for, and what Info-Gain gains on it."""

import random
from collections.abc import Callable
from functools import partial

import pytest
from engines import Engine, Job, assert_matches_oracle, running

from vllm_infogain.embedded import model_path, tasks
from vllm_infogain.embedded.evaluation import Score, held_out, solve
from vllm_infogain.embedded.tokenizer import EOS, MASK, VOCAB

PUZZLES = 300


def test_test_problems_are_held_out_and_every_task_has_its_checker():
    rng = random.Random(0)
    # Puzzles with 0, 1 or 16 givens are too few to hold any out.
    for make in (partial(tasks.sudoku, givens=4), tasks.countdown, tasks.judgement):
        train = {make(rng, split="train").prompt for _ in range(2000)}
        test = {make(rng, split="test").prompt for _ in range(100)}
        assert not train & test
    makers: list[Callable] = [tasks.sudoku, tasks.countdown, tasks.judgement, tasks.multiplication]
    for make in makers:
        problem = make(rng)
        assert tasks.check(problem, problem.answer)
        assert not tasks.check(problem, problem.answer[:-1])
        assert len(problem.answer) < tasks.CANVAS[problem.task]


def test_more_held_out_problems_than_there_are_is_an_error_and_no_hang():
    problems = held_out("sudoku", 100, givens=2)
    assert len({problem.prompt for problem in problems}) == 100
    with pytest.raises(ValueError, match="sudoku has no 200 held-out problems"):
        held_out("sudoku", 200, givens=2)


@pytest.mark.parametrize(
    ("prompt", "text", "right"),
    [
        ("sudoku\n1...\n....\n....\n....", "1234\n3412\n2143\n4321", True),
        ("sudoku\n2...\n....\n....\n....", "1234\n3412\n2143\n4321", False),  # a given changed
        ("sudoku\n1...\n....\n....\n....", "1234\n3412\n2143\n4312", False),  # a column twice
        ("countdown 3 7 8 = 29", "3*7=21,21+8=29", True),
        ("countdown 3 7 8 = 29", "21+8=29", False),  # not the numbers given
        ("countdown 3 7 8 = 29", "3*7=21,22+7=29", False),
        ("multiply 6*7", "6*7=0101010", True),
        ("multiply 6*7", "7*6=0101010", False),
        ("judge 12+7*3=33", "7*3=21,12+21=33,yes", True),
        ("judge 12+7*3=33", "12+7=19,19*3=57,no", False),
    ],
)
def test_a_checker_reads_the_answer_and_not_its_looks(prompt: str, text: str, right: bool):
    task = {"s": "sudoku", "c": "countdown", "m": "multiplication", "j": "judgement"}[prompt[0]]
    assert tasks.check(tasks.Problem(task, prompt, ""), text) is right


def test_the_tokenizer_gives_text_and_chat_the_same_tokens():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path())
    text = "countdown 3 7 8 = 29\n{}~"
    ids = tokenizer(text)["input_ids"]
    chat = tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
    assert tokenizer(chat, add_special_tokens=False)["input_ids"] == ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text
    assert (tokenizer.mask_token_id, tokenizer.eos_token_id) == (VOCAB[MASK], VOCAB[EOS])


@pytest.fixture(scope="module")
def engine():
    with running(None) as engine:
        yield engine


@pytest.mark.engine
def test_the_embedded_model_equals_the_oracle(engine: Engine):
    for problem in (*held_out("sudoku", 4, givens=4), *held_out("countdown", 4)):
        job = Job(problem.prompt, {"block_length": 0, "tokens_per_step": 2}, tasks.CANVAS[problem.task])
        assert_matches_oracle(engine, job, engine.run([job])[0])


def sudoku_score(engine: Engine, sampler: str, tokens_per_step: int, **knobs) -> Score:
    puzzles = held_out("sudoku", PUZZLES, givens=4)
    return solve(engine.llm, puzzles, {"sampler": sampler, "tokens_per_step": tokens_per_step, **knobs})


@pytest.mark.engine
def test_at_two_tokens_a_step_info_gain_solves_far_more_sudokus_than_greedy(engine: Engine):
    greedy = max(sudoku_score(engine, sampler, 2).accuracy for sampler in ("entropy", "confidence", "margin"))
    assert sudoku_score(engine, "info_gain", 2).accuracy >= greedy + 0.15


@pytest.mark.engine
def test_at_one_token_a_step_info_gain_is_not_below_greedy(engine: Engine):
    greedy = max(sudoku_score(engine, sampler, 1).accuracy for sampler in ("entropy", "confidence", "margin"))
    assert sudoku_score(engine, "info_gain", 1).accuracy >= greedy


@pytest.mark.engine
def test_the_mean_objective_of_a_single_token_is_not_above_0(engine: Engine):
    """Prop. C.1: for a consistent model E[J] <= 0 over tokens at a fixed position."""
    puzzles = held_out("sudoku", 40, givens=4)
    knobs = {"bypass_threshold": 1.0, "position_temperature": 5.0, "return_trajectory": True}
    scores = [
        value
        for answer in solve(engine.llm, puzzles, knobs, temperature=1.0).answers
        for step in answer.report["trajectory"]
        for value in step["objective"]
    ]
    assert len(scores) > 2000
    assert sum(scores) / len(scores) <= 0.02


@pytest.mark.engine
def test_an_eos_ends_an_answer_and_its_request(engine: Engine):
    job = Job("multiply 6*7", {"block_length": 6}, 40, ignore_eos=False)
    completion = engine.run([job])[0].outputs[0]
    assert completion.text == "6*7=0101010"
    assert completion.finish_reason == "stop"
    assert completion.token_ids[-1] == VOCAB[EOS]
