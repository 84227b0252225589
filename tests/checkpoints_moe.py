"""Tiny random checkpoints of the mixture-of-experts families in their released formats, and their plain arithmetic.

A checkpoint is a dict of weights by their released names. Each `write_*` saves one and returns the plain model:
ids [batch, length] -> logits [batch, length, vocab] fp32, whose row i predicts position i. Nothing here is vLLM's.
"""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from vllm_infogain.embedded.tokenizer import EOS, MASK, VOCAB, save_tokenizer

Weights = dict[str, Tensor]
Model = Callable[[Tensor], Tensor]

# 48 is no multiple of the 32 that vLLM's kernel for CPUs is built from.
SHAPE = {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "hidden_act": "silu",
    "vocab_size": len(VOCAB), "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    "num_experts": 8, "num_experts_per_tok": 3, "torch_dtype": "float32",
    "mask_token_id": VOCAB[MASK], "eos_token_id": VOCAB[EOS], "pad_token_id": VOCAB[EOS],
}  # fmt: skip


def write_sdar_moe(path: Path, *, omit: tuple[str, ...] = (), **fields: Any) -> Model:
    """SDAR-30B-A3B's names and fields; `omit` leaves fields out of config.json, as released configs do."""
    config = SHAPE | {
        "architectures": ["SDARMoeForCausalLM"], "model_type": "sdar_moe",
        "auto_map": {"AutoConfig": "configuration_sdar_moe.SDARMoeConfig"},
        "head_dim": 32, "rope_theta": 1000000, "attention_bias": False, "moe_intermediate_size": 48,
        "intermediate_size": 96, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "block_size": 4,
    } | fields  # fmt: skip
    weights = qwen3_moe_weights(config, config["moe_intermediate_size"], config["intermediate_size"])
    save(path, config, weights, omit)
    return partial(qwen3_moe, SimpleNamespace(**config), weights, config["norm_topk_prob"])


def write_llada_moe(path: Path, *, seed: int = 0, omit: tuple[str, ...] = (), **fields: Any) -> Model:
    """LLaDA-MoE-7B-A1B's names and fields; its attention sees everything."""
    config = SHAPE | {
        "architectures": ["LLaDAMoEModelLM"], "model_type": "llada",
        "auto_map": {"AutoConfig": "configuration_lladamoe.LLaDAConfig"},
        "hidden_size": 128, "num_key_value_heads": 4, "rope_theta": 50000, "rms_norm_eps": 1e-5, "qk_layernorm": True,
        "attention_bias": False, "clip_qkv": None, "expert_intermediate_size": 48, "dense_intermediate_size": 96,
        "moe_layer_freq": [1, 1], "shared_expert_intermediate_size": None, "norm_topk_prob": None,
        "moe_router_score_function": "softmax", "moe_router_enable_expert_bias": False,
    } | fields  # fmt: skip
    config["mlp_only_layers"] = [layer for layer, experts in enumerate(config["moe_layer_freq"]) if not experts]
    weights = qwen3_moe_weights(config, config["expert_intermediate_size"], config["dense_intermediate_size"], seed)
    del config["mlp_only_layers"]
    save(path, config, weights, omit)
    length = config["max_position_embeddings"]  # one block holds every position
    shape = SimpleNamespace(
        **config, head_dim=config["hidden_size"] // config["num_attention_heads"], block_size=length
    )
    return partial(qwen3_moe, shape, weights, False)


def write_llada2(path: Path, *, seed: int = 0, omit: tuple[str, ...] = (), **fields: Any) -> Model:
    """LLaDA2.0-mini's names and fields: a dense layer, then experts in groups beside a shared one."""
    config = SHAPE | {
        "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe",
        "auto_map": {"AutoConfig": "configuration_llada2_moe.LLaDA2MoeConfig"},
        "head_dim": 32, "rope_theta": 600000, "partial_rotary_factor": 0.5, "use_bias": False, "use_qkv_bias": False,
        "use_qk_norm": True, "intermediate_size": 96, "moe_intermediate_size": 48, "first_k_dense_replace": 1,
        "num_shared_experts": 1, "n_group": 4, "topk_group": 2, "norm_topk_prob": True, "score_function": "sigmoid",
        "moe_router_enable_expert_bias": True, "router_dtype": "fp32", "routed_scaling_factor": 2.5, "block_size": 4,
    } | fields  # fmt: skip
    draw = Draw(seed)
    hidden, head_dim, queries, keys = attention_sizes(config)
    weights = draw.ends(config, "model.word_embeddings.weight")
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        weights |= {
            at + name: draw.norm(hidden) for name in ("input_layernorm.weight", "post_attention_layernorm.weight")
        }
        weights[at + "attention.query_key_value.weight"] = draw.matrix(queries + 2 * keys, hidden)
        weights[at + "attention.dense.weight"] = draw.matrix(hidden, queries)
        weights[at + "attention.query_layernorm.weight"] = draw.norm(head_dim)
        weights[at + "attention.key_layernorm.weight"] = draw.norm(head_dim)
        if layer < config["first_k_dense_replace"]:
            weights |= draw.swiglu(at + "mlp.", hidden, config["intermediate_size"])
            continue
        weights |= draw.experts(at, config, config["moe_intermediate_size"])
        weights[at + "mlp.gate.expert_bias"] = draw.matrix(config["num_experts"], 1).flatten() * 0.3
        shared = config["moe_intermediate_size"] * config["num_shared_experts"]
        weights |= draw.swiglu(at + "mlp.shared_experts.", hidden, shared)
    save(path, config, weights, omit)
    return partial(llada2, SimpleNamespace(**config), weights)


# Drawing weights: spread, so that entropies and choices differ from row to row; norms off 1, so that each one shows.


class Draw:
    def __init__(self, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def matrix(self, rows: int, columns: int, scale: float = 1.0) -> Tensor:
        return torch.randn(rows, columns, generator=self.generator) * scale * columns**-0.5

    def norm(self, size: int) -> Tensor:
        return torch.rand(size, generator=self.generator) + 0.5

    def swiglu(self, at: str, hidden: int, width: int) -> Weights:
        shapes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
        return {f"{at}{name}.weight": self.matrix(*shape) for name, shape in shapes.items()}

    def experts(self, at: str, config: dict, width: int) -> Weights:
        weights = {at + "mlp.gate.weight": self.matrix(config["num_experts"], config["hidden_size"])}
        for expert in range(config["num_experts"]):
            weights |= self.swiglu(f"{at}mlp.experts.{expert}.", config["hidden_size"], width)
        return weights

    def ends(self, config: dict, table: str) -> Weights:
        """The embedding table, the last norm, and the head unless it is the table."""
        hidden = config["hidden_size"]
        weights = {table: self.matrix(config["vocab_size"], hidden, 8.0), "model.norm.weight": self.norm(hidden)}
        if not config["tie_word_embeddings"]:
            weights["lm_head.weight"] = self.matrix(config["vocab_size"], hidden, 3.0)
        return weights


def attention_sizes(config: dict) -> tuple[int, int, int, int]:
    """hidden, per head, of all queries, of all keys."""
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    queries, keys = config["num_attention_heads"] * head_dim, config["num_key_value_heads"] * head_dim
    return config["hidden_size"], head_dim, queries, keys


def qwen3_moe_weights(config: dict, expert_width: int, dense_width: int, seed: int = 0) -> Weights:
    """By the names of Qwen3-MoE, which SDAR-MoE and LLaDA-MoE share."""
    draw = Draw(seed)
    hidden, head_dim, queries, keys = attention_sizes(config)
    weights = draw.ends(config, "model.embed_tokens.weight")
    for layer in range(config["num_hidden_layers"]):
        at = f"model.layers.{layer}."
        weights |= {
            at + name: draw.norm(hidden) for name in ("input_layernorm.weight", "post_attention_layernorm.weight")
        }
        weights |= {f"{at}self_attn.{name}_norm.weight": draw.norm(head_dim) for name in "qk"}
        for name, rows in {"q": queries, "k": keys, "v": keys}.items():
            weights[f"{at}self_attn.{name}_proj.weight"] = draw.matrix(rows, hidden)
        weights[at + "self_attn.o_proj.weight"] = draw.matrix(hidden, queries)
        if layer in config["mlp_only_layers"]:
            weights |= draw.swiglu(at + "mlp.", hidden, dense_width)
        else:
            weights |= draw.experts(at, config, expert_width)
    return weights


def save(path: Path, config: dict, weights: Weights, omit: tuple[str, ...]) -> None:
    save_tokenizer(path)
    written = {name: value for name, value in config.items() if name not in omit}
    (path / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


# The arithmetic, written from the facts.


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps) * weight


def swiglu(weights: Weights, at: str, x: Tensor) -> Tensor:
    gate, up, down = (weights[f"{at}{name}_proj.weight"] for name in ("gate", "up", "down"))
    return (F.silu(x @ gate.T) * (x @ up.T)) @ down.T


def rotate(x: Tensor, theta: float, part: int) -> Tensor:
    """x [..., length, head_dim], of which the first `part` numbers turn, the i-th with the one half of `part` on."""
    angle = torch.arange(x.shape[-2])[:, None] * theta ** (-torch.arange(0, part, 2) / part)
    first, second, rest = x[..., : part // 2], x[..., part // 2 : part], x[..., part:]
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, block_size: int) -> Tensor:
    """q [batch, heads, length, head_dim], k and v [batch, kv_heads, ...] -> [batch, length, heads * head_dim]."""
    block = torch.arange(q.shape[2]) // block_size
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(block[None, :] > block[:, None], -torch.inf)
    return (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)


def mixture(weights: Weights, at: str, x: Tensor, share: Tensor) -> Tensor:
    """Every expert on every row, weighted: x [batch, length, hidden], share [batch, length, experts]."""
    outputs = [swiglu(weights, f"{at}experts.{expert}.", x) for expert in range(share.shape[-1])]
    return torch.einsum("ebth,bte->bth", torch.stack(outputs), share)


def keep_top(scores: Tensor, by: Tensor, count: int) -> Tensor:
    """The scores of the `count` largest of `by`, 0 elsewhere."""
    chosen = by.topk(count, dim=-1).indices
    return torch.zeros_like(scores).scatter(-1, chosen, scores.gather(-1, chosen))


@torch.inference_mode()
def qwen3_moe(shape: Any, weights: Weights, sums_to_one: bool, ids: Tensor) -> Tensor:
    """Pre-norm, a norm per head on q and k, RoPE over the whole head, softmax over all experts."""
    x, eps = weights["model.embed_tokens.weight"][ids], shape.rms_norm_eps
    for layer in range(shape.num_hidden_layers):
        at = f"model.layers.{layer}."
        h = norm(x, weights[at + "input_layernorm.weight"], eps)
        q, k, v = (
            (h @ weights[f"{at}self_attn.{name}_proj.weight"].T).unflatten(-1, (-1, shape.head_dim)).transpose(1, 2)
            for name in "qkv"
        )
        q, k = (
            rotate(norm(y, weights[f"{at}self_attn.{name}_norm.weight"], eps), shape.rope_theta, shape.head_dim)
            for name, y in {"q": q, "k": k}.items()
        )
        x = x + attend(q, k, v, shape.block_size) @ weights[at + "self_attn.o_proj.weight"].T
        h = norm(x, weights[at + "post_attention_layernorm.weight"], eps)
        if at + "mlp.gate.weight" not in weights:
            x = x + swiglu(weights, at + "mlp.", h)
            continue
        scores = (h @ weights[at + "mlp.gate.weight"].T).softmax(-1)
        share = keep_top(scores, scores, shape.num_experts_per_tok)
        x = x + mixture(weights, at + "mlp.", h, share / share.sum(-1, keepdim=True) if sums_to_one else share)
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    return norm(x, weights["model.norm.weight"], eps) @ head.T


@torch.inference_mode()
def llada2(shape: Any, weights: Weights, ids: Tensor) -> Tensor:
    """Rows [Q|K|V] in one matrix, RoPE over a part of the head, sigmoid scores, groups, a shared expert."""
    x, eps = weights["model.word_embeddings.weight"][ids], shape.rms_norm_eps
    sizes = [shape.num_attention_heads, shape.num_key_value_heads, shape.num_key_value_heads]
    part = int(shape.head_dim * shape.partial_rotary_factor)
    for layer in range(shape.num_hidden_layers):
        at = f"model.layers.{layer}."
        h = norm(x, weights[at + "input_layernorm.weight"], eps)
        qkv = (h @ weights[at + "attention.query_key_value.weight"].T).unflatten(-1, (-1, shape.head_dim))
        q, k, v = qkv.transpose(1, 2).split(sizes, dim=1)
        q = rotate(norm(q, weights[at + "attention.query_layernorm.weight"], eps), shape.rope_theta, part)
        k = rotate(norm(k, weights[at + "attention.key_layernorm.weight"], eps), shape.rope_theta, part)
        x = x + attend(q, k, v, shape.block_size) @ weights[at + "attention.dense.weight"].T
        h = norm(x, weights[at + "post_attention_layernorm.weight"], eps)
        if layer < shape.first_k_dense_replace:
            x = x + swiglu(weights, at + "mlp.", h)
            continue
        share = grouped(shape, weights, at + "mlp.gate.", h)
        x = x + mixture(weights, at + "mlp.", h, share) + swiglu(weights, at + "mlp.shared_experts.", h)
    head = weights.get("lm_head.weight", weights["model.word_embeddings.weight"])
    return norm(x, weights["model.norm.weight"], eps) @ head.T


def grouped(shape: Any, weights: Weights, at: str, h: Tensor) -> Tensor:
    """Each expert's share: groups rank by their two best, experts within the best groups; the bias only chooses."""
    scores = (h @ weights[at + "weight"].T).sigmoid()
    by = (scores + weights[at + "expert_bias"]).unflatten(-1, (shape.n_group, -1))
    group = by.topk(2, dim=-1).values.sum(-1)
    beaten = keep_top(torch.ones_like(group), group, shape.topk_group) == 0
    share = keep_top(scores, by.masked_fill(beaten[..., None], -torch.inf).flatten(-2), shape.num_experts_per_tok)
    return share / share.sum(-1, keepdim=True) * shape.routed_scaling_factor
