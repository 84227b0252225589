"""The front of accuracy against cost: its points, what a kill leaves of them, and its picture. No engine."""

import dataclasses
import json

import pytest

from benchmarks.front_points import COSTS, Kept, Point, Run, draws, on_front, plan, point, points_of, tables

ADAPTIVE, GREEDY = {"sampler": "adaptive"}, {"sampler": "confidence", "tokens_per_step": 2}


def run(settings=ADAPTIVE, seed=0, solved=(True, False), model="abc", **costs) -> Run:
    return Run("sudoku", settings, seed, model, [*solved], **({"forwards": 4.0, "rows": 90.0, "cpu_ms": 2.5} | costs))


def a_point(accuracy: float, forwards: float, **settings) -> Point:
    return Point("sudoku", settings, 1, accuracy, 0.01, forwards, rows=20 - forwards, cpu_ms=1.0)


def test_a_point_is_on_the_front_if_none_is_as_right_for_less():
    cheap, beaten, right, dear = a_point(0.5, 3), a_point(0.4, 4), a_point(0.9, 5), a_point(0.9, 6)
    everyone = [dear, beaten, right, cheap]
    assert on_front(everyone, "forwards") == [cheap, right]
    assert on_front(everyone, "rows") == [dear], "cheapest and most right at once"
    assert on_front(everyone, "cpu_ms") in ([right], [dear]), "of equals one"
    assert on_front([], "forwards") == []


def test_the_error_is_over_problems_whose_seeds_are_averaged_first():
    two_seeds = point([run(solved=(1, 0, 1, 0)), run(seed=1, solved=(1, 0, 0, 0), forwards=6.0)])
    assert (two_seeds.runs, two_seeds.accuracy, two_seeds.forwards) == (2, 0.375, 5.0)
    # Means per problem 1, 0, 1/2, 0: variance (0.625^2 + 2 x 0.375^2 + 0.125^2) / 3 = 0.2292.
    assert two_seeds.standard_error == pytest.approx((0.2292 / 4) ** 0.5, abs=1e-4)


def test_what_draws_nothing_runs_once():
    drawing = {"sampler": "uniform"}
    assert [draws(one, 0.0) for one in (ADAPTIVE, GREEDY, drawing)] == [True, False, True]
    assert draws(GREEDY, 1.0)
    wanted = plan(["sudoku", "multiplication"], [ADAPTIVE, GREEDY], 3)
    assert [seed for task, knobs, seed in wanted if (task, knobs) == ("sudoku", GREEDY)] == [0]
    assert [seed for task, knobs, seed in wanted if (task, knobs) == ("multiplication", GREEDY)] == [0, 1, 2]
    assert [seed for *_, seed in plan(["sudoku"], [{"sampler": "beam"}], 3)] == [0], "it takes long"
    assert [seed for _, _, seed in wanted] == sorted(seed for _, _, seed in wanted), "all settings have some soon"


def test_a_second_start_goes_on_from_the_runs_that_are_kept(tmp_path):
    path = tmp_path / "kept.jsonl"
    Kept(path, "abc", 2).add(run())
    Kept(path, "abc", 2).add(run(seed=1))
    whole = path.read_text()
    path.write_text(whole + json.dumps(dataclasses.asdict(run(seed=2)))[:-9])  # a kill in the middle of a line
    kept = Kept(path, "abc", 2)
    assert [kept.find("sudoku", ADAPTIVE, seed) for seed in range(3)] == [run(), run(seed=1), None]
    kept.add(run(seed=2))
    assert Kept(path, "abc", 2).find("sudoku", ADAPTIVE, 2) == run(seed=2)
    assert Kept(path, "another model's", 2).runs == {}
    assert Kept(path, "abc", 3).runs == {}, "of other problems"


def test_the_table_has_every_setting_and_says_which_are_on_a_front():
    points = points_of([run(), run(GREEDY, forwards=9.0, solved=(False, False))])
    table = [*tables(points, ["sudoku"])]
    (better,) = [line for line in table if line.startswith("| adaptive |")]
    assert better.endswith("| 1 | 50.0 ± 50.0 % | 4.00 | 90 | 2.5 | forwards, rows, CPU ms |")
    (worse,) = [line for line in table if line.startswith("| confidence, tokens_per_step 2 |")]
    assert worse.endswith("| 1 | 0.0 ± 0.0 % | 9.00 | 90 | 2.5 |  |")


def test_the_picture_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.front_plot import plot

    points = points_of([run(), run(GREEDY, forwards=9.0)])
    plot({"sudoku": points}, COSTS, on_front, tmp_path / "front.png")
    assert (tmp_path / "front.png").read_bytes().startswith(b"\x89PNG")
