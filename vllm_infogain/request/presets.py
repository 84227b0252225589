"""Named presets: the knobs that `preset` stands for. Imports neither torch nor vLLM."""

from collections.abc import Mapping
from typing import Any

TEXT: dict[str, dict[str, Any]] = {
    "fast": {"sampler": "threshold", "threshold": 0.9},
    "balanced": {"sampler": "adaptive"},
    "best": {"sampler": "info_gain", "num_candidates": 16, "bypass_threshold": 0.95, "state_uncertainty": "sum"},
}
# Where what one position may hold depends on the others: structured output, banned words of several tokens.
ONE_PER_STEP: dict[str, dict[str, Any]] = TEXT | {
    "fast": {"sampler": "confidence"},
    "balanced": {"sampler": "info_gain", "num_candidates": 8, "bypass_threshold": 0.8},
}
PICTURE: dict[str, dict[str, Any]] = {
    "fast": {"sampler": "confidence", "steps": 16},
    "balanced": {"sampler": "info_gain", "num_candidates": 8, "state_uncertainty": "sum", "steps": 16},
    "best": {"sampler": "info_gain", "num_candidates": 8, "state_uncertainty": "sum", "steps": 50},
}
PRESETS = tuple(TEXT)


def of_preset(knobs: Mapping[str, Any], *, writes_one: bool, image: bool) -> dict[str, Any]:
    """The knobs that a request's, or a server's, own preset stands for; none without a preset.

    Args:
        knobs: its knobs, parsed.
        writes_one: a step of the request may write one position only.
        image: the request asks for a picture.
    """
    kind = PICTURE if image else ONE_PER_STEP if writes_one else TEXT
    return dict(kind[knobs["preset"]]) if "preset" in knobs else {}
