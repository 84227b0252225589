"""Whether a picture can be made as asked. Imports neither torch nor vLLM."""

from collections.abc import Collection, Sequence

from vllm_infogain.request.canvas import SEED
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.image_tokens import TEXT_ONLY, ImageTokens
from vllm_infogain.request.params import DecodingParams


def check_picture(
    params: DecodingParams,
    tokens: ImageTokens | None,
    mask_id: int,
    *,
    canvas: int,
    prompt: Sequence[int],
    prompt_name: str = "prompt",
    stop_strings: Collection[str] = (),
    stop_ids: Collection[int] = (),
) -> None:
    """Refuse what only a text can have, and what is not the model's picture. A request for a text passes.

    Args:
        params: of the request.
        tokens, mask_id: the model's.
        canvas: `max_tokens` as the client gave it.
        prompt: token ids.
        prompt_name: of the parameter that it is.
        stop_strings, stop_ids: `stop` and `stop_token_ids`.

    Raises:
        ParameterError: naming the parameter, its value and the remedy.
    """
    if not params.image:
        return
    assert tokens is not None, "else the request is refused"
    if canvas != tokens.codes:
        raise ParameterError("max_tokens", canvas, f"a picture of this model has {tokens.codes} codes; give as many")
    # The codes follow where the model was trained to have them follow; a guide is another prompt before the same codes.
    for name, ids in ((prompt_name, prompt), ("guidance_prompt_ids", params.guidance_prompt_ids)):
        if ids is not None and ids[-1] != tokens.soi_token_id:
            raise ParameterError(
                name, f"token ids that end in {ids[-1]}",
                f"a prompt for a picture ends in <|soi|>, here token {tokens.soi_token_id}: give token ids as "
                "ImageTokens.prompt makes them, or ask /v1/images/generations",
            )  # fmt: skip
    constraints, codes = params.constraints, range(*tokens.columns)
    texts = {
        "allowed_token_ids": list(constraints.allowed_ids),
        "logit_bias": dict(constraints.logit_bias),
        "bad_words": [list(word) for word in constraints.banned],
        "logprob_token_ids": list(params.logprob_token_ids),
        "stop": list(stop_strings),
        "stop_token_ids": [token for token in stop_ids if token in codes],  # others never stand in a picture
    }
    for name, value in texts.items():
        if value:
            raise ParameterError(name, value, TEXT_ONLY)
    for token in params.diffusion_seed_canvas or ():
        if token not in codes and token != mask_id:
            raise ParameterError(
                SEED, token, f"no code of a picture; give token ids from {codes.start} to {codes.stop - 1}, or the mask"
            )
