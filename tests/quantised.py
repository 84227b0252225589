"""Quantised copies of tiny checkpoints, in the formats that quantisers write, and the same numbers unquantised."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

GROUP = 32  # input channels that share a scale
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]
Parts = dict[str, Tensor]  # what a checkpoint holds in place of `weight`


def quantise(source: Path, target: Path, form: str) -> Path:
    """Write `source` to `target`, linear layers quantised; returns a checkpoint of the numbers it holds, in fp32."""
    convert, settings = FORMS[form]
    quantised, plain = {}, {}
    for name, weight in load_file(source / "model.safetensors").items():
        if name.endswith(("_proj.weight", "attn_out.weight")) or (".blocks." in name and "ff_out" in name):
            parts, plain[name] = convert(weight)
            quantised |= {name.removesuffix("weight") + part: value for part, value in parts.items()}
        else:
            quantised[name] = plain[name] = weight
    dequantised = target / "plain"
    config = json.loads((source / "config.json").read_text())
    for path, weights, more in ((target, quantised, {"quantization_config": settings}), (dequantised, plain, {})):
        path.mkdir(parents=True, exist_ok=True)
        for file in source.glob("*.json"):
            (path / file.name).write_text(file.read_text())
        (path / "config.json").write_text(json.dumps(config | more))
        save_file({name: w.contiguous() for name, w in weights.items()}, path / "model.safetensors", {"format": "pt"})
    return dequantised


def four_bits(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[out, in] -> numbers 0 to 15 [out, in], of which 8 is zero; scales [out, in / GROUP]; what they come to."""
    groups = weight.unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / 7
    numbers = (groups / scale).round().clamp(-8, 7)
    return (numbers + 8).flatten(1).int(), scale.squeeze(-1), (numbers * scale).flatten(1)


def pack(numbers: Tensor) -> Tensor:
    """[rows, columns] of four bits -> [rows, columns / 8] int32, the first number lowest."""
    eight = numbers.long().unflatten(1, (-1, 8))
    packed = (eight << (4 * torch.arange(8))).sum(-1)
    return torch.where(packed >= 1 << 31, packed - (1 << 32), packed).int()


def compressed_int4(weight: Tensor) -> tuple[Parts, Tensor]:
    numbers, scale, plain = four_bits(weight)
    shape = torch.tensor(weight.shape)
    return {"weight_packed": pack(numbers), "weight_scale": scale, "weight_shape": shape}, plain


def gptq(weight: Tensor) -> tuple[Parts, Tensor]:
    numbers, scale, plain = four_bits(weight)
    zeros = pack(torch.full((scale.shape[1], len(weight)), 7))  # the format stores one less
    index = torch.arange(weight.shape[1], dtype=torch.int32) // GROUP
    return {"qweight": pack(numbers).T, "qzeros": zeros, "scales": scale.T, "g_idx": index}, plain


def awq(weight: Tensor) -> tuple[Parts, Tensor]:
    numbers, scale, plain = four_bits(weight)
    ordered = numbers.T.unflatten(1, (-1, 8))[..., AWQ_ORDER].flatten(1)
    zeros = pack(torch.full((scale.shape[1], len(weight)), 8))
    return {"qweight": pack(ordered), "qzeros": zeros, "scales": scale.T}, plain


def compressed_int8(weight: Tensor) -> tuple[Parts, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 127
    numbers = (weight / scale).round()
    return {"weight": numbers.to(torch.int8), "weight_scale": scale}, numbers * scale


def compressed_fp8(weight: Tensor) -> tuple[Parts, Tensor]:
    scale = weight.abs().amax(1, keepdim=True) / 448
    numbers = (weight / scale).to(torch.float8_e4m3fn)
    return {"weight": numbers, "weight_scale": scale}, numbers.float() * scale


def compressed(form: str, weights: dict, activations: dict | None = None) -> dict:
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False} | weights}
    if activations is not None:
        group["input_activations"] = {"symmetric": True, "dynamic": True, "strategy": "token"} | activations
    return {
        "quant_method": "compressed-tensors", "format": form, "quantization_status": "compressed",
        "config_groups": {"group_0": group}, "ignore": ["lm_head"],
    }  # fmt: skip


INT8, FP8 = {"num_bits": 8, "type": "int"}, {"num_bits": 8, "type": "float"}
FORMS: dict[str, tuple[Callable[[Tensor], tuple[Parts, Tensor]], dict]] = {
    "gptq int4": (
        gptq, {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True}
    ),
    "awq int4": (
        awq, {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"}
    ),
    "compressed-tensors int4": (
        compressed_int4,
        compressed("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": GROUP}),
    ),
    "compressed-tensors int8, activations too": (
        compressed_int8, compressed("int-quantized", INT8 | {"strategy": "channel"}, INT8)
    ),
    "compressed-tensors fp8, activations too": (
        compressed_fp8, compressed("float-quantized", FP8 | {"strategy": "channel"}, FP8)
    ),
}  # fmt: skip
