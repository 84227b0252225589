"""The forms in which MATH's answers are written."""

import re

DROPPED = (r"\left", r"\right", r"\!", r"\$", "$", r"^{\circ}", r"^\circ", r"\%", "%")
UNITS = {
    word: unit
    for unit, words in {
        "mm": "mm millimeter", "cm": "cm centimeter", "m": "m meter", "km": "km kilometer", "inch": "in inch inche",
        "foot": "ft foot feet", "yard": "yd yard", "mile": "mi mile", "second": "s sec second", "minute": "min minute",
        "hour": "h hr hour", "day": "day", "week": "week", "month": "month", "year": "year", "gram": "g gram",
        "kilogram": "kg kilogram", "pound": "lb pound", "cent": "cent", "dollar": "dollar", "degree": "degree",
        "radian": "rad radian",
    }.items()
    for word in words.split()
}  # fmt: skip
SIGNS = {"°": r"\text{degree}", r"\circ": r"\text{degree}", r"\$": r"\text{dollar}"}
POWERS = {"square": 2, "sq": 2, "cubic": 3, "^2": 2, "^3": 3}


def same_form(answer: str, gold: str) -> bool:
    return normal(answer) == normal(gold)


def normal(latex: str) -> str:
    r"""One spelling for those that MATH's grader does not tell apart: `\dfrac12`, `\frac{1}{2}`, `1/2`, `0.5`.

    Units behind a number, degrees, dollar and percent signs are left out, and `x =` in front.
    """
    latex = re.sub(r"\\[dt]frac", r"\\frac", latex)
    for sign in DROPPED:
        latex = latex.replace(sign, "")
    latex = re.sub(r"\\text\{ [^{}]*\}(?:\^\{?\d\}?)?\s*$", "", latex)  # a unit: "5 \text{ cm}^2"
    latex = re.sub(r"(^|[\s{])\.(?=\d)", r"\g<1>0.", latex)
    left, equals, right = latex.partition("=")
    if equals and "=" not in right and re.fullmatch(r"\s*[A-Za-z]{1,2}\s*", left):
        latex = right
    latex = re.sub(r"\\sqrt\s*([^\s{\\\[])", r"\\sqrt{\1}", latex)
    latex = re.sub(r"(?<=\d)\s+(?=\d)", "~", latex.strip(), flags=re.ASCII)  # "5 6" is not 56
    latex = re.sub(r"\s+", "", latex)
    latex = re.sub(r"\\frac([^{}\\])([^{}\\])", r"\\frac{\1}{\2}", latex)
    latex = re.sub(r"\\frac([^{}\\])\{", r"\\frac{\1}{", latex)
    latex = re.sub(r"\\frac(\{[^{}]*\})([^{}\\])", r"\\frac\1{\2}", latex)
    if latex == "0.5":
        return r"\frac{1}{2}"
    return re.sub(r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}", latex, flags=re.ASCII)


def unit_of(latex: str) -> tuple[str, int] | None:
    """A unit that is known, and its power: 15 cm^2 has (cm, 2)."""
    for sign, word in SIGNS.items():
        latex = latex.replace(sign, word)
    for text in re.finditer(r"\\(?:text|mbox|mathrm|textrm)\s*\{([^{}]*)\}(\^\{?[23])?", latex):
        words = re.findall(r"[a-z]+|\^[23]", f"{text[1]} {(text[2] or '').replace('{', '')}".lower())
        units = [UNITS[word.removesuffix("s") or word] for word in words if (word.removesuffix("s") or word) in UNITS]
        if units:
            return units[0], max((POWERS[word] for word in words if word in POWERS), default=1)
    return None


def sides_of(answer: str, gold: str) -> list[str]:
    """What must be equal to the gold answer: all of `3 + 2 = 5` that is a number, as the gold one is no equation."""
    if "=" in gold or "=" not in answer:
        return [answer]
    sides = answer.split("=")
    numeric = [side for side in sides if not re.search("[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", side))]
    return numeric if len(numeric) > 1 else [answer]
