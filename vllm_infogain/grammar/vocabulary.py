"""What the tokens of a model spell: bytes, since in most vocabularies many tokens hold a part of a character only."""

import re
from functools import cache, lru_cache
from typing import Any

NO_TEXT = "\ufffd"  # what decoders write for bytes that are no character
BEFORE = "a"  # stands before a token: at the start of a text some decoders drop a space
BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")  # a byte, in vocabularies that fall back to them (sentencepiece)


def token_bytes(tokenizer: Any, token: str) -> bytes:
    """The bytes that a token, as its vocabulary writes it, adds to a text that goes on before and behind it.

    Raises:
        ValueError: it holds a part of a character, and neither way of writing these is its tokenizer's.
    """
    text = tokenizer.convert_tokens_to_string([BEFORE, token]).removeprefix(BEFORE)
    if NO_TEXT not in text or NO_TEXT in token:
        return text.encode()
    if byte := BYTE.fullmatch(token):
        return bytes.fromhex(byte[1])
    if not _byte_of().keys() >= set(token):
        raise ValueError(f"this model's tokenizer does not tell which bytes its token {token!r} spells")
    return bytes(map(_byte_of().__getitem__, token))


@lru_cache(maxsize=8)
def text_tokens(tokenizer: Any, vocab: int) -> dict[bytes, list[int]]:
    """The token ids below `vocab` that spell each text; without those that a text leaves out, as special ones are.

    Slow at the first call, about a second for 150,000 tokens.

    Raises:
        ValueError: what a token spells depends on its neighbours.
    """
    added = tokenizer.added_tokens_decoder.items()
    left_out = {*tokenizer.all_special_ids, *(token_id for token_id, token in added if token.special)}
    texts: dict[bytes, list[int]] = {}
    whole: dict[str, str] = {}  # tokens that spell characters, and which
    for token_id in set(tokenizer.get_vocab().values()) - left_out:
        if token_id >= vocab:
            continue
        token = tokenizer.convert_ids_to_tokens(token_id)  # not by the vocabulary: added tokens stand before others
        spelled = token_bytes(tokenizer, token)
        texts.setdefault(spelled, []).append(token_id)
        try:
            whole[token] = spelled.decode()
        except UnicodeDecodeError:
            continue
    if tokenizer.convert_tokens_to_string([BEFORE, *whole]) != "".join([BEFORE, *whole.values()]):
        raise ValueError("this model's tokenizer writes a token one way or another by what stands beside it")
    return texts


def shown(tokenizer: Any, token_id: int) -> str:
    """A token alone, special ones by their name. A part of a character is told by its bytes, as OpenAI's API does."""
    token = tokenizer.convert_ids_to_tokens(token_id)
    spelled = b"" if token is None else token_bytes(tokenizer, token)
    try:
        return spelled.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelled)


@cache
def _byte_of() -> dict[str, int]:
    """The byte that each character stands for in byte-level vocabularies (GPT-2's)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]  # printable ones stand for themselves
    others = [byte for byte in range(0x100) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(0x100 + nth): byte for nth, byte in enumerate(others)}
