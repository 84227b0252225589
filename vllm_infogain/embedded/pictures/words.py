"""The tokens of infogain-tiny-image: special tokens as MMaDA has them, words of prompts, then codes of pictures."""

import json
from pathlib import Path

from vllm_infogain.embedded.pictures.scenes import (
    COLOURS,
    COUNTS,
    PLURALS,
    RELATIONS,
    SHAPES,
    TEMPLATES,
)
from vllm_infogain.request.image_tokens import ImageTokens

SPECIALS = ("<|startoftext|>", "<|endoftext|>", "<|t2i|>", "<|mmu|>", "<|soi|>", "<|eoi|>", "<|mdm_mask|>", "<|unk|>")
BOS, EOS, T2I, MMU, SOI, EOI, MASK, UNK = range(len(SPECIALS))
_PHRASES = (*TEMPLATES, *RELATIONS, *COUNTS.values(), *COLOURS, *SHAPES, *PLURALS.values(), "a", "an", "and")
WORDS = sorted({word for phrase in _PHRASES for word in phrase.format("").split()})
VOCAB = {token: index for index, token in enumerate((*SPECIALS, *WORDS))}
FIRST_CODE = len(VOCAB)  # the id of code 0, as of MMaDA the tokenizer's length
BITS = 8  # of a code
SIDE_CODES = 8  # codes along a side
CODES = SIDE_CODES**2
TOKENS = ImageTokens(
    codebook_size=2**BITS, image_token_offset=FIRST_CODE, image_codes_per_side=SIDE_CODES,
    bos_token_id=BOS, eos_token_id=EOS, soi_token_id=SOI, eoi_token_id=EOI, t2i_token_id=T2I,
)  # fmt: skip
MAX_LENGTH = 96  # tokens: prompt, its special tokens, the codes


def encode(prompt: str) -> list[int]:
    """Ids of the prompt's words alone."""
    return [VOCAB.get(word, UNK) for word in prompt.split()]


def text_to_image(words: list[int]) -> list[int]:
    """The prompt as the model reads it, up to where the codes begin; without words, the unconditional one."""
    return TOKENS.prompt(words)


def save_words(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json: one token per word."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel(VOCAB, unk_token=SPECIALS[UNK]))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIALS[BOS],
        "eos_token": SPECIALS[EOS],
        "pad_token": SPECIALS[EOS],
        "unk_token": SPECIALS[UNK],
        "mask_token": SPECIALS[MASK],
        "model_max_length": MAX_LENGTH,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
