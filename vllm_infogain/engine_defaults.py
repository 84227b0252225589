"""Engine arguments that make a vLLM engine ours, and those of the models that ship in the package."""

import os
from collections.abc import Collection
from copy import copy
from typing import Any

from vllm_infogain.engine.identity import SCHEDULER, WORKER


def engine_args(**given: Any) -> dict[str, Any]:
    """Engine arguments that make a vLLM engine ours, with what the user gives over them.

    Args:
        given: engine arguments of vLLM. Groups of settings (`compilation_config` and its like) are joined field by
            field: those that are not given stay ours.
    """
    from vllm.platforms import current_platform

    args: dict[str, Any] = {
        "worker_cls": WORKER,
        "scheduler_cls": SCHEDULER,
        # A prompt is encoded together with its canvas: no prefix of it can be reused, and none can be run alone.
        "enable_prefix_caching": False,
        "enable_chunked_prefill": False,
        # What a request wants next is known only from the logits.
        "async_scheduling": False,
        "enforce_eager": True,
        # Its checks take what a finite automaton can follow, and leave it as the request gives it.
        "structured_outputs_config": {"backend": "outlines"},
    }
    if current_platform.is_cuda():
        args |= {
            "enforce_eager": False,
            # A step has as many rows as its candidates need, far more than requests.
            "compilation_config": {"cudagraph_mode": "PIECEWISE", "max_cudagraph_capture_size": 1024},
            # A backend that could only look back is refused, not used.
            "attention_config": {"use_non_causal": True},
        }
    groups = {name: join(value, given.get(name), given) for name, value in args.items() if isinstance(value, dict)}
    return args | given | groups


def join(ours: dict[str, Any], theirs: Any, given: Collection[str]) -> Any:
    """A group of settings, of which ours count where the user leaves the choice.

    Args:
        ours: the fields that we set.
        theirs: the user's group: a dict, vLLM's object of it (a field at its default leaves the choice), a number (of a
            compilation mode), or None.
        given: names of all engine arguments that the user gives; some set a field of a group.
    """
    if isinstance(theirs, int):
        theirs = {"mode": theirs}
    if theirs is None or isinstance(theirs, dict):
        theirs = theirs or {}
        return _without(ours, theirs.keys() | set(given)) | theirs
    plain, joined = type(theirs)(), copy(theirs)
    chosen = {name for name, value in vars(theirs).items() if value != getattr(plain, name, None)}
    settings = _without(ours, chosen.union(given))
    parsed = type(theirs)(**settings)
    for name in settings:
        setattr(joined, name, getattr(parsed, name))
    return joined


def _without(ours: dict[str, Any], given: set[str]) -> dict[str, Any]:
    """Those of our fields that nothing among the names given sets, or rules out."""
    # vLLM refuses a largest size that is not the largest of the sizes given beside it.
    ruled_out = {"max_cudagraph_capture_size"} if "cudagraph_capture_sizes" in given else set()
    return {name: value for name, value in ours.items() if name not in ruled_out | given}


def model_args(name: str | None) -> dict[str, Any]:
    """Engine arguments of a model by its name; without one, and for the names of the models that ship in the package,
    of a model that ships."""
    from vllm_infogain import embedded
    from vllm_infogain.embedded import pictures

    shipped = {package.SERVED_NAME: package.model_path() for package in (embedded, pictures)}
    name = name or embedded.SERVED_NAME
    if name not in shipped or os.path.exists(name):
        return {"model": name}
    return {
        "model": str(shipped[name]),
        "served_model_name": [name],
        "dtype": "float32",  # vLLM's "auto" would serve fp32 weights in bf16
        "block_size": 32,  # the models' sequences are at most 64 and 96 long
        "kv_cache_memory_bytes": 256 << 20,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 8192,
    }
