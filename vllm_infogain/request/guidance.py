"""Classifier-free guidance: each sequence has a guide, the same canvas and suffix behind another prompt.

The logits of a position are (1 + g) c - g u: c those of the sequence, u those of its guide, g `guidance_scale`. What
the other prompt leaves open is weighed down. Imports neither torch nor vLLM.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vllm_infogain.request.fields import ParameterError, text, without_none
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.request.params import DecodingParams

SCALE, PROMPT, NEGATIVE = "guidance_scale", "guidance_prompt_ids", "negative_prompt"


def guide_prompt(params: DecodingParams, prompt: Sequence[int], mask_id: int) -> list[int]:
    """Token ids in the guide's place of the prompt: the prompt masked, as LLaDA's published decoding has it, unless the
    request gives others."""
    return [mask_id] * len(prompt) if params.guidance_prompt_ids is None else list(params.guidance_prompt_ids)


def with_negative_prompt(
    knobs: Mapping[str, Any] | None,
    defaults: Mapping[str, Any],
    token_ids: Callable[[str], Sequence[int]],
    image_tokens: ImageTokens | None = None,
    longest: int | None = None,
) -> dict[str, Any] | None:
    """A request's knobs with token ids in place of its negative prompt; None if it has none.

    Args:
        knobs: as they were given.
        defaults: the server's.
        token_ids: of a text.
        image_tokens: of a model that writes pictures; one's negative prompt is made as its prompt is.
        longest: positions that a sequence may have; None: any number.

    Raises:
        ParameterError: the text is none, is too long for a picture, is given beside token ids, or nothing is guided.
    """
    given = without_none(knobs)
    if NEGATIVE not in given:
        return None
    negative = text(NEGATIVE, given.pop(NEGATIVE))
    if PROMPT in given:
        raise ParameterError(NEGATIVE, negative, f"{PROMPT} says the same as token ids; leave one of them out")
    check_is_guided(negative, given, defaults)
    ids = [*token_ids(negative)]
    if given.get("image") and image_tokens is not None:
        ids = image_tokens.prompt(ids, image_tokens.most_text(longest), NEGATIVE)
    if not ids:
        raise ParameterError(NEGATIVE, negative, "its text has no tokens; give some text, or leave it out")
    return given | {PROMPT: ids}


def check_is_guided(negative: str, knobs: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse a negative prompt that nothing would read."""
    if not {**defaults, **knobs}.get(SCALE):
        raise ParameterError(NEGATIVE, negative, f"nothing is guided; give {SCALE} above 0 too, or leave it out")


def check_guide(params: DecodingParams, prompt_length: int, vocabulary: int) -> None:
    """Refuse a guide that the model cannot read, or whose blocks are not the sequence's.

    Raises:
        ParameterError: naming the parameter, its value and the remedy.
    """
    ids = params.guidance_prompt_ids
    if not params.is_guided or ids is None:
        return
    if max(ids) >= vocabulary:
        raise ParameterError(PROMPT, max(ids), f"outside the vocabulary; give token ids from 0 to {vocabulary - 1}")
    if params.block_causal and (len(ids) - prompt_length) % params.block_length:
        raise ParameterError(
            PROMPT, f"{len(ids)} tokens",
            f"the model attends in blocks of {params.block_length} from the start: give as many tokens as the prompt "
            f"has ({prompt_length}), or whole blocks more or fewer, or leave it out",
        )  # fmt: skip
