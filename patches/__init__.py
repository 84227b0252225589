"""Where vLLM offers no seam, one file per patch: why, how, upstream, and when to remove it.

A patch wraps rather than replaces, is idempotent, and raises when its seam is gone.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any


def wrap_once(owner: Any, name: str, make_wrapper: Callable[[Callable], Callable]) -> None:
    """Replace `owner.name` by `make_wrapper(original)`, once, however often this is called.

    Raises:
        RuntimeError: the seam is gone.
    """
    original = getattr(owner, name, None)
    if original is None:
        raise RuntimeError(f"vllm-infogain: {owner.__name__}.{name} is gone; this vLLM is not supported")
    if not getattr(original, "_wrapped_by_infogain", False):
        wrapper = wraps(original)(make_wrapper(original))
        wrapper._wrapped_by_infogain = True  # type: ignore[attr-defined]
        is_static = isinstance(vars(owner).get(name), staticmethod)
        setattr(owner, name, staticmethod(wrapper) if is_static else wrapper)
