"""Loads a model. Refuses a checkpoint that lacks any of the model's numbers, or holds more than the model has.

vLLM's own check knows merged layers only as wholes and passes over every layer that has a quantisation method, which
all linear layers have: without `k_proj`, or one expert, or the head, it would serve whatever the memory held before.
And its loaders pass over what they have no use for, which may be a bias, or the head of a model that ties its own.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from vllm_infogain.compat import VllmConfig, get_model_loader

Weights = Iterable[tuple[str, torch.Tensor]]
# What vLLM calls the weights of all experts of a layer -> what checkpoints call those of one.
EXPERTS = {
    "routed_experts.w13_weight": ("{expert}.gate_proj.weight", "{expert}.up_proj.weight"),
    "routed_experts.w2_weight": ("{expert}.down_proj.weight",),
}
# Tables that older checkpoints hold and every executor makes itself, by its config.
OF_NO_USE = ("rotary_emb.inv_freq", "rotary_pos_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")


def load_model(vllm_config: VllmConfig) -> nn.Module:
    """The model that the config names, with its weights.

    Raises:
        ValueError: names the weights that the checkpoint lacks, or the model has no place for.
    """
    loader: Any = get_model_loader(vllm_config.load_config)
    if vllm_config.quant_config is None:  # else layers have parameters that no checkpoint needs to hold
        loader.load_weights = partial(_load_checked, loader.load_weights)
    return loader.load_model(vllm_config=vllm_config, model_config=vllm_config.model_config)


def _load_checked(load: Callable, model: Any, model_config: Any) -> None:
    """Fill the model with NaN, run vLLM's loader, and look for NaN before the layers repack their weights."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data.fill_(math.nan)
    plain = model.load_weights
    notes = _Notes()

    def checked(weights: Weights) -> set[str]:
        with notes:
            loaded = plain(notes.of(weights))
        given = notes.given
        missing = [part for name, weight in model.named_parameters() for part in _missing(model, name, weight, given)]
        if missing:
            raise ValueError(
                f"the checkpoint has no numbers, or NaN, for {_listed(missing)}; check that it is complete, and that "
                "its config.json is of the same model"
            )
        if unused := [name for name, weight in notes.untouched.items() if not _is_the_tied_head(model, weight)]:
            raise ValueError(
                f"the model has no place for {_listed(unused)} of the checkpoint, and would answer without; check that "
                "its config.json is of the same model. A head of LLaDA's own needs --hf-overrides "
                "'{\"weight_tying\": false}'"
            )
        return loaded

    model.load_weights = checked  # on this object only
    try:
        load(model, model_config)
    finally:
        del model.load_weights


class _Notes(TorchDispatchMode):
    """While it is on: which weights a loader was given, and which of them no operation has read yet."""

    def __init__(self) -> None:
        super().__init__()
        self.given: set[str] = set()
        # Held here, so that no other tensor gets their memory. They are few: a loader takes one after the other.
        self.untouched: dict[str, torch.Tensor] = {}
        self._names: dict[int, set[str]] = {}  # of those, by the address of their storage

    def of(self, weights: Weights) -> Iterator[tuple[str, torch.Tensor]]:
        for name, weight in weights:
            self.given.add(name)
            if weight.numel() and not name.endswith(OF_NO_USE):
                self.untouched[name] = weight
                self._names.setdefault(weight.untyped_storage().data_ptr(), set()).add(name)
            yield name, weight
            del weight  # whoever took it may keep it

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for argument in tree_leaves((args, kwargs)):
            if isinstance(argument, torch.Tensor) and argument.layout == torch.strided and self.untouched:
                self._touch(argument)
        return func(*args, **(kwargs or {}))

    def _touch(self, argument: torch.Tensor) -> None:
        names = self._names.get(argument.untyped_storage().data_ptr(), set())
        for name in list(names):
            weight = self.untouched[name]
            if 0 <= argument.data_ptr() - weight.data_ptr() < weight.nbytes:
                del self.untouched[name]
                names.remove(name)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _is_the_tied_head(model: Any, weight: torch.Tensor) -> bool:
    """Whether a weight equals the table of embeddings, which serves as the head: many checkpoints repeat it."""
    head = getattr(model, "lm_head", None)
    if head is None or weight.shape[1:] != head.weight.shape[1:]:
        return False
    rows = slice(head.shard_indices.org_vocab_start_index, head.shard_indices.org_vocab_end_index)
    mine = weight[rows].to(head.weight)
    return torch.equal(mine, head.weight[: len(mine)])


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
