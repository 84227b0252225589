"""Where vLLM offers no seam, one file per patch: why, how, upstream, and when to remove it.

A patch wraps rather than replaces, is idempotent, raises when its seam is gone, and leaves others' engines alone.
"""

import importlib
from collections.abc import Callable
from functools import wraps
from typing import Any

PATCHES = (
    "plugin_flag",
    "engine_config",
    "admission_check",
    "tool_calls",
    "stat_logger",
    "progress",
    "openai_choices",
    "responses_check",
    "responses_tokens",
    "image_routes",
    "renderer_engine",
    "route_check",
    "samples",
    "exit_code",
    "no_token_beams",
    "run_batch",
)


def apply_all() -> None:
    for name in PATCHES:
        importlib.import_module(f"{__name__}.{name}").apply()


def wrap_once(
    owner: Any,
    name: str,
    make_wrapper: Callable[[Callable], Callable],
    config_of: Callable[..., Any] | None = None,
) -> None:
    """Replace `owner.name` by `make_wrapper(original)`, once, however often this is called.

    Args:
        owner: class or module.
        name: of the function in it.
        make_wrapper: takes the original, returns what is called in its place.
        config_of: gives the VllmConfig of the engine that a call is for, None if for none, of the call's arguments.
            Calls for engines that are not ours then go to the original. Without, the wrapper sees every call.

    Raises:
        RuntimeError: the seam is gone.
    """
    original = getattr(owner, name, None)
    if original is None:
        raise RuntimeError(f"vllm-infogain: {owner.__name__}.{name} is gone; this vLLM is not supported")
    if not getattr(original, "_wrapped_by_infogain", False):
        wrapper = make_wrapper(original)
        wrapper = wraps(original)(wrapper if config_of is None else _for_ours(wrapper, original, config_of))
        wrapper._wrapped_by_infogain = True  # type: ignore[attr-defined]
        is_static = isinstance(vars(owner).get(name), staticmethod)
        setattr(owner, name, staticmethod(wrapper) if is_static else wrapper)


def _for_ours(wrapper: Callable, original: Callable, config_of: Callable[..., Any]) -> Callable:
    def guarded(*args: Any, **kwargs: Any) -> Any:
        from vllm_infogain.engine.identity import is_active

        config = config_of(*args, **kwargs)
        return (original if config is None or not is_active(config) else wrapper)(*args, **kwargs)

    return guarded


def of_server(server: Any, *_: Any, **__: Any) -> Any:
    """For `config_of`, of methods of vLLM's servers of endpoints."""
    return server.engine_client.vllm_config
