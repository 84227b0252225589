"""The tasks of infogain-tiny: seeded problem generators, and checkers that accept every correct answer."""

import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import permutations, product
from random import Random

# Tokens (characters) of the longest answer plus its end-of-sequence token, rounded up to an even number.
CANVAS = {"sudoku": 20, "countdown": 24, "multiplication": 12, "judgement": 26}
TASKS = tuple(CANVAS)
SPLITS = ("train", "test")
HELD_OUT = 16  # one prompt in 16 is a test prompt
LARGEST = 400  # no step of countdown or judgement exceeds it
LARGEST_TARGET = 200

Step = tuple[int, str, int, int]  # left, operator, right, result


@dataclass(frozen=True)
class Problem:
    task: str
    prompt: str
    answer: str  # one correct answer; there may be others


def split_of(prompt: str) -> str:
    """The split that a prompt belongs to, the same in every process and Python version."""
    return "test" if zlib.crc32(prompt.encode()) % HELD_OUT == 0 else "train"


def _draw(split: str, make: Callable[[], Problem | None]) -> Problem:
    """The first problem made that exists and belongs to the split."""
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is unknown; choose one of {SPLITS}")
    while True:
        problem = make()
        if problem is not None and split_of(problem.prompt) == split:
            return problem


# Sudoku 4x4: prompt "sudoku\n1..4\n....\n..2.\n....", answer the full grid.


def _is_grid(cells: str) -> bool:
    """Whether 16 cells, row by row, hold 1 to 4 once per row, column and 2x2 box."""
    rows = [cells[4 * r : 4 * r + 4] for r in range(4)]
    columns = [cells[c::4] for c in range(4)]
    boxes = [cells[s : s + 2] + cells[s + 4 : s + 6] for s in (0, 2, 8, 10)]
    return all(sorted(unit) == list("1234") for unit in rows + columns + boxes)


@cache
def sudoku_grids() -> tuple[str, ...]:
    """All 288 valid grids, 16 characters each."""
    rows = ["".join(p) for p in permutations("1234")]
    return tuple(cells for cells in map("".join, product(rows, repeat=4)) if _is_grid(cells))


def _lines(cells: str) -> str:
    return "\n".join(cells[4 * r : 4 * r + 4] for r in range(4))


def sudoku(rng: Random, split: str = "train", givens: int | None = None) -> Problem:
    """A puzzle with `givens` cells (0 to 16; None: drawn, small numbers more often) of a random grid.

    There are few puzzles with 0, 1 or 16 givens (1, 64 and 288): these ignore the split.
    """
    if givens is None:
        givens = rng.choice((rng.randint(0, 8), rng.randint(0, 8), rng.randint(0, 16)))
    if not 0 <= givens <= 16:
        raise ValueError(f"givens={givens} must lie between 0 and 16, or be None")

    def make() -> Problem:
        grid = rng.choice(sudoku_grids())
        kept = set(rng.sample(range(16), givens))
        puzzle = "".join(c if i in kept else "." for i, c in enumerate(grid))
        return Problem("sudoku", "sudoku\n" + _lines(puzzle), _lines(grid))

    return make() if givens in (0, 1, 16) else _draw(split, make)


def _check_sudoku(prompt: str, text: str) -> bool:
    puzzle = prompt.split("\n")[1:]
    rows = text.split("\n")
    if len(rows) != 4 or any(len(row) != 4 for row in rows):
        return False
    givens = zip("".join(puzzle), "".join(rows), strict=True)
    return _is_grid("".join(rows)) and all(given in (".", cell) for given, cell in givens)


# Arithmetic steps "3*7=21,21+8=29" are shared by countdown and judgement.

_STEP = re.compile(r"([0-9]{1,4})([-+*/])([0-9]{1,4})=([0-9]{1,4})")


def _apply(left: int, operator: str, right: int) -> int | None:
    """The result, or None where it is negative, too large or no whole number."""
    if operator == "/":
        return left // right if right and left % right == 0 else None
    value = {"+": left + right, "-": left - right, "*": left * right}[operator]
    return value if 0 <= value <= LARGEST else None


def _parse_steps(parts: list[str]) -> list[Step] | None:
    """The steps, or None if one is malformed or wrong."""
    steps: list[Step] = []
    for part in parts:
        match = _STEP.fullmatch(part)
        if match is None or any(len(n) > 1 and n[0] == "0" for n in match.group(1, 3, 4)):
            return None
        left, operator, right, result = int(match[1]), match[2], int(match[3]), int(match[4])
        if _apply(left, operator, right) != result:
            return None
        steps.append((left, operator, right, result))
    return steps


# Countdown: prompt "countdown 3 7 8 = 29", answer "3*7=21,21+8=29".


def _combine(left: int, right: int) -> list[tuple[str, int]]:
    """Each legal step with the two numbers, as (text, positive result); + and * in the order given."""
    orders = [(left, op, right) for op in "+*-/"] + ([(right, op, left) for op in "-/"] if left != right else [])
    steps = ((f"{a}{op}{b}", _apply(a, op, b)) for a, op, b in orders)
    return [(f"{text}={value}", value) for text, value in steps if value]


@cache
def _solutions(numbers: tuple[int, int, int]) -> dict[int, list[str]]:
    """Every target that the numbers reach, with all ways to reach it."""
    found: dict[int, dict[str, None]] = {}
    for i, j, k in ((0, 1, 2), (0, 2, 1), (1, 2, 0)):
        for first, value in _combine(numbers[i], numbers[j]):
            for second, target in _combine(value, numbers[k]):
                if target <= LARGEST_TARGET:
                    found.setdefault(target, {})[f"{first},{second}"] = None
    return {target: list(ways) for target, ways in found.items()}


def countdown(rng: Random, split: str = "train") -> Problem:
    """Three numbers from 1 to 20 and a target from 1 to 200 that they reach, each used once."""

    def make() -> Problem:
        numbers = (rng.randint(1, 20), rng.randint(1, 20), rng.randint(1, 20))
        target, ways = rng.choice(list(_solutions(numbers).items()))
        return Problem("countdown", "countdown {} {} {} = {}".format(*numbers, target), rng.choice(ways))

    return _draw(split, make)


def _check_countdown(prompt: str, text: str) -> bool:
    words = prompt.split()
    available = [int(word) for word in words[1:4]]
    steps = _parse_steps(text.split(","))
    if steps is None or len(steps) != 2 or steps[-1][3] != int(words[5]):
        return False
    for left, _, right, result in steps:
        for number in (left, right):
            if number not in available:
                return False
            available.remove(number)
        if result < 1:
            return False
        available.append(result)
    return True  # two steps over three numbers leave only the last result


# Multiplication: prompt "multiply" or "multiply 3*7", answer "3*7=0010101".


def multiplication(rng: Random, free: bool | None = None) -> Problem:
    """One-digit factors and their binary product; free: the answer chooses the factors (None: now and then)."""
    if free is None:
        free = rng.random() < 0.25
    a, b = rng.randint(1, 9), rng.randint(1, 9)
    return Problem("multiplication", "multiply" if free else f"multiply {a}*{b}", f"{a}*{b}={a * b:07b}")


def _check_multiplication(prompt: str, text: str) -> bool:
    match = re.fullmatch(r"([1-9])\*([1-9])=([01]{7})", text)
    if match is None or int(match[1]) * int(match[2]) != int(match[3], 2):
        return False
    return prompt == "multiply" or prompt == f"multiply {match[1]}*{match[2]}"


# Judgement: prompt "judge 12+7*3=33", answer the worked steps and a verdict: "7*3=21,12+21=33,yes".


def _work(a: int, first: str, b: int, second: str, c: int) -> tuple[str, int] | None:
    """The steps of a (first) b (second) c and its value, or None where a step has no legal result."""
    product_first = second == "*" and first != "*"
    inner = _apply(b, second, c) if product_first else _apply(a, first, b)
    if inner is None:
        return None
    left, operator, right = (a, first, inner) if product_first else (inner, second, c)
    value = _apply(left, operator, right)
    if value is None:
        return None
    inner_text = f"{b}{second}{c}" if product_first else f"{a}{first}{b}"
    return f"{inner_text}={inner},{left}{operator}{right}={value}", value


def _wrong_claim(rng: Random, a: int, first: str, b: int, second: str, c: int, value: int) -> int:
    """A number that is not the value: mostly one that looks like it, sometimes any."""
    kind = rng.randrange(5)
    claim = value
    if kind == 0:
        claim = value + rng.choice((-1, 1))
    elif kind == 1:
        claim = value + rng.choice((-10, 10))
    elif kind == 2:
        claim = int(str(value)[::-1])
    elif kind == 3:  # without precedence, or with it where there is none
        left = _apply(a, first, b)
        right = _apply(b, second, c)
        wrong = _apply(left, second, c) if left is not None and second == "*" else None
        wrong = _apply(a, first, right) if wrong is None and right is not None else wrong
        claim = value if wrong is None else wrong
    while claim == value or not 0 <= claim <= LARGEST:
        claim = rng.randint(0, LARGEST)
    return claim


def judgement(rng: Random, split: str = "train") -> Problem:
    """A claim about two operations of + - * on numbers from 1 to 20; half of the claims are right."""

    def make() -> Problem | None:
        a, b, c = (rng.randint(1, 20) for _ in range(3))
        first, second = rng.choice("+-*"), rng.choice("+-*")
        worked = _work(a, first, b, second, c)
        if worked is None:
            return None
        steps, value = worked
        right = rng.random() < 0.5
        claim = value if right else _wrong_claim(rng, a, first, b, second, c, value)
        return Problem("judgement", f"judge {a}{first}{b}{second}{c}={claim}", steps + (",yes" if right else ",no"))

    return _draw(split, make)


def _ordered(steps: list[Step]) -> list[Step]:
    """The steps with the smaller operand of a sum or product first."""
    return [(b, op, a, value) if op in "+*" and a > b else (a, op, b, value) for a, op, b, value in steps]


def _check_judgement(prompt: str, text: str) -> bool:
    """The verdict must be right and so must the work; the operands of a sum or product may change places."""
    match = re.fullmatch(r"judge (\d+)([-+*])(\d+)([-+*])(\d+)=(\d+)", prompt)
    if match is None:
        return False
    worked = _work(int(match[1]), match[2], int(match[3]), match[4], int(match[5]))
    if worked is None:
        return False
    *parts, verdict = text.split(",")
    expected, given = _parse_steps(worked[0].split(",")), _parse_steps(parts)
    if expected is None or given is None or _ordered(expected) != _ordered(given):
        return False
    return verdict == ("yes" if worked[1] == int(match[6]) else "no")


_CHECKS = {
    "sudoku": _check_sudoku,
    "countdown": _check_countdown,
    "multiplication": _check_multiplication,
    "judgement": _check_judgement,
}


def check(problem: Problem, text: str) -> bool:
    """Whether the text, without its end-of-sequence tokens, is a correct answer to the problem's prompt."""
    return _CHECKS[problem.task](problem.prompt, text)
