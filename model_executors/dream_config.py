"""The Hugging Face config of Dream checkpoints, so that they load without remote code. Needs transformers only."""

from typing import ClassVar

from transformers import Qwen2Config


class DreamConfig(Qwen2Config):
    """Qwen2's fields and the mask."""

    model_type = "Dream"
    attention_kind: ClassVar[str] = "full"  # every position sees every other
    predicts: ClassVar[str] = "next"  # row i of the logits is of position i + 1, as in the Qwen2.5 it was trained from

    mask_token_id: int = 151666
