"""The fields of config.json that the dense LLaDA and what is built on it share. Needs transformers only."""

from typing import ClassVar

from transformers import PretrainedConfig


class LLaDABaseConfig(PretrainedConfig):
    """LLaDA keeps OLMo's field names; `attribute_map` gives vLLM the names it asks for."""

    attention_kind: ClassVar[str] = "full"  # every position sees every other
    predicts: ClassVar[str] = "same"  # row i of the logits is of position i
    attribute_map = {
        "hidden_size": "d_model",
        "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads",
        "num_hidden_layers": "n_layers",
        "intermediate_size": "mlp_hidden_size",
        "max_position_embeddings": "max_sequence_length",
    }

    def __init__(
        self,
        vocab_size: int = 126464,
        embedding_size: int | None = None,  # rows of the table; those past vocab_size are padding
        d_model: int = 4096,
        n_heads: int = 32,
        n_kv_heads: int | None = None,
        n_layers: int = 32,
        mlp_hidden_size: int = 12288,
        max_sequence_length: int = 4096,
        rope_theta: float = 500000.0,
        rms_norm_eps: float = 1e-5,
        weight_tying: bool = False,
        mask_token_id: int = 126336,
        block_type: str = "llama",
        **kwargs,
    ) -> None:
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size or vocab_size
        self.d_model = d_model
        self.n_heads = n_heads
        self.n_kv_heads = n_kv_heads or n_heads
        self.n_layers = n_layers
        self.mlp_hidden_size = mlp_hidden_size
        self.max_sequence_length = max_sequence_length
        self.rope_theta = rope_theta
        self.rms_norm_eps = rms_norm_eps
        self.weight_tying = weight_tying
        self.mask_token_id = mask_token_id
        self.block_type = block_type
        # Tying is `weight_tying`; the checkpoints' own `tie_word_embeddings` means nothing.
        kwargs["tie_word_embeddings"] = weight_tying
        super().__init__(**kwargs)
