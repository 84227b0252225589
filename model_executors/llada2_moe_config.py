"""The Hugging Face config of LLaDA2.0 checkpoints, so that they load without remote code. Needs transformers only."""

from typing import ClassVar

from transformers import PretrainedConfig


class LLaDA2MoeConfig(PretrainedConfig):
    """LLaDA2.0-mini's values; released configs leave out many of them."""

    model_type = "llada2_moe"
    # A token attends to its own block, both ways, and to the blocks before it. Blocks lie at absolute positions.
    attention_kind: ClassVar[str] = "block_causal"
    predicts: ClassVar[str] = "same"  # row i of the logits is of position i
    # Not a field of the config: its norms are RMS norms, while vLLM's class serves older models with LayerNorm too.
    use_rmsnorm: ClassVar[bool] = True

    mask_token_id: int = 156895
    block_size: int = 32  # positions per block, as trained
    vocab_size: int = 157184
    hidden_size: int = 2048
    intermediate_size: int = 5120  # of the dense layers
    num_hidden_layers: int = 20
    num_attention_heads: int = 16
    num_key_value_heads: int = 4
    head_dim: int = 128
    hidden_act: str = "silu"
    max_position_embeddings: int = 32768
    rms_norm_eps: float = 1e-6
    rope_parameters: dict | None = None
    rope_theta: float = 600000.0
    partial_rotary_factor: float = 0.5
    use_bias: bool = False
    use_qkv_bias: bool = False
    use_qk_norm: bool = True
    embedding_dropout: float = 0.0
    first_k_dense_replace: int = 1
    moe_intermediate_size: int = 512
    num_experts: int = 256
    num_experts_per_tok: int = 8
    num_shared_experts: int = 1
    n_group: int = 8
    topk_group: int = 4
    norm_topk_prob: bool = True
    score_function: str = "sigmoid"
    moe_router_enable_expert_bias: bool = True
    router_dtype: str = "fp32"
    routed_scaling_factor: float = 2.5
    tie_word_embeddings: bool = False
