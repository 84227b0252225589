"""The paper's graders of mathematics, Countdown and Sudoku: right answers in odd forms, and near misses."""

from fractions import Fraction

import checkout  # noqa: F401
import pytest
from math_verify_installed import needs_math_verify

from benchmarks.paper.graders import countdown, mathematics, sudoku
from benchmarks.paper.graders.answers import answer_of, boxed, text_of

PUZZLE = "3102200002100320"
SOLVED = "3142243142131324"
ROWS = "3142\n2431\n4213\n1324"


def box(answer: str) -> str:
    return rf"So it is \boxed{{{answer}}}."


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{5} or rather \boxed{6}", "6"),
        (r"\boxed{\frac{1}{2}} <answer>7</answer>", r"\frac{1}{2}"),
        (r"\boxed{\left\{1, 2\right\}}", r"\left\{1, 2\right\}"),
        ("<answer>\n42\n</answer>", "42"),
        ("<answer>1</answer> no: <answer>2", "2"),
        ("The answer is: 5+3=8\nQuestion: 1,2", "5+3=8"),
        ("12 + 6\n#### 18", "18"),
        (r"\boxed{}<answer>3</answer>", "3"),
        (r"\boxed{4<|eot_id|>}", None),
        ("I think it is 5", None),
        ("", None),
    ],
)
def test_the_answer_of_a_text_is_the_last_box_or_tag_or_conclusion(text: str, answer: str | None):
    assert answer_of(text) == answer


def test_nothing_behind_the_end_token_counts():
    assert text_of(r"\boxed{1}<|eot_id|>\boxed{2}<|endoftext|>") == r"\boxed{1}"


def test_a_box_that_is_not_closed_is_none():
    assert boxed(r"\boxed{\frac{1}{2}") is None


@pytest.mark.parametrize(
    "answer",
    ["18", "18.0", "18.", r"\$18", "$18$", "18 eggs", r"18\text{ eggs}", r"18\%", "9 * 2 = 18", "x = 18", "018", "+18"],
)
def test_gsm8k_takes_its_number_in_any_dress(answer: str):
    assert mathematics.solves_gsm8k(box(answer), "18")


@pytest.mark.parametrize("answer", ["6,250", "6250", r"6{,}250", r"6\,250", r"6\!250", r"\$6,250.00", "6250 miles"])
def test_gsm8k_reads_thousands(answer: str):
    assert mathematics.solves_gsm8k(box(answer), "6250")


@pytest.mark.parametrize("answer", ["-10", "- 10", "−10", "-$10", r"-10^\circ F", "-10.0", "$-10$"])
def test_gsm8k_reads_negative_numbers(answer: str):
    assert mathematics.solves_gsm8k(box(answer), "-10")
    assert not mathematics.solves_gsm8k(box(answer), "10")


@pytest.mark.parametrize(
    "answer",
    ["-18", "- 18", "−18", "81", "180", "1.8", "18.5", "118", "1,8", "18 or 20", "20 or 18", "20, 18", "1800 cents",
     r"\frac{18}{2}", "18/2", "20 - 2", "9 * 2", "18 = 20", "18:00", "18e3", "eighteen", "", "?", r"\boxed{", "0.18"],
)  # fmt: skip
def test_gsm8k_refuses_a_near_miss(answer: str):
    assert not mathematics.solves_gsm8k(box(answer), "18")


def test_gsm8k_demands_a_marked_answer_and_its_looser_measure_takes_the_last_number():
    text = "9 eggs at $2 each are 18 dollars."
    assert not mathematics.solves_gsm8k(text, "18")
    assert mathematics.ends_with(text, "18")
    assert not mathematics.ends_with("18 dollars for 9 eggs.", "18")
    assert not mathematics.ends_with("No number.", "18")


def test_gsm8ks_gold_number_stands_behind_four_hashes():
    assert mathematics.gsm8k_gold("He has 1,000 + 5.\n#### 1,005") == "1005"
    assert mathematics.numbers_in("1,005 and .5, 3") == [Fraction(1005), Fraction(1, 2), Fraction(3)]


@needs_math_verify
@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        (r"\frac{1}{2}", r"\frac12"), (r"\frac{1}{2}", "1/2"), (r"\frac{1}{2}", "0.5"),
        (r"\frac{1}{2}", r"\dfrac{2}{4}"),
        (r"16\sqrt{3}", r"16 \sqrt3"), (r"\frac{\sqrt{3}}{3}", r"\sqrt{3}/3"), ("2", "x = 2"), ("-2 + 7i", "7i - 2"),
        (r"10,\!080", "10,080"), (r"\$36", "36.00"), (r"120^\circ", "120"), (r"15\mbox{ cm}^2", r"15 \text{ cm}^2"),
        ("12", "12 cm"), ("10", r"10\%"), (r"\text{(C)}", "C"), (r"\text{east}", "east"), ("3, 5, 7", "3, 7, 5"),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \frac{\pi}{2})"), ("4210_{5}", "4210_5"), ("x^2+1", "1 + x^2"),
        (r"x \in [-2,7]", "[-2, 7]"), (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("6", r"3 \cdot 2 = 6"), ("5", "5."), ("x=5", "5"),
    ],
)  # fmt: skip
def test_math_takes_a_right_answer_in_another_form(gold: str, answer: str):
    assert mathematics.solves_math(box(answer), gold)


@needs_math_verify
@pytest.mark.parametrize(
    ("gold", "answer"),
    [
        ("5", "-5"), ("5", "55"), ("5", "5.1"), ("5", "5, 6"), ("5", r"5 \text{ or } 6"), ("5", "6 = 5"), ("5", "5^2"),
        ("5", r"\neq 5"), ("5", r"x \ge 5"), ("5", r"5 \pm 1"), ("5", "5_6"), ("5", ""), ("5", "five"), ("56", "5 6"),
        (r"\frac{1}{2}", r"\frac{2}{1}"), (r"\frac{1}{2}", r"\frac12 x"), (r"\frac{1}{3}", "0.33"), (r"\pi", "3.14"),
        (r"\sqrt{5}", r"\sqrt{50}"), (r"\sqrt{5}", r"\sqrt{5}i"), ("(1,2)", "(2,1)"), ("[2,5)", "(2,5]"),
        ("4210_5", "4210_6"), ("x^2+1", "x^2-1"), ("p-q", "q-p"), (r"\text{even}", r"\text{odd}"), ("3,5,7", "3,5"),
        (r"\text{(B)}", "(C)"), (r"15\mbox{ cm}^2", r"15\text{ m}^2"), (r"15\mbox{ cm}^2", r"15\text{ cm}"),
        (r"\$36", r"36\text{ cents}"), (r"36^\circ", r"36\text{ radians}"), (r"10,\!080", "1080"), ("1+2i", "1-2i"),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{pmatrix} 2 \\ 1 \end{pmatrix}"), ("y = 2x+3", "y = 2x-3"),
        (r"\text{June 20}", r"\text{June 2}"), (r"137 \frac{1}{2}", r"137 \frac{1}{3}"), (r"\infty", r"-\infty"),
    ],
)  # fmt: skip
def test_math_refuses_a_near_miss(gold: str, answer: str):
    assert not mathematics.solves_math(box(answer), gold)


def test_an_equal_value_in_another_form_is_not_in_the_gold_form():
    assert mathematics.in_gold_form(box(r"\tfrac12"), r"\frac{1}{2}")
    assert not mathematics.in_gold_form(box(r"\frac{2}{4}"), r"\frac{1}{2}")
    assert not mathematics.in_gold_form("1/2", r"\frac{1}{2}"), "not marked as the answer"


@pytest.mark.parametrize(
    "answer",
    [
        "49 + 55 - 53", "(49+55)-53", "49+55-53=51", "51 = 49+55-53", "49 - (53 - 55)", "-53 + 49 + 55", "$49+55-53$",
        r"49 + (55 - 53)", "49−53+55", "49+55=104,104-53=51", "49+55=104\n104-53=51", "55-53=2; 2+49=51.",
    ],
)  # fmt: skip
def test_countdown_takes_expressions_and_steps(answer: str):
    assert countdown.solves(box(answer), [49, 55, 53], 51)
    assert countdown.solves(f"The answer is: {answer}".replace("\n", ","), [49, 55, 53], 51)


@pytest.mark.parametrize(
    ("answer", "numbers", "target"),
    [
        (r"3 \times 8 \div 6", [3, 8, 6], 4), ("3 × 8 ÷ 6", [3, 8, 6], 4), ("3 x 8 / 6", [3, 8, 6], 4),
        (r"\frac{3 \cdot 8}{6}", [3, 8, 6], 4), ("(3/6)*8", [3, 6, 8], 4), ("5*5-5", [5, 5, 5], 20),
        ("5*5=25,25-5=20", [5, 5, 5], 20),
    ],
)  # fmt: skip
def test_countdown_reads_operations_as_they_are_written(answer: str, numbers: list[int], target: int):
    assert countdown.reaches(answer, numbers, target)


@pytest.mark.parametrize(
    "answer",
    [
        "49 + 55 - 54", "49 + 55", "49 + 55 - 53 + 0", "49 + 55 - 53 - 53 + 53", "49 + 55 - 53 * 1", "51",
        "51 = 51", "49 + 55 - 53 = 50", "49 + 55 = 104", "49 + 55 = 103, 103 - 52 = 51", "49+55=104,104-53=50",
        "49+55=104,49-53=-4,104-53=51", "55-53=2,49+2=51,51+0=51", "49+2=51", "49+55=104,104-53=51,51-51=0",
        "495 5 - 53", "49 ** 1 + 55 - 53", "49 // 1 + 55 - 53", "__import__('os').getpid()", "49 + 55 - 53)", "49/0",
        "0x33", "49 + 55 - 5_3", "abs(49+55-53)", "4955 - 53", "49.0 + 55 - 53", "", "-" * 10_000 + "51",
        "(" * 150 + "51", "49 + 55 - 53, 12", "one", "55 - 49 + 53", "٤٩ + 55 - 53",
        "49 55 - 53", "-(49)(55) - 53",
    ],
)  # fmt: skip
def test_countdown_refuses_a_near_miss(answer: str):
    assert not countdown.reaches(answer, [49, 55, 53], 51)


def test_countdown_without_a_marked_answer_reads_the_last_line():
    assert countdown.solves("Let us see.\n49 + 55 - 53 = 51", [49, 55, 53], 51)
    assert not countdown.solves("49 + 55 - 53 = 51\nDone.", [49, 55, 53], 51)
    assert not countdown.solves("", [49, 55, 53], 51)


@pytest.mark.parametrize(
    "text",
    [
        ROWS, f"{ROWS}\n</answer>", f"<answer>\n{ROWS}\n</answer>", f"<answer>{SOLVED}</answer>",
        f"The grid:\n{ROWS}\n",
        f"{ROWS}\n</answer>\n\nPuzzle:\n1234\n1234\n1234\n1234", f"```\n{ROWS}\n```", ROWS.replace("\n", " \n"),
        "<answer>\n3 1 4 2\n2 4 3 1\n4 2 1 3\n1 3 2 4\n</answer>", "3 1|4 2\n2 4|3 1\n---+---\n4 2|1 3\n1 3|2 4",
        "[3, 1, 4, 2],\n[2, 4, 3, 1],\n[4, 2, 1, 3],\n[1, 3, 2, 4]", f"\n\n{ROWS}<|eot_id|><|endoftext|>",
        "<answer>\n3142\n\n2431\n\n4213\n\n1324\n</answer>", rf"\boxed{{{SOLVED}}}",
    ],
)  # fmt: skip
def test_sudoku_takes_a_whole_grid_in_any_layout(text: str):
    assert sudoku.solves(text, PUZZLE)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("3142\n2431\n4213\n1342", "a column twice"), ("3124\n2431\n4213\n1342", "two cells exchanged"),
        ("3102\n2431\n4213\n1324", "an empty cell left"), ("1342\n2431\n4213\n3124", "given cells exchanged"),
        ("4231\n1342\n3124\n2413", "another puzzle's grid"), ("3142\n2431\n4213\n132", "a digit short"),
        ("3142\n2431\n4213\n13244", "a digit more"), ("3142\n2431\n4213", "a row short"),
        (f"<answer>{ROWS}\n1324</answer>", "a row more"), ("3142\n2431\n4213\n1325", "a digit out of range"),
        (f"<answer>{SOLVED} {SOLVED}</answer>", "two grids"), ("<answer></answer>", "nothing"), ("", "no text"),
        (SOLVED + "0", "a run too long"), (SOLVED[:-1], "a run too short"), (SOLVED.replace("1", "I"), "letters"),
        ("<answer>3142\n2431\n4213\n1324 or so</answer>", "words"), (PUZZLE, "the puzzle itself"),
        ("3142\n3142\n3142\n3142", "rows only"), ("1111\n2222\n3333\n4444", "neither rows"),
        ("3142 2431\n4213 1324 9", "too much in a row"), (ROWS.replace("1", "١"), "digits of another script"),
        (f"{ROWS}\n\nNo: \n1342\n2431\n4213\n3124", "taken back"),
    ],
)  # fmt: skip
def test_sudoku_refuses_a_near_miss(text: str, what: str):
    assert not sudoku.solves(text, PUZZLE), what


def test_a_grid_by_the_rules_that_changes_a_given_cell_is_no_solution():
    swapped = SOLVED.translate(str.maketrans("12", "21"))
    assert sudoku.is_solution(swapped, "0" * 16)
    assert not sudoku.is_solution(swapped, PUZZLE)


def test_the_share_of_cells_counts_the_empty_ones():
    assert sudoku.share_of_cells(ROWS, PUZZLE, SOLVED) == 1.0
    assert sudoku.share_of_cells(PUZZLE, PUZZLE, SOLVED) == 0.0
    empty = PUZZLE.count("0")
    first = PUZZLE.index("0")
    assert sudoku.share_of_cells(SOLVED[: first + 1], PUZZLE, SOLVED) == 1 / empty
