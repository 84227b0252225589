"""Parameters for any sampler, cut to what it reads: a request is refused for what it would have no effect on."""

from typing import Any

from vllm_infogain.request.params import LOOKAHEAD_SAMPLERS, READERS


def fitting(knobs: dict[str, Any]) -> dict[str, Any]:
    """The knobs without what their sampler has no use for, and what does not go together."""
    knobs = {name: value for name, value in knobs.items() if knobs["sampler"] in READERS[name]}
    knobs.pop("steps" if knobs.get("schedule", "fixed") == "fixed" else "tokens_per_step", None)
    if knobs.get("cache", "none") == "none":
        knobs.pop("cache_refresh", None)
    if knobs["sampler"] == "beam" and knobs.get("bypass_mode") == "only":
        knobs["bypass_threshold"] = 1
    if knobs["sampler"] in LOOKAHEAD_SAMPLERS and knobs.get("cache") == "dual":
        knobs.pop("uncertainty_scope", None)
    return knobs
