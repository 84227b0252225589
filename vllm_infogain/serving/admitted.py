"""A request on its way to the engine: completed by the masks of its prompt and by the tokens of its negative prompt,
checked once, and marked as checked.

Over HTTP it is checked before its response starts, and vLLM makes the engine's request of it later: what it was checked
with travels with vLLM's engine input, so that nothing is parsed twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vllm_infogain.compat import InputProcessor, SamplingParams, VLLMValidationError, parse_model_prompt
from vllm_infogain.request.canvas import SEED
from vllm_infogain.request.fields import ParameterError, switch
from vllm_infogain.request.from_vllm import image_tokens, settings_of
from vllm_infogain.request.guidance import NEGATIVE, with_negative_prompt
from vllm_infogain.serving import infilling
from vllm_infogain.serving.admission import (
    check_constraint_first,
    check_options,
    check_request,
    check_server_limit,
    refusing,
)
from vllm_infogain.serving.asked import Asked

ADMITTED = "infogain"  # key of vLLM's engine input that holds the Admitted


@dataclass(frozen=True)
class Admitted:
    """Parameters that a prompt was checked with. Set by `admit`."""

    given: Any  # the caller's own
    params: Any  # a copy of them, with what the prompt's masks ask for


def admitted(engine_input: Mapping[str, Any], given: Any) -> Admitted | None:
    """What a prompt was checked with, if it was with these parameters."""
    found = engine_input.get(ADMITTED)
    return found if found is not None and found.given is given else None


def admit(
    processor: InputProcessor, engine_input: Any, given: Any, *, lora_request: Any = None, priority: int = 0, **_: Any
) -> None:
    """Check a request before its response starts, unless it has been; it is marked so, in place.

    Raises:
        RequestError: see `check_request`.
    """
    with refusing():
        check_options(lora_request, False, priority)
    if admitted(engine_input, given):
        return
    asked = Asked.of(given) if isinstance(given, SamplingParams) else Asked()
    params = completed(processor, given, engine_input)
    requested = asked.canvas
    codes = _picture(processor, params)
    is_picture = codes is not None and params.max_tokens == codes
    if is_picture or SEED in (getattr(params, "extra_args", None) or {}):
        # Its length is the canvas's, whatever vLLM made of max_tokens; nor did it look at the server's limit.
        if asked.over_http:
            check_server_limit(params.max_tokens, processor.vllm_config)
        requested = None
    prompt = engine_input["prompt_token_ids"]
    check_request(_filled_in(processor, params, len(prompt)), prompt, processor.vllm_config, requested_canvas=requested)
    engine_input[ADMITTED] = Admitted(given, params.clone() if params is given else params)


def rendered(processor: InputProcessor, prompt: Any, tokenization_kwargs: Mapping[str, Any] | None) -> Any:
    """As vLLM's `process_inputs` itself renders a raw prompt: there nobody could cut the masks off it before it is
    checked."""
    renderer = processor.renderer
    tok_params = renderer.default_cmpl_tok_params.with_kwargs(**(tokenization_kwargs or {}))
    (engine_input,) = renderer.render_cmpl([parse_model_prompt(processor.model_config, prompt)], tok_params)
    return engine_input


def completed(processor: InputProcessor, params: Any, engine_input: Any) -> Any:
    """Parameters that hold the token ids of a negative prompt, and what the prompt's masks ask for; the prompt itself
    ends, in place, before the first mask."""
    return _with_negative_prompt(processor, _with_canvas(processor, params, engine_input))


def _with_canvas(processor: InputProcessor, params: Any, engine_input: Any) -> Any:
    if not isinstance(params, SamplingParams):
        return params
    asked = Asked.of(params)
    mask_id, tokenizer = processor.model_config.hf_config.mask_token_id, processor.tokenizer
    with refusing():
        mask_text = None if tokenizer is None else tokenizer.convert_ids_to_tokens([mask_id])[0]
        infilling.cut_prompt(engine_input, mask_id, mask_text, inserts=asked.inserts)
        return infilling.with_canvas(
            params, engine_input.get(infilling.GAP), asked.own_canvas, _picture(processor, params)
        )


def _picture(processor: InputProcessor, params: Any) -> int | None:
    """Codes of a picture, if the request asks for one and the model makes any."""
    tokens = image_tokens(processor.vllm_config)
    asks = switch("image", (getattr(params, "extra_args", None) or {}).get("image") or False)
    return tokens.codes if tokens is not None and asks else None


def _with_negative_prompt(processor: InputProcessor, params: Any) -> Any:
    if not isinstance(params, SamplingParams):
        return params

    def token_ids(text: str) -> Sequence[int]:
        """As of the prompt of a completion."""
        if processor.tokenizer is None:
            raise ParameterError(NEGATIVE, text, "this server has no tokenizer; give token ids as guidance_prompt_ids")
        try:
            return rendered(processor, text, None)["prompt_token_ids"] if text else []
        except VLLMValidationError as error:
            raise ParameterError(NEGATIVE, f"{len(text)} characters", str(error)) from None

    config = processor.vllm_config
    with refusing():
        knobs = with_negative_prompt(
            params.extra_args,
            settings_of(config)[1],
            token_ids,
            image_tokens(config),
            config.model_config.max_model_len,
        )
    if knobs is None:
        return params
    params = params.clone()
    params.extra_args = knobs
    return params


def _filled_in(processor: InputProcessor, params: Any, prompt_length: int) -> Any:
    """Parameters as `process_inputs` completes them, with stop tokens, bad words as tokens and a length, or refuses."""
    if not isinstance(params, SamplingParams):
        return params
    check_constraint_first(params.structured_outputs, processor.vllm_config)
    params = params.clone()
    params.verify(
        processor.model_config, processor.speculative_config, processor.structured_outputs_config, processor.tokenizer
    )
    params.update_from_generation_config(processor.generation_config_fields, processor.renderer.get_eos_token_id())
    if processor.tokenizer is not None:
        params.update_from_tokenizer(processor.tokenizer)
    if params.max_tokens is None:
        params.max_tokens = processor.model_config.max_model_len - prompt_length
    return params
