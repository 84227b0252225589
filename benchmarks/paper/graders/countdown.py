"""Countdown: reach the target with + - * /, every given number used exactly once.

Two forms of an answer count: an expression, `(5 + 3) * 2`, and the paper's list of steps, `5+3=8,8*2=16`, in which a
result may be used like a number. What an answer claims to be equal must be equal.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable
from fractions import Fraction

from benchmarks.paper.graders.answers import answer_of

SIGNS = {r"\times": "*", r"\cdot": "*", r"\div": "/", "×": "*", "·": "*", "⋅": "*", "∗": "*", "÷": "/", "−": "-",
         "–": "-", r"\left": "", r"\right": "", r"\(": "", r"\)": "", r"\[": "", r"\]": "", r"\,": "", r"\ ": "",
         "$": "", "`": "", "[": "(", "]": ")", "{": "(", "}": ")"}  # fmt: skip
FRACTION = re.compile(r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
EXPRESSION = re.compile(r"[\d+\-*/() ]+")
LONGEST = 200  # characters of an expression; those of three numbers have 20


def solves(generation: str, numbers: Iterable[int], target: int) -> bool:
    """Whether the generation's answer, or without one its last line, reaches the target by the rules."""
    answer = answer_of(generation)
    if answer is None:
        lines = generation.strip().splitlines()
        answer = lines[-1] if lines else ""
    return reaches(answer, numbers, target)


def reaches(answer: str, numbers: Iterable[int], target: int) -> bool:
    given = Counter(numbers)
    sides = [
        [plain(side) for side in equation.split("=")] for equation in re.split(r"[,;\n]", answer) if equation.strip()
    ]
    try:
        if len(sides) == 1:
            return is_expression(sides[0], given, target)
        return bool(sides) and is_list_of_steps(sides, given, target)
    except (ValueError, ZeroDivisionError):
        return False


def is_expression(sides: list[str], given: Counter[int], target: int) -> bool:
    """`expression`, or `expression = target`, or `target = expression`."""
    values = [evaluate(side) for side in sides]
    uses_all = any(numbers_of(side) == given for side in sides)
    return uses_all and all(value == target for value in values)


def is_list_of_steps(equations: list[list[str]], given: Counter[int], target: int) -> bool:
    """Each takes what it uses from the numbers that are left, and adds its result to them."""
    left = Counter(map(Fraction, given.elements()))
    for sides in equations:
        if len(sides) != 2:
            return False
        used = Counter(map(Fraction, numbers_of(sides[0]).elements()))
        if len(sides) != 2 or used.total() != 2 or used - left or evaluate(sides[0]) != evaluate(sides[1]):
            return False
        left = left - used + Counter([evaluate(sides[1])])
    return left == Counter([Fraction(target)])


def plain(text: str) -> str:
    """In Python's signs."""
    text = FRACTION.sub(r"((\1)/(\2))", text)
    for sign, ours in SIGNS.items():
        text = text.replace(sign, ours)
    text = re.sub(r"(?<=[\d)])\s*[xX]\s*(?=[\d(])", "*", text)
    return text.strip().rstrip(".").strip()


def numbers_of(expression: str) -> Counter[int]:
    return Counter(int(digits) for digits in re.findall(r"\d+", expression))


def evaluate(expression: str) -> Fraction:
    """Exactly. ValueError for anything but whole numbers, the four operations, a sign and brackets."""
    if len(expression) > LONGEST or not EXPRESSION.fullmatch(expression) or "**" in expression or "//" in expression:
        raise ValueError(expression)
    try:
        return _value(ast.parse(expression, mode="eval").body)
    except SyntaxError as error:
        raise ValueError(expression) from error


def _value(node: ast.expr) -> Fraction:
    match node:
        case ast.Constant(value=int(value)):
            return Fraction(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_value(operand)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _value(left) + _value(right)
        case ast.BinOp(left=left, op=ast.Sub(), right=right):
            return _value(left) - _value(right)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            return _value(left) * _value(right)
        case ast.BinOp(left=left, op=ast.Div(), right=right):
            return _value(left) / _value(right)
    raise ValueError(ast.dump(node))
