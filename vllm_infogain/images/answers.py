"""What workers answer."""

from typing import Any


def answer_of(answers: list[Any]) -> Any:
    """Of all workers the one that answers; None if none does."""
    return next((answer for answer in answers if answer is not None), None)
