"""GSM8K and MATH-500. `solves_math` needs `math_verify`: `pip install -e '.[paper]'`."""

import re
from fractions import Fraction

from benchmarks.paper.graders.answers import answer_of, text_of
from benchmarks.paper.graders.latex import same_form, sides_of, unit_of

SECONDS = 30  # that math_verify may take to read an answer, and again to compare it
NUMBER = re.compile(r"(?<![\d.)])-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)?(?:\.\d+|(?<=\d))", re.ASCII)
UNSAID = (r"\!", r"\,", r"\$", "$")
UNEQUAL = re.compile(r"\\neq?\b|\\not\b|≠|[<>]|\\[lg]eq?\b")
BASE = re.compile(r"_\{?(\d+)\}?$", re.ASCII)


def gsm8k_gold(answer: str) -> str:
    """The number behind `####`."""
    return answer.rpartition("####")[2].strip().replace(",", "")


def solves_gsm8k(generation: str, gold: str) -> bool:
    """Whether the generation marks this number, and no other, as its answer; behind `=`, where there is one."""
    answer = answer_of(generation)
    return answer is not None and set(numbers_in(answer.rpartition("=")[2])) == {Fraction(gold)}


def ends_with(generation: str, gold: str) -> bool:
    """Whether this is the last number of the whole text: a looser measure, which needs no marked answer."""
    answer = answer_of(generation)
    return numbers_in(text_of(generation) if answer is None else answer)[-1:] == [Fraction(gold)]


def numbers_in(text: str) -> list[Fraction]:
    for sign in UNSAID:
        text = text.replace(sign, "")
    text = re.sub(r"-\s+(?=[\d.])", "-", text.replace("{,}", ",").replace("−", "-"))
    return [Fraction(match[0].replace(",", "")) for match in NUMBER.finditer(text)]


def solves_math(generation: str, gold: str) -> bool:
    """Whether the generation's answer is the gold one, in whatever form: what `math_verify` says, but for three things.

    It reads over units, number bases and the sign between two sides. So an answer with another unit or base than the
    gold one's, an inequality for a number, or an equation of two different numbers is refused before it is asked.
    """
    answer = answer_of(generation)
    if answer is None:
        return False
    answer = answer.rstrip(".").strip()
    units, bases = [[read(text) for text in (gold, answer)] for read in (unit_of, base_of)]
    if None not in units and units[0] != units[1]:
        return False
    if bases[1] is not None and bases[0] != bases[1]:
        return False
    if UNEQUAL.search(answer) and not UNEQUAL.search(gold):
        return False
    return same_form(answer, gold) or all(same_value(side, gold) for side in sides_of(answer, gold))


def in_gold_form(generation: str, gold: str) -> bool:
    """Whether the answer is written as the gold one is, as far as MATH's own grader tells."""
    answer = answer_of(generation)
    return answer is not None and same_form(answer, gold)


def same_value(answer: str, gold: str) -> bool:
    from math_verify import parse, verify

    read = [parse(rf"\boxed{{{text}}}", parsing_timeout=SECONDS) for text in (gold, answer)]
    return all(read) and verify(*read, timeout_seconds=SECONDS)


def base_of(latex: str) -> str | None:
    """Of a number such as `204_5`."""
    match = BASE.search(latex.strip())
    return match[1] if match else None
