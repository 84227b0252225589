"""Check a request against what our engine can serve, before it enters the engine.

Why: a platform's `validate_request` would see it too, but a plugin may not replace the platform; a logits processor's
    `validate_params` sees neither the prompt nor max_tokens. Three places, because vLLM has no single one:
      - `InputProcessor.process_inputs` makes the complete request, offline and over HTTP.
      - `AsyncLLM.generate` is called before a streamed response starts, but runs only after: a check in
        `process_inputs` would come too late for HTTP 400.
      - `to_sampling_params` of the HTTP requests is where a canvas too long for the model has just been cut to what
        fits. A shorter canvas is another decoding, so the client's own figure is kept for the check.
How: wrap each. The checks act only on engines whose scheduler is ours; nobody else reads the kept figure.
Upstream: no hook for per-request validation by a plugin.
Remove when: vLLM lets a scheduler or model class validate requests at admission.
"""

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain.engine import compat

    wrap_once(compat.InputProcessor, "process_inputs", _check_complete_request)
    wrap_once(compat.AsyncLLM, "generate", _check_before_streaming)
    for request in (compat.CompletionRequest, compat.ChatCompletionRequest, compat.ResponsesRequest):
        wrap_once(request, "to_sampling_params", _keep_requested_canvas)


def _check_complete_request(process_inputs):
    def wrapper(self, *args, **kwargs):
        from vllm_infogain.admission import check_request
        from vllm_infogain.plugin import is_active

        request = process_inputs(self, *args, **kwargs)
        if is_active(self.vllm_config):
            params, prompt = request.sampling_params, request.prompt_token_ids
            check_request(
                params,
                prompt,
                self.vllm_config,
                lora_request=request.lora_request,
                is_resumable=request.resumable,
            )
        return request

    return wrapper


def _check_before_streaming(generate):
    def wrapper(self, prompt, sampling_params, request_id, **kwargs):
        from vllm_infogain.admission import check_request
        from vllm_infogain.plugin import is_active

        if is_active(self.vllm_config) and isinstance(prompt, dict) and "prompt_token_ids" in prompt:
            check_request(
                sampling_params,
                prompt["prompt_token_ids"],
                self.vllm_config,
                lora_request=kwargs.get("lora_request"),
                requested_canvas=getattr(sampling_params, "requested_canvas", None),
            )
        return generate(self, prompt, sampling_params, request_id, **kwargs)

    return wrapper


def _keep_requested_canvas(to_sampling_params):
    def wrapper(self, *args, **kwargs):
        params = to_sampling_params(self, *args, **kwargs)
        names = ("max_completion_tokens", "max_output_tokens", "max_tokens")
        params.requested_canvas = next((size for name in names if (size := getattr(self, name, None))), None)
        return params

    return wrapper
