"""The Hugging Face config of LLaDA-MoE, so that it loads without remote code. Needs transformers only.

Its model_type is `llada` like the dense family's; `LLaDAConfig` hands over by architecture.
"""

from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import Qwen3MoeConfig


@strict  # checks the fields' types by what is written here: norm_topk_prob may be null
class LLaDAMoEConfig(Qwen3MoeConfig):
    """Hugging Face's field names but for the MLPs' sizes; the properties of Qwen3-MoE are derived from them."""

    model_type = "llada"
    attention_kind: ClassVar[str] = "full"  # every position sees every other
    predicts: ClassVar[str] = "same"  # row i of the logits is of position i

    mask_token_id: int = 156895
    vocab_size: int = 157184
    num_key_value_heads: int = 16
    num_attention_heads: int = 16
    num_experts: int = 64
    norm_topk_prob: Any = None  # the released code never renormalises, whatever the config says
    expert_intermediate_size: int = 1024
    dense_intermediate_size: int = 8192
    moe_layer_freq: list[int] | None = None  # per layer: 1 experts, 0 one dense MLP; None: experts everywhere
    shared_expert_intermediate_size: int | None = None
    qk_layernorm: bool = True
    moe_router_score_function: str = "softmax"
    moe_router_enable_expert_bias: bool = False
    clip_qkv: float | None = None

    def __post_init__(self, **kwargs) -> None:
        self.norm_topk_prob = False
        self.moe_intermediate_size = self.expert_intermediate_size
        self.intermediate_size = self.dense_intermediate_size
        self.mlp_only_layers = [index for index, experts in enumerate(self.moe_layer_freq or []) if not experts]
        self.shared_expert_intermediate_size = self.shared_expert_intermediate_size or 0  # vLLM compares it with 0
        super().__post_init__(**kwargs)
