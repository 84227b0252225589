"""A canvas that holds text from the start: what of it stands, what is to be filled. Imports neither torch nor vLLM.

A request says so in one of three ways, and all end as `diffusion_seed_canvas`, `diffusion_pinned` and
`suffix_token_ids` of one record: by these themselves; by masks in its prompt, which is then completed in place; by the
completion endpoint's `suffix`.
"""

from collections.abc import Collection, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_infogain.params import DecodingParams
from vllm_infogain.values import ParameterError

GAP = "infilling"  # key of vLLM's engine input that holds the Gap
SEED, PINNED, SUFFIX = "diffusion_seed_canvas", "diffusion_pinned", "suffix_token_ids"


@dataclass(frozen=True)
class Gap:
    """What the masks of a prompt ask for; travels with vLLM's engine input. Set by `cut_prompt`."""

    canvas: tuple[int, ...] | None  # everything from the first mask on; None: max_tokens masks
    suffix: tuple[int, ...] = ()


def initial_canvas(params: DecodingParams, mask_id: int) -> list[int]:
    """[canvas] token ids that decoding starts from: the mask token wherever a token is to be written.

    `diffusion_seed_canvas` and `diffusion_pinned` are vLLM's: the pinned places of the seed stand. Without
    `diffusion_pinned` every token of the seed but the mask token does.
    """
    seed, pinned = params.diffusion_seed_canvas, params.diffusion_pinned
    if seed is None:
        return [mask_id] * params.canvas_length
    if pinned is None:
        return list(seed)
    stands = set(pinned)
    return [token if place in stands else mask_id for place, token in enumerate(seed)]


def stops_from(params: DecodingParams, mask_id: int) -> int:
    """The first place of the canvas that may hold a written stop token: behind it text is dropped, and none that stood
    there from the start may be."""
    canvas = initial_canvas(params, mask_id)
    last = next((place for place in reversed(range(len(canvas))) if canvas[place] != mask_id), 0)
    return max(params.constraints.min_tokens, last)


def check_infill(params: DecodingParams, stop_strings: Collection[str], mask_id: int, vocabulary: int) -> None:
    """Refuse a canvas that cannot be filled, or whose text could come back changed.

    Raises:
        ParameterError: naming the parameter, its value and the remedy.
    """
    seed, pinned = params.diffusion_seed_canvas, params.diffusion_pinned
    for name, tokens in ((SEED, seed), (SUFFIX, params.suffix_token_ids)):
        if tokens and max(tokens) >= vocabulary:
            raise ParameterError(
                name, max(tokens), f"outside the vocabulary; give token ids from 0 to {vocabulary - 1}"
            )
    if mask_id in params.suffix_token_ids:
        raise ParameterError(SUFFIX, mask_id, f"holds the mask token; what is to be filled belongs into {SEED}")
    if seed is None:
        if pinned is not None:
            raise ParameterError(PINNED, list(pinned), f"places of what? give {SEED} too")
        return
    if len(seed) != params.canvas_length:
        raise _other_length(params.canvas_length, len(seed))
    for place in pinned or ():
        if place >= len(seed):
            raise ParameterError(PINNED, place, f"outside the canvas; give places from 0 to {len(seed) - 1}")
        if seed[place] == mask_id:
            raise ParameterError(PINNED, place, f"{SEED} holds the mask token there; pin places that hold text")
    canvas = initial_canvas(params, mask_id)
    if mask_id not in canvas:
        raise ParameterError(SEED, f"{len(canvas)} tokens of text", "nothing is left to fill; give at least one mask")
    if stop_strings and canvas != [mask_id] * len(canvas):
        raise ParameterError(
            "stop", list(stop_strings), "could cut the text that stands in the canvas; leave it out, or give the "
            "stop's token in stop_token_ids",
        )  # fmt: skip
    # vLLM ends a text at its first stop token, wherever that comes from.
    first = max(stops_from(params, mask_id), canvas.index(mask_id))
    for place, token in enumerate(canvas[:first]):
        if token in params.stop_ids:
            raise ParameterError(
                SEED, f"token {token} at place {place}",
                f"a stop token there would end the text before place {first}; give ignore_eos, or leave it out",
            )  # fmt: skip


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


def with_canvas(params: Any, gap: Gap | None, given_length: int | None) -> Any:
    """vLLM's SamplingParams with all that is known of the canvas: its text in `extra_args`, its length as `max_tokens`.

    The caller may share the parameters between requests: what changes is a copy.

    Args:
        gap: of the request's prompt.
        given_length: `max_tokens`, if the request itself gives it.

    Raises:
        ParameterError: the canvas is given twice, or with another length.
    """
    extra = params.extra_args or {}
    ours: dict[str, Any] = {}
    if gap:
        ours = {SUFFIX: gap.suffix} if gap.canvas is None else {SEED: gap.canvas}
        clash = [name for name in ((SUFFIX,) if gap.canvas is None else (SEED, PINNED, SUFFIX)) if name in extra]
        if clash:
            where = "the request's suffix" if gap.canvas is None else "the masks in the prompt"
            raise ParameterError(clash[0], extra[clash[0]], f"{where} says what is to be filled; leave one of them out")
    seed = ours.get(SEED, extra.get(SEED))
    length = len(seed) if isinstance(seed, list | tuple) else None  # anything else is refused by its parser
    if not ours and length is None:
        return params
    params = params.clone()
    params.extra_args = {**extra, **ours}
    if length is not None:
        if length == 0:
            raise ParameterError(SEED, [], "a canvas without any place; give at least one mask")
        if given_length not in (None, length):
            raise _other_length(given_length, length)
        if params.min_tokens > length:
            raise ParameterError("min_tokens", params.min_tokens, f"the canvas has {length} tokens; give at most that")
        params.max_tokens = length
    return params


def _other_length(given: int | None, length: int) -> ParameterError:
    return ParameterError("max_tokens", given, f"the canvas has {length} tokens; give {length}, or leave it out")
