"""Server-wide settings, from vLLM's `--additional-config '{"infogain": {...}}'`. Imports neither torch nor vLLM.

The object holds our settings and, beside them, defaults for the decoding parameters of requests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from vllm_infogain.request.fields import ParameterError, integer, knob, number, without_none
from vllm_infogain.request.params import parse_knobs


def path(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise ParameterError(name, value, "give a path")
    return value


REQUESTS_OWN = frozenset({"diffusion_seed_canvas", "diffusion_pinned", "suffix_token_ids", "negative_prompt", "image"})


@dataclass(frozen=True)
class Settings:
    # Forwards that the worker may run before it asks the scheduler again, while no request waits to join. A new
    # request or an abort waits for at most so many.
    steps_per_schedule: int = knob(4, integer(1, 64))
    # KV pages that all candidates together may hold in one step; 0: whatever is free. Groups beyond it wait their turn.
    scratch_pages: int = knob(0, integer(0))
    # MiB of logits that exist at once, per worker; further rows follow in turns. 0: 32 on the CPU, 1024 elsewhere.
    logits_mib: int = knob(0, integer(0))
    # Safety: the most rows, candidates x positions in which they can differ, that one request (its `n` samples
    # together) may ask for at once, and that all running requests may; beyond it the former is refused, others wait.
    request_rows: int = knob(1 << 18, integer(1))
    server_rows: int = knob(1 << 20, integer(1))
    # Safety: MiB of log-probabilities that all running requests of `klass` together keep from step to step, per worker.
    # One that needs more by itself is refused, others wait.
    klass_mib: int = knob(1024, integer(1))
    request_timeout: float = knob(0.0, number(0))  # seconds from arrival after which a request is ended; 0: never
    background_frequencies: str | None = knob(None, path)  # a file, for the sampler `pc`
    # The tokenizer of pictures: a folder, or its name on the hub. None: the model's own, where its folder has one.
    image_tokenizer: str | None = knob(None, path)


SETTINGS: dict[str, Callable[[str, Any], Any]] = {one.name: one.metadata["parse"] for one in fields(Settings)}


def parse_settings(additional_config: Any) -> tuple[Settings, dict[str, Any]]:
    """Our settings, and the defaults of decoding parameters; None is as left out.

    Raises:
        ParameterError: naming the setting, its value and what is accepted.
    """
    given = additional_config.get("infogain", {}) if isinstance(additional_config, Mapping) else {}
    if not isinstance(given, Mapping | None):
        raise ParameterError("additional_config['infogain']", given, "give an object of settings")
    given = without_none(given)
    for name in REQUESTS_OWN & given.keys():
        raise ParameterError(name, given[name], "is said of one request; no default can, leave it out")
    settings = {name: SETTINGS[name](name, value) for name, value in given.items() if name in SETTINGS}
    return Settings(**settings), parse_knobs({name: value for name, value in given.items() if name not in SETTINGS})
