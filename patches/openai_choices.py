"""Reports and decoding steps in the choices of OpenAI responses.

Why: vLLM makes choices out of the fields of `CompletionOutput` that it knows, and its stream generators pass over
    outputs without tokens, in 0.32 even one that says how a request ended; nothing lets a plugin add to either.
How: wrap the functions that make a response of outputs. Whole responses: their choices stand in the order of the
    outputs, and each gets its report. Streams: see `serving/streams.py`. `/v1/responses` has no choices; there
    the report travels in `kv_transfer_params`. Engines that are not ours are left alone.
Upstream: none.
Remove when: response choices carry what a plugin adds to CompletionOutput.
"""

from functools import partial

from vllm_infogain.patches import of_server, wrap_once


def apply() -> None:
    from vllm_infogain import compat

    wrap_once(compat.OpenAIServingCompletion, "request_output_to_completion_response", _report_completions, of_server)
    wrap_once(compat.OpenAIServingCompletion, "completion_stream_generator", _stream_completions, of_server)
    wrap_once(compat.OpenAIServingChat, "chat_completion_full_generator", _report_chat, of_server)
    wrap_once(compat.OpenAIServingChat, "chat_completion_stream_generator", _stream_chat, of_server)
    wrap_once(compat.SimpleContext, "append_output", _report_response)


# Whole responses.


def _report_completions(make_response):
    def wrapper(self, final_res_batch, *args, **kwargs):
        response = make_response(self, final_res_batch, *args, **kwargs)
        _add_reports(response.choices, [output for result in final_res_batch for output in result.outputs])
        return response

    return wrapper


def _report_chat(full_generator):
    async def wrapper(self, request, result_generator, *args, **kwargs):
        last = None

        async def watched():
            nonlocal last
            async for last in result_generator:
                yield last

        response = await full_generator(self, request, watched(), *args, **kwargs)
        if last is not None and hasattr(response, "choices"):  # else it is an error
            _add_reports(response.choices, last.outputs)
        return response

    return wrapper


def _add_reports(choices, outputs) -> None:
    for choice, output in zip(choices, outputs, strict=True):
        if hasattr(output, "infogain"):
            choice.infogain = output.infogain.report


def _report_response(append_output):
    def wrapper(self, output):
        append_output(self, output)
        sample = output.outputs[0]
        if sample.finish_reason is not None and hasattr(sample, "infogain"):
            self.kv_transfer_params = {**(self.kv_transfer_params or {}), "infogain": sample.infogain.report}

    return wrapper


# Streams.


def _stream_completions(stream_generator):
    def wrapper(
        self, request, engine_inputs, result_generator, request_id, created_time, model_name, *args, tokenizer, **kwargs
    ):
        header = {"id": request_id, "object": "text_completion", "created": created_time, "model": model_name}

        def made_of(outputs):
            return stream_generator(
                self, request, engine_inputs, outputs, request_id, created_time, model_name, *args,
                tokenizer=tokenizer, **kwargs,
            )  # fmt: skip

        return _stream(self, request, result_generator, tokenizer, made_of, {"text": ""}, header)

    return wrapper


def _stream_chat(stream_generator):
    def wrapper(self, request, result_generator, request_id, model_name, conversation, tokenizer, *args, **kwargs):
        def made_of(outputs):
            return stream_generator(
                self, request, outputs, request_id, model_name, conversation, tokenizer, *args, **kwargs
            )

        return _stream(self, request, result_generator, tokenizer, made_of, {"delta": {}})

    return wrapper


def _stream(serving, request, result_generator, tokenizer, made_of, blank, header=None):
    """Lines of a streamed response.

    Args:
        serving: vLLM's server of the endpoint.
        request: its HTTP request.
        result_generator: the engine's outputs.
        tokenizer: of the model.
        made_of: vLLM's stream generator, of engine outputs.
        blank, header: of `ReportStream`.
    """
    from vllm_infogain.compat import should_include_usage
    from vllm_infogain.grammar.vocabulary import shown
    from vllm_infogain.request.from_vllm import stream_mode
    from vllm_infogain.serving.streams import CanvasStream, ReportStream

    samples = request.n or 1
    _, counts_tokens = should_include_usage(request.stream_options, serving.enable_force_include_usage)
    own = {"blank": blank, "header": header, "counts_tokens": counts_tokens}
    if stream_mode(serving.engine_client.vllm_config, request.vllm_xargs) == "canvas":
        stream = CanvasStream(result_generator, samples, decode=partial(shown, tokenizer), **own)
    else:
        stream = ReportStream(result_generator, samples, **own)
    return stream.lines(made_of(stream.outputs()))
