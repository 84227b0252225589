"""Complete a request's parameters by what its prompt asks for, and check it, before it enters the engine.

Why: a platform's `validate_request` would see it too, but a plugin may not replace the platform; a logits processor's
    `validate_params` sees neither the prompt nor max_tokens. Four places, because vLLM has no single one:
      - `InputProcessor.process_inputs` makes the complete request, offline and over HTTP. A prompt with masks becomes
        prompt and canvas right before it.
      - `AsyncLLM.generate` is called before a streamed response starts, but runs only after: a check in
        `process_inputs` would come too late for HTTP 400. A constraint takes up to a second to compile, and vLLM's own
        checks of it have no bound: a schema of 3 KB whose properties are all optional takes more memory than there is.
        On the event loop health checks and every stream would stand still meanwhile: it is compiled in a thread, and
        all further checks look up what was found. `route_check` has the response wait for them.
      - `to_sampling_params` of the HTTP requests is where a canvas too long for the model has just been cut to what
        fits. A shorter canvas is another decoding, so the client's own figure is kept for the check, and whether the
        client gave it at all: without, a canvas has the length of its text.
      - `_extract_prompt_len` is what the server sizes the output by: masks in a prompt and all behind them are output.
        A prompt that leaves no room would be told that its max_tokens is 0.
How: wrap each. The checks act only on engines whose scheduler is ours; nobody else reads what is kept.
Upstream: no hook for per-request validation by a plugin.
Remove when: vLLM lets a scheduler or model class validate requests at admission.
"""

from functools import partial
from typing import Any

from vllm_infogain.patches import samples, wrap_once


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.InputProcessor, "process_inputs", _make_complete_request)
    wrap_once(compat.AsyncLLM, "generate", _check_before_streaming)
    for request in (compat.CompletionRequest, compat.ChatCompletionRequest, compat.ResponsesRequest):
        wrap_once(request, "to_sampling_params", _keep_what_was_asked_for)
    wrap_once(compat.BaseServing, "_extract_prompt_len", _without_canvas)


def _make_complete_request(process_inputs):
    def wrapper(self, request_id, prompt, params, *args, **kwargs):
        from vllm_infogain.engine.identity import is_active
        from vllm_infogain.serving.admission import check_constraint_first, check_request, refusing

        if not is_active(self.vllm_config):
            samples.verify(params)
            return process_inputs(self, request_id, prompt, params, *args, **kwargs)
        if not (isinstance(prompt, dict) and "type" in prompt):
            prompt = _rendered(self, prompt, kwargs.get("tokenization_kwargs"))
        params = _with_canvas(self, params, prompt)
        check_constraint_first(getattr(params, "structured_outputs", None), self.vllm_config)
        with refusing():
            request = process_inputs(self, request_id, prompt, params, *args, **kwargs)
        check_request(
            request.sampling_params,
            request.prompt_token_ids,
            self.vllm_config,
            lora_request=request.lora_request,
            is_resumable=request.resumable,
            priority=request.priority,
        )
        if request.sampling_params.n > 1:
            request.sampling_params = samples.mark(request.sampling_params)
        return request

    return wrapper


def _check_before_streaming(generate):
    def wrapper(self, prompt, sampling_params, request_id, **kwargs):
        from vllm_infogain.engine.identity import is_active
        from vllm_infogain.serving.admission import check_constraint_first
        from vllm_infogain.serving.checking import generate_checked

        start = partial(generate, self, prompt, sampling_params, request_id, **kwargs)
        if not is_active(self.vllm_config):
            samples.verify(sampling_params)
            return start()
        if not (isinstance(prompt, dict) and "prompt_token_ids" in prompt):
            return start()
        check = partial(_check_generation, self, prompt, sampling_params, **kwargs)
        constraint = getattr(sampling_params, "structured_outputs", None)
        if constraint is None:
            check()
            return start()
        asked = getattr(sampling_params, "asked_by", None)
        return generate_checked(partial(check_constraint_first, constraint, self.vllm_config, asked), check, start)

    return wrapper


def _check_generation(engine, prompt, sampling_params, *, lora_request=None, priority=0, **_) -> None:
    from vllm_infogain.request.canvas import SEED
    from vllm_infogain.serving.admission import check_request, check_server_limit

    # The server made its own prompt, and shows and counts what we leave of it; any other is its caller's.
    cut = prompt if "type" in prompt else dict(prompt)
    params = _with_canvas(engine.input_processor, sampling_params, cut)
    requested = getattr(sampling_params, "requested_canvas", None)
    if (params.extra_args or {}).get(SEED) is not None:
        # Its length is the canvas's, whatever vLLM made of max_tokens; nor did it look at the server's limit.
        if hasattr(sampling_params, "requested_canvas"):
            check_server_limit(params.max_tokens, engine.vllm_config)
        requested = None
    check_request(
        _filled_in(engine.input_processor, params, len(cut["prompt_token_ids"])),
        cut["prompt_token_ids"],
        engine.vllm_config,
        lora_request=lora_request,
        requested_canvas=requested,
        priority=priority,
    )


def _keep_what_was_asked_for(to_sampling_params):
    def wrapper(self, *args, **kwargs):
        from vllm_infogain.serving.tools import asked_by

        params = to_sampling_params(self, *args, **kwargs)
        names = ("max_completion_tokens", "max_output_tokens", "max_tokens")
        params.requested_canvas = next((size for name in names if (size := getattr(self, name, None))), None)
        # vLLM writes the default of a completion into its request before pydantic sees it: not even model_fields_set
        # tells it from the client's own.
        fields = {name: field.default for name, field in type(self).model_fields.items() if name in names}
        given = (getattr(self, name) for name in names if name in fields and getattr(self, name) != fields[name])
        params.given_canvas = next(given, None)
        params.inserts = bool(getattr(self, "suffix", None))
        params.asked_by = asked_by(self)
        return params

    return wrapper


def _without_canvas(extract_prompt_len):
    def wrapper(self, prompt):
        from vllm_infogain.engine.identity import is_active
        from vllm_infogain.serving.admission import check_room, refusing

        engine = getattr(self, "engine_client", None)
        ids = prompt.get("prompt_token_ids") if isinstance(prompt, dict) else None
        if ids and engine is not None and is_active(engine.vllm_config):
            mask_id = self.model_config.hf_config.mask_token_id
            length = list(ids).index(mask_id) if mask_id in ids else len(ids)
            with refusing():
                check_room(length, self.model_config.max_model_len)
            return length
        return extract_prompt_len(self, prompt)

    return wrapper


# What the wrappers share.


def _rendered(processor, prompt, tokenization_kwargs):
    """As `process_inputs` itself renders a raw prompt: there nobody could cut the masks off it before it is checked."""
    from vllm_infogain.compat import parse_model_prompt

    renderer = processor.renderer
    tok_params = renderer.default_cmpl_tok_params.with_kwargs(**(tokenization_kwargs or {}))
    (engine_input,) = renderer.render_cmpl([parse_model_prompt(processor.model_config, prompt)], tok_params)
    return engine_input


def _with_canvas(processor, params, engine_input):
    """Parameters that hold what the prompt's masks ask for; the prompt itself ends, in place, before the first mask."""
    from vllm_infogain.compat import SamplingParams
    from vllm_infogain.serving import infilling
    from vllm_infogain.serving.admission import given_canvas, refusing

    if not isinstance(params, SamplingParams):
        return params
    mask_id, tokenizer = processor.model_config.hf_config.mask_token_id, processor.tokenizer
    with refusing():
        mask_text = None if tokenizer is None else tokenizer.convert_ids_to_tokens([mask_id])[0]
        infilling.cut_prompt(engine_input, mask_id, mask_text, inserts=getattr(params, "inserts", False))
        return infilling.with_canvas(params, engine_input.get(infilling.GAP), given_canvas(params))


def _filled_in(processor, params: Any, prompt_length: int):
    """Parameters as `process_inputs` completes them, with stop tokens, bad words as tokens and a length, or refuses."""
    from vllm_infogain.compat import SamplingParams
    from vllm_infogain.serving.admission import check_constraint_first

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
