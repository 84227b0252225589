"""The Hugging Face config of SDAR's mixture-of-experts checkpoints, so that they load without remote code. Needs
transformers only."""

from typing import ClassVar

from transformers import Qwen3MoeConfig


class SDARMoeConfig(Qwen3MoeConfig):
    """Qwen3-MoE's fields and two more, which released configs may lack."""

    model_type = "sdar_moe"
    # A token attends to its own block, both ways, and to the blocks before it. Blocks lie at absolute positions.
    attention_kind: ClassVar[str] = "block_causal"
    predicts: ClassVar[str] = "same"  # row i of the logits is of position i

    mask_token_id: int = 151669
    block_size: int = 4  # positions per block, as trained
