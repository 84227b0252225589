"""Tokenizers in whose vocabularies many tokens are parts of characters, of Qwen's kind and of sentencepiece's."""

import json
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from vllm_infogain.embedded.tokenizer import ANSWER, BOS, MASK, SPECIALS, VOCAB, save_tokenizer

TEXT = '中文字符 你好，世界！ 中国中文 日本語 한국어 naïve café 😀😃😄 👩‍👩‍👧 {"a": "中"} the then there 100 1000'
QWEN = r"\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\s+"  # in short


def byte_level(text: str = TEXT, size: int = 420) -> Tokenizer:
    """Byte-level BPE. What infogain-tiny has a token for has the same token here, so that its prompts mean the same.

    Args:
        text: what it is trained on; other bytes than are in it and in infogain-tiny's texts only if it is TEXT.
        size: tokens it learns.
    """
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet() if text is TEXT else []
    trained.train_from_iterator([text] * 9, trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet))
    learned = json.loads(trained.to_str())["model"]
    plain = {"\n": "Ċ", " ": "Ġ"}
    names = dict.fromkeys([*(plain.get(token, token) for token in VOCAB), *sorted(learned["vocab"])])
    merges = [tuple(pair) for pair in learned["merges"]]
    tokenizer = Tokenizer(models.BPE({name: index for index, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    tokenizer.add_tokens(["<think>", "｜中▁文｜"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {ANSWER}", special_tokens=[(BOS, VOCAB[BOS]), (ANSWER, VOCAB[ANSWER])]
    )
    return tokenizer


def byte_fallback(metaspace: bool) -> Tokenizer:
    """Sentencepiece's kind: `▁` is a space, and `<0xE4>` a byte of a character that has no token."""
    pieces = ["<unk>", "</s>", MASK, *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁▁", "▁the", "the", "n", "▁中", "中", "文", "é", "▁😀", "."]
    tokenizer = Tokenizer(
        models.BPE({piece: index for index, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    if metaspace:
        steps = [decoders.ByteFallback(), decoders.Metaspace()]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "</s>", MASK])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def small() -> Tokenizer:
    """With few tokens, since a test may try them all: of some characters only parts."""
    return byte_level("中文世界世界😀😀é", 28)


def save(tokenizer: Tokenizer, path: Path) -> None:
    """Over the tokenizer of a checkpoint."""
    save_tokenizer(path)
    tokenizer.save(str(path / "tokenizer.json"))
