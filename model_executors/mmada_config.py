"""The Hugging Face config of MMaDA checkpoints, so that they load without remote code. Needs transformers only."""

from vllm_infogain.model_executors.llada_base_config import LLaDABaseConfig


class MMaDAConfig(LLaDABaseConfig):
    """LLaDA's, with a table that goes on: behind the text's tokens lie the codes of pictures.

    The ids are those that MMaDA's code writes out; its config.json has none of them. Its `num_vq_tokens` is not the
    length of a picture, and its `llm_vocab_size` not where the codes begin, which is the tokenizer's length.
    """

    model_type = "mmada"

    def __init__(
        self,
        codebook_size: int = 8192,
        new_vocab_size: int = 134656,  # rows of the table, where `embedding_size` is not given
        embedding_size: int | None = None,
        image_token_offset: int = 126349,  # of code 0; text lies below it
        image_codes_per_side: int = 32,
        bos_token_id: int = 126080,
        eos_token_id: int = 126081,
        soi_token_id: int = 126084,  # before a picture's codes
        eoi_token_id: int = 126085,  # behind them
        t2i_token_id: int = 126088,  # text to image
        mmu_token_id: int = 126089,  # image to text
        **kwargs,
    ) -> None:
        self.codebook_size = codebook_size
        self.new_vocab_size = new_vocab_size
        self.image_token_offset = image_token_offset
        self.image_codes_per_side = image_codes_per_side
        self.soi_token_id = soi_token_id
        self.eoi_token_id = eoi_token_id
        self.t2i_token_id = t2i_token_id
        self.mmu_token_id = mmu_token_id
        # Released configs name one vocabulary or another. Token ids end with the codes; the rest is padding.
        kwargs["vocab_size"] = image_token_offset + codebook_size
        table = embedding_size or new_vocab_size
        super().__init__(embedding_size=table, bos_token_id=bos_token_id, eos_token_id=eos_token_id, **kwargs)
