"""Check a streamed request of `/v1/responses` before its response starts.

Why: there vLLM calls the engine only from inside the stream, when the status has long been sent: a refused request
    would break the stream instead of getting HTTP 400.
How: wrap `OpenAIServingResponses._generate_with_builtin_tools`, which is called before. It asks the engine for the
    request once: our check in `AsyncLLM.generate` runs at the call, and a generator that is never read submits nothing.
    Steps have no place in this endpoint's events, so that a request to stream them is refused as well.
Upstream: none; `/v1/completions` and `/v1/chat/completions` call the engine before they stream.
Remove when: `/v1/responses` does, too.
"""

from vllm_infogain.patches import of_server, wrap_once


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.OpenAIServingResponses, "_generate_with_builtin_tools", _check_before_response, of_server)


def _check_before_response(generate_with_builtin_tools):
    def wrapper(self, request_id, engine_input, sampling_params, *args, **kwargs):
        _refuse_steps(sampling_params, self.engine_client.vllm_config)
        lora_request = kwargs.get("lora_request")
        self.engine_client.generate(engine_input, sampling_params, request_id, lora_request=lora_request)
        return generate_with_builtin_tools(self, request_id, engine_input, sampling_params, *args, **kwargs)

    return wrapper


def _refuse_steps(sampling_params, vllm_config) -> None:
    from vllm_infogain.compat import RequestOutputKind
    from vllm_infogain.request.fields import ParameterError
    from vllm_infogain.request.from_vllm import stream_mode
    from vllm_infogain.serving.admission import RequestError

    wanted = stream_mode(vllm_config, sampling_params.extra_args)
    if wanted == "canvas" and sampling_params.output_kind == RequestOutputKind.DELTA:
        remedy = "/v1/responses streams text only; give 'block', or use /v1/completions or /v1/chat/completions"
        raise RequestError(str(ParameterError("stream_mode", wanted, remedy)), parameter="stream_mode")
