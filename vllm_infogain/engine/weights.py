"""Loads a model, and refuses a checkpoint that leaves any of its numbers out.

vLLM's own check knows merged layers only as wholes and passes over every layer that has a quantisation method, which
all linear layers have: without `k_proj`, or one expert, or the head, it would serve whatever the memory held before.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from vllm_infogain.engine.compat import VllmConfig, get_model_loader

Weights = Iterable[tuple[str, torch.Tensor]]
# What vLLM calls the weights of all experts of a layer -> what checkpoints call those of one.
EXPERTS = {
    "routed_experts.w13_weight": ("{expert}.gate_proj.weight", "{expert}.up_proj.weight"),
    "routed_experts.w2_weight": ("{expert}.down_proj.weight",),
}


def load_model(vllm_config: VllmConfig) -> nn.Module:
    """The model that the config names, with its weights.

    Raises:
        ValueError: names the weights that the checkpoint lacks.
    """
    loader: Any = get_model_loader(vllm_config.load_config)
    if vllm_config.quant_config is None:  # else layers have parameters that no checkpoint needs to hold
        loader.load_weights = partial(_load_checked, loader.load_weights)
    return loader.load_model(vllm_config=vllm_config, model_config=vllm_config.model_config)


def _load_checked(load: Callable, model: Any, model_config: Any) -> None:
    """Run vLLM's loader with every number NaN before, and look for NaN before the layers repack their weights."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data.fill_(math.nan)
    plain = model.load_weights
    given: set[str] = set()

    def checked(weights: Weights) -> set[str]:
        loaded = plain(_noting(weights, given))
        missing = [part for name, weight in model.named_parameters() for part in _missing(model, name, weight, given)]
        if missing:
            names = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if len(missing) > 8 else "")
            raise ValueError(
                f"the checkpoint has no numbers, or NaN, for {names}; check that it is complete, and that its "
                "config.json is of the same model"
            )
        return loaded

    model.load_weights = checked  # on this object only
    try:
        load(model, model_config)
    finally:
        del model.load_weights


def _noting(weights: Weights, given: set[str]) -> Iterator[tuple[str, torch.Tensor]]:
    for name, weight in weights:
        given.add(name)
        yield name, weight


def _missing(model: nn.Module, name: str, parameter: torch.Tensor, given: set[str]) -> list[str]:
    """The weights of which a parameter is made that were not given, by the checkpoint's names."""
    if not parameter.is_floating_point() or not parameter.isnan().any():
        return []
    if name.endswith(tuple(EXPERTS)):
        ending = next(ending for ending in EXPERTS if name.endswith(ending))
        holes = parameter.flatten(1).isnan().any(1).nonzero().flatten().tolist()
        parts = [name.removesuffix(ending) + part.format(expert=hole) for hole in holes for part in EXPERTS[ending]]
    else:
        owner, _, kind = name.rpartition(".")
        path, _, merged = owner.rpartition(".")
        layers = getattr(model, "packed_modules_mapping", {}).get(merged, [merged])
        parts = [".".join(filter(None, (path, layer, kind))) for layer in layers]
    absent = [part for part in (_in_checkpoint(model, part) for part in parts) if part not in given]
    return absent or [name]


def _in_checkpoint(model: nn.Module, name: str) -> str:
    """A checkpoint's name for what vLLM calls so; an executor may have changed its beginning."""
    mapper = getattr(model, "hf_to_vllm_mapper", None)
    for original, ours in getattr(mapper, "orig_to_new_prefix", {}).items():
        if ours is not None and name.startswith(ours):
            return original + name.removeprefix(ours)
    return name
