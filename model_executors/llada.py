"""LLaDA (8B Base, Instruct, 1.5) from vLLM's tensor-parallel layers, after the released modeling code and configs.

A Llama-like stack with OLMo's names: pre-norm RMSNorm, rotary embeddings in fp32, SwiGLU, no biases, an untied head
unless `weight_tying`. Attention looks both ways; the runner says so in the attention metadata (`causal=False`).
"""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from vllm.compilation.decorators import support_torch_compile
from vllm.config import VllmConfig
from vllm.distributed import get_tensor_model_parallel_world_size, tensor_model_parallel_all_reduce
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.linear import MergedColumnParallelLinear, QKVParallelLinear, RowParallelLinear
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.utils import AutoWeightsLoader, WeightsMapper, maybe_prefix
from vllm_infogain.model_executors.llada_base_config import LLaDABaseConfig


class LLaDABlock(nn.Module):
    """One layer: attention, then SwiGLU, each on a normed input and added to the residual stream."""

    def __init__(self, vllm_config: VllmConfig, prefix: str) -> None:
        super().__init__()
        config: LLaDABaseConfig = vllm_config.model_config.hf_config
        quant_config = vllm_config.quant_config
        ranks = get_tensor_model_parallel_world_size()
        head_dim = config.d_model // config.n_heads
        heads = config.n_heads // ranks
        kv_heads = max(1, config.n_kv_heads // ranks)
        self.qkv_sizes = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]

        self.attn_norm = RMSNorm(config.d_model, eps=config.rms_norm_eps)
        self.qkv_proj = QKVParallelLinear(
            config.d_model, head_dim, config.n_heads, config.n_kv_heads, bias=False,
            quant_config=quant_config, prefix=f"{prefix}.qkv_proj",
        )  # fmt: skip
        self.rotary_emb = get_rope(
            head_dim,
            max_position=vllm_config.model_config.max_model_len,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            dtype=torch.float32,
        )
        self.attn = Attention(
            heads, head_dim, head_dim**-0.5, num_kv_heads=kv_heads,
            cache_config=vllm_config.cache_config, quant_config=quant_config, prefix=f"{prefix}.attn",
        )  # fmt: skip
        self.attn_out = RowParallelLinear(
            config.d_model, config.d_model, bias=False, quant_config=quant_config, prefix=f"{prefix}.attn_out"
        )
        self.ff_norm = RMSNorm(config.d_model, eps=config.rms_norm_eps)
        self.gate_up_proj = MergedColumnParallelLinear(
            config.d_model, [config.mlp_hidden_size] * 2, bias=False,
            quant_config=quant_config, prefix=f"{prefix}.gate_up_proj",
        )  # fmt: skip
        self.activation = SiluAndMul()
        self.ff_out = RowParallelLinear(
            config.mlp_hidden_size, config.d_model, bias=False, quant_config=quant_config, prefix=f"{prefix}.ff_out"
        )

    def forward(
        self, positions: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """positions [rows]; hidden and residual [rows, d_model], whose sum is the stream -> those after this layer."""
        if residual is None:
            residual, hidden = hidden, self.attn_norm(hidden)
        else:
            hidden, residual = self.attn_norm(hidden, residual)
        qkv, _ = self.qkv_proj(hidden)
        query, key, value = qkv.split(self.qkv_sizes, dim=-1)
        # Rotated in fp32, as the released code does; vLLM would rotate in the model's dtype.
        query, key = self.rotary_emb(positions, query.float(), key.float())
        query, key = query.to(value.dtype), key.to(value.dtype)
        hidden, _ = self.attn_out(self.attn(query, key, value))
        hidden, residual = self.ff_norm(hidden, residual)
        gate_up, _ = self.gate_up_proj(hidden)
        hidden, _ = self.ff_out(self.activation(gate_up))
        return hidden, residual


@support_torch_compile  # for piecewise graphs on CUDA; without compilation it does nothing
class LLaDATransformer(nn.Module):
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: LLaDABaseConfig = vllm_config.model_config.hf_config
        self.wte = VocabParallelEmbedding(
            config.embedding_size, config.d_model, quant_config=vllm_config.quant_config, prefix=f"{prefix}.wte"
        )
        self.blocks = nn.ModuleList(
            LLaDABlock(vllm_config, f"{prefix}.blocks.{index}") for index in range(config.n_layers)
        )
        self.ln_f = RMSNorm(config.d_model, eps=config.rms_norm_eps)

    def forward(self, input_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """input_ids and positions [rows] -> hidden states [rows, d_model], normed for the head."""
        hidden, residual = self.wte(input_ids), None
        for block in self.blocks:
            hidden, residual = block(positions, hidden, residual)
        return self.ln_f(hidden, residual)[0]


class LLaDAModelLM(nn.Module):
    """The executor vLLM loads for `architectures: ["LLaDAModelLM"]`."""

    hf_to_vllm_mapper = WeightsMapper(
        orig_to_new_prefix={"model.transformer.ff_out.": "lm_head.", "model.transformer.": "transformer."},
        orig_to_new_stacked={
            ".q_proj": (".qkv_proj", "q"),
            ".k_proj": (".qkv_proj", "k"),
            ".v_proj": (".qkv_proj", "v"),
            ".ff_proj": (".gate_up_proj", 0),
            ".up_proj": (".gate_up_proj", 1),
        },
    )
    packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["ff_proj", "up_proj"]}

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        config: LLaDABaseConfig = vllm_config.model_config.hf_config
        if config.block_type != "llama":
            raise ValueError(f"block_type={config.block_type!r}: only 'llama' (SwiGLU) checkpoints of LLaDA exist")
        self.config = config
        self.transformer = LLaDATransformer(vllm_config=vllm_config, prefix=maybe_prefix(prefix, "transformer"))
        self.lm_head = ParallelLMHead(
            config.embedding_size, config.d_model, quant_config=vllm_config.quant_config,
            prefix=maybe_prefix(prefix, "lm_head"),
        )  # fmt: skip
        has_pictures = getattr(config, "codebook_size", None) is not None
        if has_pictures and not isinstance(self.lm_head.quant_method, UnquantizedEmbeddingMethod):
            raise ValueError("a quantised head: the columns of pictures are read off one that is not")
        if config.weight_tying:
            self.lm_head = self.lm_head.tie_weights(self.transformer.wte)
        # Padding of the table included: it is part of the model's softmax. The sampler never writes it.
        self.logits_processor = LogitsProcessor(config.embedding_size)

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.transformer.wte(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor,  # [rows] int32 or int64
        positions: torch.Tensor,  # [rows] int64
        intermediate_tensors: object = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Hidden states [rows, d_model]."""
        return self.transformer(input_ids, positions)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Row i predicts position i: logits [rows, embedding_size]."""
        return self.logits_processor(self.lm_head, hidden_states)

    def compute_logits_of(self, hidden_states: torch.Tensor, columns: tuple[int, int]) -> torch.Tensor:
        """`compute_logits` of columns from the first number up to the second: [rows, columns], on every rank."""
        (first, last), head = columns, self.lm_head
        own = head.shard_indices
        start, end = max(first, own.org_vocab_start_index), min(last, own.org_vocab_end_index)
        logits = hidden_states.new_zeros(len(hidden_states), last - first)
        if start < end:
            weight: Any = head.weight
            rows = weight[start - own.org_vocab_start_index : end - own.org_vocab_start_index]
            part: Any = SimpleNamespace(weight=rows, cpu_linear=functional.linear)  # what vLLM reads of a layer
            logits[:, start - first : end - first] = UnquantizedEmbeddingMethod().apply(part, hidden_states)
        # Each column is one rank's; the others add 0 to it.
        return logits if head.tp_size == 1 else tensor_model_parallel_all_reduce(logits)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        return AutoWeightsLoader(self).load_weights(weights, mapper=self.hf_to_vllm_mapper)
