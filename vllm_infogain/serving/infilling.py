"""A prompt with masks, completed in place: what comes before the first mask is the prompt, the rest is the canvas."""

from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_infogain.request.canvas import PINNED, SEED, SUFFIX, other_length
from vllm_infogain.request.fields import ParameterError, without_none

GAP = "infilling"  # key of vLLM's engine input that holds the Gap


@dataclass(frozen=True)
class Gap:
    """What the masks of a prompt ask for; travels with vLLM's engine input. Set by `cut_prompt`."""

    canvas: tuple[int, ...] | None  # everything from the first mask on; None: max_tokens masks
    suffix: tuple[int, ...] = ()


def cut_prompt(
    engine_input: MutableMapping[str, Any], mask_id: int, mask_text: str | None, *, inserts: bool = False
) -> None:
    """Leave of a prompt, in place, what comes before its first mask; the rest becomes its Gap.

    Args:
        engine_input: vLLM's, with `prompt_token_ids` and perhaps their text as `prompt`.
        mask_text: how the tokenizer writes the mask token; None: it does not, so that no text holds any.
        inserts: the only mask stands for all that is to be inserted, and what follows it is the suffix.

    Raises:
        ParameterError: nothing comes before the first mask.
    """
    ids: Sequence[int] = engine_input.get("prompt_token_ids") or ()
    if mask_id not in ids:
        return
    first = list(ids).index(mask_id)
    if first == 0:
        raise ParameterError("prompt", "a mask at its start", "give at least one token before the first mask")
    behind = tuple(ids[first:])
    engine_input["prompt_token_ids"] = list(ids[:first])
    engine_input[GAP] = Gap(None, behind[1:]) if inserts else Gap(behind)
    if mask_text and engine_input.get("prompt"):
        engine_input["prompt"] = engine_input["prompt"].partition(mask_text)[0]


def with_canvas(params: Any, gap: Gap | None, given_length: int | None, picture: int | None = None) -> Any:
    """vLLM's SamplingParams with all that is known of the canvas: its text in `extra_args`, its length as `max_tokens`.

    The caller may share the parameters between requests: what changes is a copy.

    Args:
        gap: of the request's prompt.
        given_length: `max_tokens`, if the request itself gives it.
        picture: codes of one, if the request asks for a picture: a canvas of so many, which no text spells.

    Raises:
        ParameterError: the canvas is given twice, or with another length.
    """
    extra = without_none(params.extra_args)
    ours: dict[str, Any] = {}
    if gap:
        ours = {SUFFIX: gap.suffix} if gap.canvas is None else {SEED: gap.canvas}
        clash = [name for name in ((SUFFIX,) if gap.canvas is None else (SEED, PINNED, SUFFIX)) if name in extra]
        if clash:
            where = "the request's suffix" if gap.canvas is None else "the masks in the prompt"
            raise ParameterError(clash[0], extra[clash[0]], f"{where} says what is to be filled; leave one of them out")
    seed = ours.get(SEED, extra.get(SEED))
    length = len(seed) if isinstance(seed, list | tuple) else None  # anything else is refused by its parser
    if length is None and given_length in (None, picture):
        length = picture
    if not ours and length is None and picture is None:
        return params
    params = params.clone()
    params.detokenize = params.detokenize and picture is None
    params.extra_args = {**extra, **ours}
    if length is not None:
        if length == 0:
            raise ParameterError(SEED, [], "a canvas without any place; give at least one mask")
        if given_length not in (None, length):
            raise other_length(given_length, length)
        if params.min_tokens > length:
            raise ParameterError("min_tokens", params.min_tokens, f"the canvas has {length} tokens; give at most that")
        params.max_tokens = length
    return params
