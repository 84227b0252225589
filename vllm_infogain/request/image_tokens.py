"""How a model writes pictures as tokens. Imports neither torch nor vLLM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from vllm_infogain.request.fields import ParameterError

# The paper's for pictures; `tau_position` has another of them.
PICTURE_DEFAULTS = {"schedule": "maskgit", "steps": 50, "bypass_threshold": 1.0}
TEXT_ONLY = "belongs to text, and a picture is asked for; leave it out"
MOST_TEXT = 510  # tokens; with <|t2i|>, bos and eos as many as MMaDA was trained on


@dataclass(frozen=True)
class ImageTokens:
    """Of an image model's config; MMaDA's, where it says nothing. A picture is a square of codes, row by row."""

    codebook_size: int = 8192
    image_token_offset: int = 126349  # the token of code 0; text lies below it
    image_codes_per_side: int = 32
    bos_token_id: int = 126080
    eos_token_id: int = 126081
    soi_token_id: int = 126084  # before a picture's codes
    eoi_token_id: int = 126085  # behind them
    t2i_token_id: int = 126088  # begins a prompt that asks for a picture
    mmu_token_id: int = 126089  # begins a prompt that shows one

    @classmethod
    def of(cls, config: Any) -> ImageTokens | None:
        """Of a Hugging Face config; None: the model writes text only."""
        if not getattr(config, "codebook_size", None):
            return None
        known = {one.name: getattr(config, one.name, None) for one in fields(cls)}
        return cls(**{name: value for name, value in known.items() if value is not None})

    @property
    def columns(self) -> tuple[int, int]:
        """The tokens of codes: from the first up to the second."""
        return self.image_token_offset, self.image_token_offset + self.codebook_size

    @property
    def codes(self) -> int:
        """Of one picture."""
        return self.image_codes_per_side**2

    @property
    def are_read(self) -> bool:
        """Whether the model was trained to read pictures. Where it was not, no token of its text says so."""
        return self.mmu_token_id < self.image_token_offset

    def most_text(self, longest: int | None = None) -> int:
        """Tokens that a text for a picture may have where a sequence has at most `longest` (None: any number)."""
        around = len(self.prompt([])) + 1  # <|eoi|>
        return MOST_TEXT if longest is None else min(MOST_TEXT, longest - self.codes - around)

    def prompt(self, text: Sequence[int], most: int = MOST_TEXT, name: str = "prompt") -> list[int]:
        """`<|t2i|> bos text eos <|soi|>`; the picture's codes follow, then `<|eoi|>`, which is the request's suffix.

        Released code pads it on the left and masks the padding, which is the same: positions are relative. Of no text
        it is the prompt of guidance, which asks for nothing.

        Args:
            text: token ids of the plain text, in no chat template; with or without the tokenizer's own bos and eos.
            most: tokens that the text may have.
            name: of the parameter that the text is.

        Raises:
            ParameterError: the text is too long. It is not cut.
        """
        bos, eos = self.bos_token_id, self.eos_token_id
        inner = list(text)
        if inner[:1] == [bos]:
            inner = inner[1:]
        if inner[-1:] == [eos]:
            inner = inner[:-1]
        if len(inner) > most:
            raise ParameterError(name, f"{len(inner)} tokens", f"a text for a picture has at most {most}; shorten it")
        return [self.t2i_token_id, bos, *inner, eos, self.soi_token_id]

    def shown(self, codes: Sequence[int]) -> list[int]:
        """`<|mmu|> <|soi|> codes <|eoi|>`: a picture to be read; a chat about it follows."""
        inner = [self.image_token_offset + code for code in codes]
        return [self.mmu_token_id, self.soi_token_id, *inner, self.eoi_token_id]


def picture_knobs(given: Mapping[str, Any], defaults: Mapping[str, Any], tokens: ImageTokens | None) -> dict[str, Any]:
    """The knobs of a request for a picture: its own, over the server's defaults, over those of pictures.

    Raises:
        ParameterError: the model writes no pictures, or the request asks for what only a text has.
    """
    if tokens is None:
        raise ParameterError("image", True, "this model writes text only; leave it out")
    only = {"suffix_token_ids": (tokens.eoi_token_id,), "eos_penalty": 0.0, "eos_last": False}
    for name, value in only.items():
        if given.get(name, value) != value:
            raise ParameterError(name, given[name], "a picture has its own end; leave it out")
    # Where a picture is decoded from left to right, that is for its request to say: the server's blocks are of text.
    knobs = {**PICTURE_DEFAULTS, **defaults, "block_length": 0, **given, **only}
    if "tokens_per_step" in given and "schedule" not in given:
        knobs["schedule"] = "fixed"
    if knobs.get("guidance_scale"):
        knobs.setdefault("guidance_prompt_ids", tuple(tokens.prompt([])))
    return knobs
