"""The seams of vLLM's front end this plugin stands on: patches, requests and responses, metrics, the page.

Each assertion says what breaks if the seam moves; what fails here is work for a new minor.
"""

import ast
import dataclasses
import inspect
from types import SimpleNamespace
from typing import Any

import fastapi.routing
import pytest
from seams import attributes_read_by, attributes_set_by, calls_in, field_names, parameters
from vllm.config import ObservabilityConfig
from vllm.entrypoints.cli.run_batch import RunBatchSubcommand
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponseChoice
from vllm.entrypoints.openai.completion.protocol import CompletionResponseChoice
from vllm.entrypoints.openai.models.serving import OpenAIServingModels
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, DetokenizeResponse
from vllm.multimodal.media import MediaIO
from vllm.outputs import CompletionOutput
from vllm.parser.abstract_parser import DelegatingParser
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin
from vllm.renderers import BaseRenderer, renderer_from_config
from vllm.tool_parsers import ToolParser
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.llm_engine import LLMEngine

from vllm_infogain import compat
from vllm_infogain.engine import metrics
from vllm_infogain.serving.admission import HONOURED, INTERNAL, NEUTRAL
from vllm_infogain.serving.asked import Asked
from vllm_infogain.serving.page import Page


def test_a_server_gets_the_routes_of_pictures_while_its_app_is_made():
    named = ["args", "app", "supported_tasks", "model_config"]
    assert parameters(inspect.unwrap(compat.app.register_api_routers)) == named
    assert "register_api_routers" in calls_in(compat.app.build_app)
    assert compat.api_server_entry.build_app.__module__ == compat.app.__name__, "the one that the server calls"
    assert parameters(compat.AsyncLLM.collective_rpc) == ["self", "method", "timeout", "args", "kwargs"]
    assert "with_kwargs" in vars(compat.TokenizeParams)
    assert parameters(BaseRenderer.render_cmpl_async)[:3] == ["self", "prompts", "tok_params"]
    assert inspect.iscoroutinefunction(compat.validate_json_request)
    for decorator in (compat.with_cancellation, compat.load_aware_call):
        assert "raw_request" in inspect.getsource(decorator), "the name of our endpoints' argument"
    assert parameters(compat.with_sse_keep_alive) == ["generator", "interval"]
    assert "is_base_model" in vars(OpenAIServingModels)


def test_a_chats_picture_is_fetched_by_vllms_connector_and_encoded_where_the_chat_is_rendered():
    for engine in (compat.AsyncLLM, compat.LLMEngine):
        assert parameters(inspect.unwrap(engine.__init__))[1] == "vllm_config", "whose engine it is, is known by it"
        assert "renderer" in attributes_set_by(engine), "our renderer is told its engine"
        assert parameters(engine.collective_rpc) == ["self", "method", "timeout", "args", "kwargs"]
    connector = compat.MEDIA_CONNECTOR_REGISTRY.load("http", allowed_local_media_path="", allowed_media_domains=None)
    for name in ("load_from_url", "load_from_url_async"):
        assert parameters(getattr(type(connector), name)) == ["self", "url", "media_io", "fetch_timeout"]
    assert compat.envs.VLLM_MEDIA_CONNECTOR == "http"
    assert compat.envs.VLLM_IMAGE_FETCH_TIMEOUT > 0
    assert issubclass(compat.ImageMediaIO, MediaIO)
    for name in ("load_base64", "load_file"):
        assert "self.load_bytes" in calls_in(getattr(compat.ImageMediaIO, name)), "pixels are made of a file there"
    assert "media_io_kwargs" in field_names(compat.ChatParams)


def test_errors_of_pictures_have_the_status_that_they_are_raised_for():
    due = {compat.VLLMNotFoundError: 404, compat.RetryableRequestError: 503, NotImplementedError: 501}
    for error, status in due.items():
        assert compat.create_error_response(error("why")).error.code == status


def test_a_server_of_a_dead_engine_ends_where_we_look():
    for caller in (compat.launcher, compat.vllm_error):
        assert parameters(caller.terminate_if_errored) == ["server", "engine"]
    assert "app" in parameters(inspect.unwrap(compat.api_server_entry.serve_http))
    assert "serve_http" in calls_in(compat.api_server_entry.build_and_serve)


def test_the_functions_our_patches_wrap_still_have_their_seams():
    assert parameters(compat.AsyncLLM.generate)[:4] == ["self", "prompt", "sampling_params", "request_id"], (
        "the check before a stream starts reads the prompt and the parameters from the first arguments"
    )
    for keyword in ("lora_request", "priority"):
        assert keyword in parameters(compat.AsyncLLM.generate), "the check refuses it by this keyword"
    assert inspect.isasyncgenfunction(inspect.unwrap(compat.AsyncLLM.generate)), (
        "the check exists because an async generator's body runs only after the response has started"
    )
    for request in (compat.CompletionRequest, compat.ChatCompletionRequest):
        assert "max_tokens" in request.model_fields, "the client's own canvas is read from it"
        assert "max_tokens" in parameters(request.to_sampling_params), (
            "vLLM cuts the canvas down here; we keep the figure"
        )
        assert "vllm_xargs" in request.model_fields, "decoding parameters arrive in it"
    assert "max_completion_tokens" in compat.ChatCompletionRequest.model_fields, "chat's newer name of max_tokens"
    assert {"sampling_params", "prompt_token_ids", "lora_request", "priority"} <= set(
        EngineCoreRequest.__struct_fields__
    ), "process_inputs returns the complete request, which the check reads"
    assert isinstance(vars(compat.EngineArgs)["add_cli_args"], staticmethod), "the flag is added by wrapping it"


def test_a_batch_file_is_still_run_where_we_check_it():
    assert "run_batch_main" in calls_in(RunBatchSubcommand.cmd), "its `main` is wrapped; the command imports it late"
    assert parameters(compat.run_batch.main) == ["args"]
    reads = getattr(compat.run_batch, "validate_batch", compat.run_batch.run_batch)  # the former since 0.33
    run = calls_in(reads)
    assert "BatchRequestInput.model_validate_json" in run, "every line is read so, and what it raises ends the job"
    made = calls_in(compat.run_batch.build_endpoint_registry)
    assert "init_app_state" in made, "chats are made by the server's own endpoint"


def test_what_is_asked_without_a_route_is_still_checked_where_a_response_is_made():
    for create in (compat.OpenAIServingChat.create_chat_completion, compat.OpenAIServingCompletion.create_completion):
        assert parameters(create)[:2] == ["self", "request"]
    for request in (compat.ChatCompletionRequest, compat.CompletionRequest):
        assert request.model_config["extra"] == "allow", "names it does not know are kept, and seen by our check"


def test_an_engines_configuration_is_still_made_where_we_make_it_ours():
    made = list(calls_in(compat.EngineArgs.create_engine_config))
    first, later = made.index("self.create_model_config"), ("CacheConfig", "ParallelConfig", "SchedulerConfig")
    assert all(first < made.index(name) for name in later), "the model decides on the worker and the scheduler"
    assert parameters(compat.EngineArgs.create_model_config) == ["self"]
    assert callable(compat.init_logger("vllm.infogain").warning), "what a user should know at the start is told by it"


def test_the_front_end_still_makes_outputs_where_reports_join_them():
    taken = ["new_token_ids", "pooling_output", "finish_reason", "stop_reason", "kv_transfer_params"]
    assert parameters(compat.RequestState.make_request_output)[1:6] == taken, (
        "what the scheduler says of a sample is taken from these arguments"
    )
    assert "self._new_completion_output" in calls_in(compat.RequestState.make_request_output), (
        "reports are attached to the outputs it makes"
    )
    assert parameters(compat.RequestState._new_request_output)[1:3] == ["external_req_id", "outputs"]
    assert dataclasses.is_dataclass(compat.RequestStateStats), "Ray copies an output's metrics as a dataclass"
    assert "metrics=self.stats" in inspect.getsource(inspect.unwrap(compat.RequestState._new_request_output))
    output = CompletionOutput(0, "", [], None, None)
    output.infogain = 1
    assert output.infogain == 1, "the report hangs on the output as an attribute"


def test_the_server_still_makes_responses_where_reports_and_steps_join_them():
    completion, chat = compat.OpenAIServingCompletion, compat.OpenAIServingChat
    wrapped = {
        completion.request_output_to_completion_response: "self final_res_batch",
        completion.completion_stream_generator:
            "self request engine_inputs result_generator request_id created_time model_name num_prompts tokenizer",
        chat.chat_completion_full_generator: "self request result_generator",
        chat.chat_completion_stream_generator:
            "self request result_generator request_id model_name conversation tokenizer",
        compat.SimpleContext.append_output: "self output",
        compat.OpenAIServingResponses._generate_with_builtin_tools: "self request_id engine_input sampling_params",
    }  # fmt: skip
    for function, names in wrapped.items():
        given = parameters(function)[: len(names.split())]
        assert given == names.split(), f"our wrap of {function.__qualname__} reads these arguments"
    for generator in (completion.completion_stream_generator, chat.chat_completion_stream_generator):
        assert inspect.isasyncgenfunction(inspect.unwrap(generator)), "streams are watched as async generators"
    # vLLM 0.33 makes a chat's chunks in one generator, and lines of them in another.
    chat_chunks = getattr(chat, "chat_completion_stream_generator_raw", chat.chat_completion_stream_generator)
    for generator in (completion.completion_stream_generator, chat_chunks):
        asked = ast.unparse(calls_in(generator)["should_include_usage"])
        assert asked == "should_include_usage(stream_options, self.enable_force_include_usage)", "our chunks follow it"
        assert "Chunked prefill case, don't return empty chunks" in inspect.getsource(inspect.unwrap(generator)), (
            "outputs without tokens are passed over, in vLLM 0.32 even an end: ours stands in where none is made"
        )
    for choice in (CompletionResponseChoice, ChatCompletionResponseChoice):
        assert choice.model_config["extra"] == "allow", "a report is an extra field of a choice"
    call = calls_in(completion._create_completion)["self.completion_stream_generator"]
    assert {"tokenizer"} <= {keyword.arg for keyword in call.keywords}, "our wrap takes the tokenizer by name"


def test_a_forced_call_still_makes_a_json_schema_where_no_structural_tag_is_made():
    parsers = ((compat.OnlineRenderer, "parser"), (compat.OpenAIServingChat, "parser_cls"))
    for owner, name in (*parsers, (compat.OpenAIServingResponses, "parser")):
        assert name in attributes_set_by(owner), "its parser of calls is replaced there"
        assert "ParserManager.get_parser" in calls_in(owner.__init__), "each makes its own, of a class of its own"
    assert not DelegatingParser.tool_strict_level, "a server's promise of strict calls is read from it"
    for name in ("structural_tag_model", "supports_required_and_named", "engine_based_streaming"):
        assert hasattr(ToolParser, name), "ours says by it that it makes no tags and reads forced calls as JSON"


def test_responses_are_still_generated_by_a_call_before_their_stream_starts():
    assert "self._generate_with_builtin_tools" in calls_in(compat.OpenAIServingResponses._create_responses), (
        "our check of a streamed response runs at this call"
    )
    assert inspect.isasyncgenfunction(inspect.unwrap(compat.AsyncLLM.generate)), (
        "the check asks the engine for a generator that it never reads: nothing may be submitted by that"
    )


def test_a_renderer_of_our_own_is_made_by_its_mode_and_asked_where_it_was():
    for registry in (compat.RENDERER_REGISTRY, compat.TokenizerRegistry):
        assert parameters(registry.register)[1:] == ["module", "class_name"], "ours is registered under its mode"
    assert compat.TokenizerRegistry.tokenizers["hf"], "a tokenizer of our mode is one of Hugging Face"
    made = calls_in(renderer_from_config)
    assert {"tokenizer_args_from_config", "RENDERER_REGISTRY.load_renderer"} <= made.keys(), "the mode decides"
    renderer = compat.HfRenderer
    assert parameters(renderer._tokenize_prompt) == ["self", "prompt", "params"], "masks in text become tokens there"
    assert "self._tokenize_prompt" in inspect.getsource(BaseRenderer.__init__), "the async twin is made of it"
    for twin in ("", "_async"):
        name = f"_tokenize_singleton_prompt{twin}"
        assert parameters(getattr(renderer, name)) == ["self", "prompt", "params"], "token ids are truncated there"
        assert f"self.{name}" in calls_in(getattr(renderer, f"tokenize_prompt{twin}")), "every prompt comes through it"
        name = f"render_messages{twin}"
        assert parameters(getattr(renderer, name)) == ["self", "messages", "params"], (
            "a last message is continued there"
        )
        assert f"self.{name}" in calls_in(getattr(renderer, f"render_chat{twin}")), "every chat comes through it"
    assert parameters(renderer.render_completion_suffix) == ["self", "prompt", "suffix"], "a suffix is rendered there"
    assert "chat_template_kwargs" in field_names(compat.ChatParams), "continue_final_message is set in it"
    needed = {"max_total_tokens", "truncate_prompt_tokens", "add_special_tokens"}
    assert needed <= field_names(compat.TokenizeParams), "a text with masks is tokenized whole, and not truncated"


def test_responses_still_have_special_tokens_added_where_we_leave_them_to_the_template():
    assert parameters(compat.ResponsesRequest.build_tok_params) == ["self", "model_config"]
    asked = inspect.unwrap(compat.ResponsesRequest.build_tok_params)(
        compat.ResponsesRequest(input="a"), SimpleNamespace(max_model_len=64)
    )
    assert asked.add_special_tokens, "vLLM leaves them to the template by itself now: our wrap can go"


def test_a_request_is_still_completed_where_we_check_it():
    assert parameters(compat.InputProcessor.process_inputs)[:4] == ["self", "request_id", "prompt", "params"], (
        "masks of the prompt go into the parameters before it runs"
    )
    assert {"generation_config_fields", "renderer", "speculative_config", "structured_outputs_config"} <= (
        attributes_set_by(compat.InputProcessor)
    ), "parameters are completed from these before a stream starts"
    assert "suffix" in compat.CompletionRequest.model_fields, "a request that inserts is told by it"


def test_the_server_builds_its_app_where_we_wrap_it():
    assert "build_app" in calls_in(compat.api_server_entry.build_and_serve)
    assert "dependant.call" in calls_in(fastapi.routing.run_endpoint_function), "an endpoint is called by this name"


def test_samples_are_made_and_seeded_where_we_wrap():
    assert parameters(compat.ParentRequest._get_child_sampling_params) == ["self", "index"]
    assert "self._get_child_sampling_params" in calls_in(compat.ParentRequest.get_child_info)
    assert parameters(compat.SamplingParams._verify_greedy_sampling) == ["self"]
    assert "self._verify_greedy_sampling" in calls_in(compat.SamplingParams.__post_init__)
    for engine in (compat.AsyncLLM.add_request, LLMEngine.add_request):
        assert "ParentRequest" in calls_in(engine), (
            "children are seeded there, after process_inputs marked their parent"
        )


@pytest.mark.parametrize("serving", [compat.OpenAIServingCompletion, compat.OpenAIServingChat])
def test_the_server_sizes_the_output_by_the_length_we_wrap(serving):
    assert parameters(compat.BaseServing._extract_prompt_len) == ["self", "prompt"]
    sizes = [ast.unparse(argument) for argument in calls_in(serving)["get_max_tokens"].args]
    assert "self._extract_prompt_len(engine_input)" in sizes, "a canvas that just fits would be refused"


def test_parameters_can_be_copied_by_clone_and_lose_what_we_hung_on_them():
    params = compat.SamplingParams(extra_args={"a": 1})
    params.asked = Asked(inserts=True)
    copy = params.clone()
    copy.extra_args = {"b": 2}
    assert params.extra_args == {"a": 1}, "callers share parameters; the canvas goes into a copy"
    assert Asked.of(params).inserts, "parameters no longer take what the client asked for"
    assert not hasattr(copy, "asked"), "what the client asked for is read off the original, never off a copy"


def test_a_prompt_reaches_process_inputs_with_the_parameters_that_generate_was_called_with():
    generated = calls_in(compat.AsyncLLM.generate)["self.add_request"]
    added = calls_in(compat.AsyncLLM.add_request)["self.input_processor.process_inputs"]
    for call, names in ((generated, ["prompt", "sampling_params"]), (added, ["prompt", "params"])):
        assert [ast.unparse(argument) for argument in call.args[1:3]] == names, "it would be checked a second time"


def test_every_sampling_field_the_admission_check_names_exists():
    known = set(compat.SamplingParams.__struct_fields__)
    # Rows of other minors may be named too, but what is honoured must be there.
    assert known >= HONOURED, "a field whose name changed would be refused under its new name"
    assert known >= INTERNAL | NEUTRAL.keys(), "a name of no field is an exception from the check that hides nothing"


def test_the_seams_that_our_metrics_use_are_there():
    assert "make_stats" in attributes_read_by(compat.Scheduler), "our stats join the statistics that it makes"
    made = inspect.signature(compat.Scheduler.make_stats).return_annotation
    assert made == compat.SchedulerStats | None, "without statistics there is nothing to join"
    types = {field.name: field.type for field in dataclasses.fields(compat.SchedulerStats)}
    assert types["kv_connector_stats"] == dict[str, Any] | None, "our stats travel in it, whatever their form"
    assert parameters(compat.StatLoggerManager.__init__)[:2] == ["self", "vllm_config"], (
        "the wrapper sees by the configuration whether the engine is ours"
    )
    assert {"stat_loggers", "engine_indexes"} <= attributes_set_by(compat.StatLoggerManager), (
        "our logger joins the first, for the engines in the second"
    )
    ours, theirs = (parameters(cls.record) for cls in (metrics.InfoGainStatLogger, compat.AggregateStatLoggerBase))
    assert ours == theirs, "the manager calls every logger alike"
    assert not metrics.InfoGainStatLogger.__abstractmethods__, "vLLM wants something more of a logger"
    assert "PrometheusStatLogger" in calls_in(compat.StatLoggerManager.__init__), (
        "one of them is always among the loggers"
    )
    assert {"_counter_cls", "_gauge_cls", "_histogram_cls"} <= attributes_read_by(compat.PrometheusStatLogger), (
        "its metrics are of these kinds, and so are ours"
    )


def test_a_span_takes_what_we_give_it():
    assert parameters(compat.instrument_manual)[:4] == ["span_name", "start_time", "end_time", "attributes"]
    config = {field.name for field in dataclasses.fields(ObservabilityConfig)}
    assert "otlp_traces_endpoint" in config, "spans are made where it is set"


def test_the_page_has_what_vllm_asks_of_an_endpoint_plugin():
    assert isinstance(Page(), EndpointPlugin), "its name and required_tasks decide whether it is loaded"
    for name in ("attach_router", "init_state"):
        theirs, ours = parameters(getattr(EndpointPlugin, name)), parameters(getattr(Page, name))
        assert theirs == ours, f"vLLM calls {name} of the page"


def test_token_ids_can_be_asked_for_their_text():
    assert {"model", "tokens"} <= DetokenizeRequest.model_fields.keys(), "the page sends these to /detokenize"
    assert "prompt" in DetokenizeResponse.model_fields, "the page reads tokens' texts there, for samplers without steps"
