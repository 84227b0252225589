"""Entry point of the vLLM plugin. `register()` runs in every vLLM process; models of other families stay as they are.

What it adds: our architectures in vLLM's model registry, our worker, scheduler and renderer for engines of these, the
flag `--plugin infogain`, and a check at admission and metrics, which act only on engines whose scheduler is ours.
"""

import importlib
import importlib.metadata

VLLM_RANGE = ((0, 32), (0, 34))  # tested minors: from, up to but not including


def register() -> None:
    """Called by vLLM through the entry-point group `vllm.general_plugins`; may be called many times.

    Raises:
        RuntimeError: the installed vLLM is outside the tested range.
    """
    check_vllm_version(importlib.metadata.version("vllm"))
    from transformers import AutoConfig
    from vllm import ModelRegistry

    from vllm_infogain import patches
    from vllm_infogain.compat import RENDERER_REGISTRY, TokenizerRegistry
    from vllm_infogain.engine.identity import RENDERER, TOKENIZER_MODE
    from vllm_infogain.model_executors import CONFIGS, EXECUTORS

    for model_type, (module, name) in CONFIGS.items():
        AutoConfig.register(model_type, getattr(importlib.import_module(module), name), exist_ok=True)
    for architecture, executor in EXECUTORS.items():
        if architecture not in ModelRegistry.get_supported_archs():
            ModelRegistry.register_model(architecture, executor)
    if TOKENIZER_MODE not in RENDERER_REGISTRY.renderers:
        RENDERER_REGISTRY.register(TOKENIZER_MODE, *RENDERER)
        TokenizerRegistry.register(TOKENIZER_MODE, *TokenizerRegistry.tokenizers["hf"])
    patches.apply_all()


def check_vllm_version(version: str) -> None:
    """Raise a RuntimeError with the remedy if `version` is outside VLLM_RANGE."""
    low, high = VLLM_RANGE
    minor = tuple(int(part) for part in version.split("+")[0].split(".")[:2])
    if not low <= minor < high:
        span = f">={low[0]}.{low[1]},<{high[0]}.{high[1]}"
        raise RuntimeError(f"vllm-infogain needs vllm{span}, found {version}: run pip install 'vllm{span}'")
