"""The Hugging Face config of SDAR and TraDo checkpoints, so that they load without remote code. Needs transformers
only."""

from typing import ClassVar

from transformers import Qwen3Config


class SDARConfig(Qwen3Config):
    """Qwen3's fields and two more, which released configs may lack."""

    model_type = "sdar"
    # A token attends to its own block, both ways, and to the blocks before it. Blocks lie at absolute positions.
    attention_kind: ClassVar[str] = "block_causal"
    predicts: ClassVar[str] = "same"  # row i of the logits is of position i

    mask_token_id: int = 151669
    block_size: int = 4  # positions per block, as trained
