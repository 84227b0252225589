"""Masks as a user writes them in text: `<|mask|>`, and `<|mask:12|>` for twelve. Imports neither torch nor vLLM.

Everywhere `mask_text` is how the model's own tokenizer writes its mask token.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_infogain.request.fields import ParameterError

WRITTEN = re.compile(r"<\|mask(?::([^|<>]*))?\|>")
# What is meant as a mask, and is none: the first can hardly be anything else, the second may be talked about.
MISTYPED = re.compile(r"<\|[^|<>]*mask[^|<>]*\|>", re.IGNORECASE)
OTHER_MASK = re.compile(r"\[mask(?::?\d+)?\]|<mask(?::?\d+)?>", re.IGNORECASE)


def has_masks(text: str, mask_text: str) -> bool:
    return mask_text in text or WRITTEN.search(text) is not None


def expand_masks(text: str, mask_text: str, most: int) -> str:
    """The text with the model's mask token, as often as each written mask says.

    Args:
        most: the longest canvas.

    Raises:
        ParameterError: for a number of masks that is none, or too large.
    """
    total = 0

    def masks(written: re.Match[str]) -> str:
        nonlocal total
        digits = "1" if written[1] is None else written[1]
        count = int(digits) if re.fullmatch("[0-9]{1,9}", digits) else 0
        total += count
        if count < 1 or total > most:
            raise ParameterError("prompt", written[0], f"give <|mask|> or <|mask:N|>, N masks, from 1 to {most} in all")
        return mask_text * count

    return WRITTEN.sub(masks, text)


def check_typed(text: str, mask_text: str, is_token: Callable[[str], bool]) -> str | None:
    """Refuse what is written almost like a mask, and would be read as so many characters.

    Args:
        is_token: whether the tokenizer has this as one token.

    Returns:
        a mask of other models, `[MASK]` or `<mask>`, which is text here.

    Raises:
        ParameterError: for such as `<|mask7|>` or `<|MASK|>`.
    """
    for mistyped in MISTYPED.findall(WRITTEN.sub("", text.replace(mask_text, ""))):
        if not is_token(mistyped):
            raise ParameterError("prompt", mistyped, "no mask; give <|mask|> or <|mask:N|>, N masks")
    other = OTHER_MASK.search(text.replace(mask_text, ""))
    return other[0] if other else None


def check_whole(truncate: int | None) -> None:
    """Refuse to truncate a prompt whose end is the canvas."""
    if truncate is not None:
        raise ParameterError(
            "truncate_prompt_tokens", truncate, "would cut the canvas of a prompt with masks; leave it out"
        )


def check_spelt(ids: Sequence[int], mask_id: int, unknown_id: int | None) -> None:
    """Refuse text that the tokenizer does not know: it could not come back as it was."""
    if unknown_id in ids[ids.index(mask_id) :]:
        raise ParameterError(
            "prompt", "text behind a mask", "has characters that this model's tokenizer does not know; leave them out"
        )


def check_without_masks(text: str, mask_text: str) -> None:
    """Refuse masks in a prompt with a suffix, or in the suffix."""
    if has_masks(text, mask_text):
        raise ParameterError(
            "suffix", "given with masks in the text", "it says itself where the text goes; leave one of them out"
        )


# Chats.


def message_text(message: Mapping[str, Any]) -> str:
    """The text of a chat message, whether its content is a string or a list of parts."""
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part["text"] for part in content if _is_text(part))


def expand_message(message: Mapping[str, Any], mask_text: str, most: int) -> dict[str, Any]:
    """A chat message whose text has the model's mask token wherever a mask is written."""
    content = message["content"]
    if isinstance(content, str):
        return {**message, "content": expand_masks(content, mask_text, most)}
    parts = [
        {**part, "text": expand_masks(part["text"], mask_text, most)} if _is_text(part) else part for part in content
    ]
    return {**message, "content": parts}


def check_chat(rendered: str, own: int, mask_text: str) -> None:
    """Refuse masks that are not in the last message, or not the assistant's: the template's text follows them.

    Args:
        rendered: the whole chat.
        own: mask tokens of the last message, if the assistant's.
    """
    if rendered.count(mask_text) != own or WRITTEN.search(rendered.replace(mask_text, "")):
        raise ParameterError(
            "messages", "a mask outside the last message",
            "masks are filled in a last message of role assistant; put the text to complete there",
        )  # fmt: skip


def _is_text(part: Any) -> bool:
    return isinstance(part, Mapping) and isinstance(part.get("text"), str)
