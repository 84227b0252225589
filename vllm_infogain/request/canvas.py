"""A canvas that holds text from the start: what of it stands, what is to be filled. Imports neither torch nor vLLM.

A request says so in one of three ways, and all end as `diffusion_seed_canvas`, `diffusion_pinned` and
`suffix_token_ids` of one record: by these themselves; by masks in its prompt, which is then completed in place; by the
completion endpoint's `suffix`.
"""

from collections.abc import Collection

from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.params import DecodingParams

SEED, PINNED, SUFFIX = "diffusion_seed_canvas", "diffusion_pinned", "suffix_token_ids"


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
        raise other_length(params.canvas_length, len(seed))
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


def other_length(given: int | None, length: int) -> ParameterError:
    return ParameterError("max_tokens", given, f"the canvas has {length} tokens; give {length}, or leave it out")
