"""Complete a request's parameters by what its prompt asks for, and check it, before it enters the engine.

Why: a platform's `validate_request` would see it too, but a plugin may not replace the platform; a logits processor's
    `validate_params` sees neither the prompt nor max_tokens. Four places, because vLLM has no single one:
      - `InputProcessor.process_inputs` makes the complete request, offline and over HTTP. A prompt with masks becomes
        prompt and canvas right before it.
      - `AsyncLLM.generate` is called before a streamed response starts, but runs only after: a check in
        `process_inputs` would come too late for HTTP 400. A constraint takes up to a second to compile, and vLLM's own
        checks of it have no bound: a schema of 3 KB whose properties are all optional takes more memory than there is.
        On the event loop health checks and every stream would stand still meanwhile: it is compiled in a thread, and
        all further checks look up what was found. `route_check` has the response wait for them. What is checked here
        is not checked again by `process_inputs`, see `serving/admitted.py`.
      - `to_sampling_params` of the HTTP requests is where a canvas too long for the model has just been cut to what
        fits. A shorter canvas is another decoding, so what the client asked for is kept for the check, see
        `serving/asked.py`.
      - `_extract_prompt_len` is what the server sizes the output by: masks in a prompt and all behind them are output.
        A prompt that leaves no room would be told that its max_tokens is 0.
How: wrap each. The checks act only on engines whose scheduler is ours; nobody else reads what is kept.
Upstream: no hook for per-request validation by a plugin.
Remove when: vLLM lets a scheduler or model class validate requests at admission.
"""

from functools import partial

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
        from vllm_infogain.serving.admission import check_constraint_first, check_options, check_request, refusing
        from vllm_infogain.serving.admitted import admitted, completed, rendered

        if not is_active(self.vllm_config):
            samples.verify(params)
            return process_inputs(self, request_id, prompt, params, *args, **kwargs)
        if not (isinstance(prompt, dict) and "type" in prompt):
            prompt = rendered(self, prompt, kwargs.get("tokenization_kwargs"))
        found = admitted(prompt, params)
        params = found.params if found else completed(self, params, prompt)
        if not found:
            check_constraint_first(getattr(params, "structured_outputs", None), self.vllm_config)
        with refusing():
            request = process_inputs(self, request_id, prompt, params, *args, **kwargs)
            check_options(request.lora_request, request.resumable, request.priority)
        if not found:
            check_request(request.sampling_params, request.prompt_token_ids, self.vllm_config)
        if request.sampling_params.n > 1:
            request.sampling_params = samples.mark(request.sampling_params)
        return request

    return wrapper


def _check_before_streaming(generate):
    def wrapper(self, prompt, sampling_params, request_id, **kwargs):
        from vllm_infogain.engine.identity import is_active
        from vllm_infogain.serving.admission import check_constraint_first
        from vllm_infogain.serving.admitted import admit, rendered
        from vllm_infogain.serving.asked import Asked
        from vllm_infogain.serving.checking import generate_checked

        if not is_active(self.vllm_config):
            samples.verify(sampling_params)
            return generate(self, prompt, sampling_params, request_id, **kwargs)
        if not (isinstance(prompt, dict) and "prompt_token_ids" in prompt):
            return generate(self, prompt, sampling_params, request_id, **kwargs)
        if "type" not in prompt:
            prompt = rendered(self.input_processor, prompt, kwargs.get("tokenization_kwargs"))
        start = partial(generate, self, prompt, sampling_params, request_id, **kwargs)
        check = partial(admit, self.input_processor, prompt, sampling_params, **kwargs)
        constraint = getattr(sampling_params, "structured_outputs", None)
        if constraint is None:
            check()
            return start()
        asked = Asked.of(sampling_params).constraint
        return generate_checked(partial(check_constraint_first, constraint, self.vllm_config, asked), check, start)

    return wrapper


def _keep_what_was_asked_for(to_sampling_params):
    def wrapper(self, *args, **kwargs):
        from vllm_infogain.serving.asked import Asked

        params = to_sampling_params(self, *args, **kwargs)
        params.asked = Asked.of_request(self)
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
