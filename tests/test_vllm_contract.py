"""The seams of vLLM this plugin stands on, checked against the installed vLLM: what fails here is work for a new minor.

Each assertion says what breaks if the seam moves.
"""

import ast
import dataclasses
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from vllm.config import ObservabilityConfig
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponseChoice
from vllm.entrypoints.openai.completion.protocol import CompletionResponseChoice
from vllm.entrypoints.serve.tokenize.protocol import DetokenizeRequest, DetokenizeResponse
from vllm.model_executor.model_loader import BaseModelLoader
from vllm.outputs import CompletionOutput
from vllm.platforms import current_platform
from vllm.plugins.endpoint_plugins.interface import EndpointPlugin
from vllm.renderers import ChatParams, TokenizeParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker.gpu_worker import Worker

import vllm_infogain
from vllm_infogain.admission import HONOURED, INTERNAL, NEUTRAL
from vllm_infogain.engine import compat, metrics
from vllm_infogain.engine.grammar import CanvasBackend, CanvasGrammar
from vllm_infogain.engine.runner import InfoGainRunner
from vllm_infogain.engine.scheduler import InfoGainScheduler
from vllm_infogain.page import Page

ROOT = Path(vllm_infogain.__file__).parents[1]
MAY_IMPORT_VLLM = (
    "engine/compat.py",
    "engine/worker.py",
    "evaluation.py",  # a user of vLLM's public API, like the demo
    "model_executors/",
    "patches/",
    "plugin.py",
    "__init__.py",
)


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def field_names(record) -> set[str]:
    return {field.name for field in dataclasses.fields(record)}


def attributes_set_by(*classes: type) -> set[str]:
    """Names X of `self.X = ...` in the classes and their bases, and of everything defined on them."""
    bases = [base for cls in classes for base in cls.__mro__ if base is not object]
    names = {name for base in bases for name in vars(base)}
    for base in bases:
        for node in ast.walk(parsed(base)):
            if is_self_attribute(node) and isinstance(node.ctx, ast.Store):
                names.add(node.attr)
    return names


def attributes_read_by(cls: type) -> set[str]:
    """Names X of `self.X` and `super().X` in the class's own body."""
    supers = {
        node.attr
        for node in ast.walk(parsed(cls))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "super()"
    }
    return supers | {node.attr for node in ast.walk(parsed(cls)) if is_self_attribute(node)}


def parsed(code) -> ast.AST:
    return ast.parse(textwrap.dedent(inspect.getsource(code)))


def calls_in(function) -> dict[str, ast.Call]:
    """The last call of each name in a function's body."""
    body = parsed(inspect.unwrap(function))
    return {ast.unparse(node.func): node for node in ast.walk(body) if isinstance(node, ast.Call)}


def is_self_attribute(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


# Functions we call.

CALLS = {  # function of vLLM: positional arguments we pass, keywords we pass, why
    "build_attn_metadata": (
        compat.build_attn_metadata, 0,
        "attn_groups num_reqs num_tokens query_start_loc_gpu query_start_loc_cpu max_query_len seq_lens max_seq_len "
        "block_tables slot_mappings kv_cache_config seq_lens_cpu_upper_bound causal",
        "the runner describes every batch to the attention kernels through it, `causal=False` above all",
    ),
    "build_slot_mappings_by_layer": (
        compat.build_slot_mappings_by_layer, 2, "", "attention layers write K and V where it says"
    ),
    "set_forward_context": (
        compat.set_forward_context, 2, "num_tokens slot_mapping", "attention layers read their metadata from it"
    ),
    "init_attn_backend": (compat.init_attn_backend, 3, "", "the runner gets its attention groups from it"),
    "init_kv_cache": (compat.init_kv_cache, 6, "attn_groups", "the runner's KV tensors come from it"),
    "get_kv_cache_spec": (compat.get_kv_cache_spec, 1, "", "the engine sizes the KV cache by it"),
    "get_model_loader": (compat.get_model_loader, 1, "", "it loads our executors"),
    "load_model": (BaseModelLoader.load_model, 1, "vllm_config model_config", "it loads our executors"),
    "load_weights": (BaseModelLoader.load_weights, 3, "", "it is wrapped: a checkpoint that lacks weights is refused"),
    "set_current_vllm_config": (compat.set_current_vllm_config, 1, "", "attention backends are chosen under it"),
    "cdiv": (compat.cdiv, 2, "", "pages of a sequence"),
    "allocate_slots": (
        KVCacheManager.allocate_slots, 3,
        "num_new_computed_tokens new_computed_blocks delay_cache_blocks reserved_blocks has_scheduled_reqs",
        "a request gets its pages by it, those of a known prefix among them, with room reserved for look-ahead",
    ),
    "get_computed_blocks": (KVCacheManager.get_computed_blocks, 2, "", "prefixes of block-causal models are found"),
    "cache_blocks": (KVCacheManager.cache_blocks, 3, "", "finished pages of block-causal models may serve others"),
    "_preempt_request": (compat.Scheduler._preempt_request, 3, "", "kept states are marked as lost there"),
    "_free_request_blocks": (compat.Scheduler._free_request_blocks, 2, "", "the pages of kept states are freed there"),
    "get_block_ids": (KVCacheManager.get_block_ids, 2, "", "a request's own pages"),
    "get_blocks": (KVCacheManager.get_blocks, 2, "", "a request's own pages"),
    "KVCacheBlocks.get_block_ids": (KVCacheBlocks.get_block_ids, 1, "", "the pages of a request just admitted"),
    "get_new_blocks": (BlockPool.get_new_blocks, 2, "", "scratch pages of the candidates"),
    "free_blocks": (BlockPool.free_blocks, 2, "", "scratch pages go back after the step"),
    "get_num_free_blocks": (BlockPool.get_num_free_blocks, 1, "", "the scheduler sees by it how many candidates fit"),
    "NewRequestData.from_request": (compat.NewRequestData.from_request, 2, "", "new requests reach the runner in it"),
    "_make_cached_request_data": (
        compat.Scheduler._make_cached_request_data, 6, "", "the step's plan needs vLLM's record of running requests"
    ),
    "_update_after_schedule": (compat.Scheduler._update_after_schedule, 2, "", "vLLM's own accounting of a step"),
    "_free_request": (
        compat.Scheduler._free_request, 3, "", "the report leaves by it; vLLM passes delay_free_blocks by name"
    ),
    "add_request": (compat.Scheduler.add_request, 2, "", "our tables gain a request there"),
    "update_from_output": (compat.Scheduler.update_from_output, 3, "", "our tables learn there what requests want"),
    "PrefillStats.set": (
        PrefillStats.set, 1, "num_prompt_tokens num_local_cached_tokens num_external_cached_tokens",
        "the metrics of a prompt are filled in by it",
    ),
    "record_event": (compat.Request.record_event, 3, "", "queue times in the metrics"),
    "__iter__": (RequestQueue.__iter__, 1, "", "admission looks for the first request whose grammar is compiled"),
    "remove_request": (RequestQueue.remove_request, 2, "", "admission takes it from where it stands"),
    "_handle_blocked_waiting_request": (
        compat.Scheduler._handle_blocked_waiting_request, 2, "", "vLLM says whether a grammar is compiled"
    ),
    "finish_requests": (compat.Scheduler.finish_requests, 3, "", "requests that take too long are ended by it"),
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
def test_a_function_of_vllm_still_takes_the_arguments_we_pass(name):
    function, positional, keywords, why = CALLS[name]
    try:
        inspect.signature(function).bind(*range(positional), **dict.fromkeys(keywords.split()))
    except TypeError as error:
        pytest.fail(f"{name}: {error}; it matters because {why}")


RETURNS = {
    "get_block_ids": (KVCacheManager.get_block_ids, tuple[list[int], ...], "page tables by KV group; we use [0]"),
    "_free_request": (
        compat.Scheduler._free_request,
        tuple[dict[str, Any] | None, dict[str, Any] | None],
        "KV and EC transfer parameters; the report joins the first",
    ),
}


@pytest.mark.parametrize("name", RETURNS)
def test_a_function_of_vllm_still_returns_what_we_unpack(name):
    function, annotation, why = RETURNS[name]
    assert inspect.signature(function).return_annotation == annotation, f"{name}: {why}"


# Functions we override or wrap.


@pytest.mark.parametrize(
    "name",
    [
        "add_request",
        "_free_request",
        "_free_request_blocks",
        "_preempt_request",
        "schedule",
        "_update_after_schedule",
        "update_from_output",
        "get_grammar_bitmask",
    ],
)
def test_an_override_of_the_scheduler_takes_what_vllm_passes(name):
    ours, theirs = (parameters(getattr(cls, name)) for cls in (InfoGainScheduler, compat.Scheduler))
    assert ours == theirs, f"vLLM calls Scheduler.{name} with arguments that our override does not have"


def test_a_server_of_a_dead_engine_ends_where_we_look():
    for caller in (compat.launcher, compat.vllm_error):
        assert parameters(caller.terminate_if_errored) == ["server", "engine"]
    assert "app" in parameters(inspect.unwrap(compat.api_server_entry.serve_http))
    assert "serve_http" in calls_in(compat.api_server_entry.build_and_serve)


def test_the_functions_our_patches_wrap_still_have_their_seams():
    assert parameters(compat.AsyncLLM.generate)[:4] == ["self", "prompt", "sampling_params", "request_id"], (
        "the check before a stream starts reads the prompt and the parameters from the first arguments"
    )
    assert "lora_request" in parameters(compat.AsyncLLM.generate), "the check refuses LoRA by this keyword"
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
    assert {"sampling_params", "prompt_token_ids", "lora_request"} <= set(EngineCoreRequest.__struct_fields__), (
        "process_inputs returns the complete request, which the check reads"
    )
    assert isinstance(vars(compat.EngineArgs)["add_cli_args"], staticmethod), "the flag is added by wrapping it"


def test_the_front_end_still_makes_outputs_where_reports_join_them():
    taken = ["new_token_ids", "pooling_output", "finish_reason", "stop_reason", "kv_transfer_params"]
    assert parameters(compat.RequestState.make_request_output)[1:6] == taken, (
        "what the scheduler says of a sample is taken from these arguments"
    )
    assert "self._new_completion_output" in calls_in(compat.RequestState.make_request_output), (
        "reports are attached to the outputs it makes"
    )
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
    for choice in (CompletionResponseChoice, ChatCompletionResponseChoice):
        assert choice.model_config["extra"] == "allow", "a report is an extra field of a choice"
    call = calls_in(completion._create_completion)["self.completion_stream_generator"]
    assert {"tokenizer"} <= {keyword.arg for keyword in call.keywords}, "our wrap takes the tokenizer by name"


def test_responses_are_still_generated_by_a_call_before_their_stream_starts():
    assert "self._generate_with_builtin_tools" in calls_in(compat.OpenAIServingResponses._create_responses), (
        "our check of a streamed response runs at this call"
    )
    assert inspect.isasyncgenfunction(inspect.unwrap(compat.AsyncLLM.generate)), (
        "the check asks the engine for a generator that it never reads: nothing may be submitted by that"
    )


def test_the_seams_of_infilling_are_where_they_were():
    base, hf = compat.BaseRenderer, compat.HfRenderer
    assert parameters(base._tokenize_prompt) == ["self", "prompt", "params"], "masks in text become tokens there"
    assert "_tokenize_prompt" not in vars(hf), "the renderer of our models has one of its own: wrap that"
    assert "self._tokenize_prompt" in inspect.getsource(base.__init__), "the async twin is made of it"
    assert parameters(base.render_completion_suffix) == ["self", "prompt", "suffix"], "a suffix is rendered there"
    for name in ("render_messages", "render_messages_async"):
        assert parameters(getattr(hf, name)) == ["self", "messages", "params"], "a last message is continued there"
    assert "chat_template_kwargs" in field_names(ChatParams), "continue_final_message is set in it"
    needed = {"max_total_tokens", "truncate_prompt_tokens", "add_special_tokens"}
    assert needed <= field_names(TokenizeParams), "a text with masks is tokenized whole, and not truncated"
    assert parameters(compat.InputProcessor.process_inputs)[:4] == ["self", "request_id", "prompt", "params"], (
        "masks of the prompt go into the parameters before it runs"
    )
    assert {"generation_config_fields", "renderer", "speculative_config", "structured_outputs_config"} <= (
        attributes_set_by(compat.InputProcessor)
    ), "parameters are completed from these before a stream starts"
    assert "suffix" in compat.CompletionRequest.model_fields, "a request that inserts is told by it"


@pytest.mark.parametrize("serving", [compat.OpenAIServingCompletion, compat.OpenAIServingChat])
def test_the_server_sizes_the_output_by_the_length_we_wrap(serving):
    assert parameters(compat.BaseServing._extract_prompt_len) == ["self", "prompt"]
    calls = {ast.unparse(node.func): node for node in ast.walk(parsed(serving)) if isinstance(node, ast.Call)}
    sizes = [ast.unparse(argument) for argument in calls["get_max_tokens"].args]
    assert "self._extract_prompt_len(engine_input)" in sizes, "a canvas that just fits would be refused"


def test_parameters_can_be_copied_by_clone_and_lose_what_we_hung_on_them():
    params = compat.SamplingParams(extra_args={"a": 1})
    params.inserts = True
    copy = params.clone()
    copy.extra_args = {"b": 2}
    assert params.extra_args == {"a": 1}, "callers share parameters; the canvas goes into a copy"
    assert not hasattr(copy, "inserts"), "what the client asked for is read off the original, never off a copy"


def test_sampling_params_take_the_attribute_that_carries_the_clients_canvas():
    params = compat.SamplingParams()
    params.requested_canvas = 5
    assert params.requested_canvas == 5, "the check of a canvas cut down over HTTP needs to know what was asked for"


def test_every_sampling_field_the_admission_check_names_exists():
    known = set(compat.SamplingParams.__struct_fields__)
    # Rows of other minors may be named too, but what is honoured must be there.
    assert known >= HONOURED, "a field whose name changed would be refused under its new name"
    assert known >= INTERNAL | NEUTRAL.keys(), "a name of no field is an exception from the check that hides nothing"


def test_the_seams_that_our_metrics_use_are_there():
    assert "make_stats" in attributes_read_by(compat.Scheduler), "our figures join the statistics that it makes"
    made = inspect.signature(compat.Scheduler.make_stats).return_annotation
    assert made == compat.SchedulerStats | None, "without statistics there is nothing to join"
    types = {field.name: field.type for field in dataclasses.fields(compat.SchedulerStats)}
    assert types["kv_connector_stats"] == dict[str, Any] | None, "our figures travel in it, whatever their form"
    assert parameters(compat.StatLoggerManager.__init__)[:2] == ["self", "vllm_config"], (
        "the wrapper sees by the configuration whether the engine is ours"
    )
    assert {"stat_loggers", "engine_indexes"} <= attributes_set_by(compat.StatLoggerManager), (
        "our logger joins the first, for the engines in the second"
    )
    ours, theirs = (parameters(cls.record) for cls in (metrics.InfoGainStatLogger, compat.AggregateStatLoggerBase))
    assert ours == theirs, "the manager calls every logger alike"
    assert not metrics.InfoGainStatLogger.__abstractmethods__, "vLLM wants something more of a logger"


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


# Records.

FIELDS = {
    "SchedulerOutput": (
        field_names(compat.SchedulerOutput),
        "scheduled_new_reqs scheduled_cached_reqs num_scheduled_tokens total_num_scheduled_tokens "
        "scheduled_spec_decode_tokens scheduled_encoder_inputs finished_req_ids preempted_req_ids "
        "free_encoder_mm_hashes",
        "StepPlan is one, and fills these",
    ),
    "ModelRunnerOutput": (
        field_names(compat.ModelRunnerOutput), "req_ids req_id_to_index sampled_token_ids",
        "StepResult is one: finished blocks leave in sampled_token_ids",
    ),
    "NewRequestData": (
        field_names(compat.NewRequestData), "req_id prompt_token_ids sampling_params",
        "the runner makes a Decoder from these",
    ),
    "CommonAttentionMetadata": (
        field_names(CommonAttentionMetadata), "causal", "attention must look both ways"
    ),
    "EngineCoreOutput": (
        set(EngineCoreOutput.__struct_fields__), "kv_transfer_params",
        "the report travels from the scheduler to the response in it",
    ),
    "KVCacheConfig": (field_names(compat.KVCacheConfig), "kv_cache_groups", "the runner reads the page size from it"),
    "PauseState": (set(compat.PauseState.__members__), "UNPAUSED PAUSED_ALL", "a paused engine must schedule nothing"),
    "RequestStatus": (set(compat.RequestStatus.__members__), "WAITING RUNNING", "fresh requests are told by it"),
    "EngineCoreEventType": (set(compat.EngineCoreEventType.__members__), "SCHEDULED", "queue times in the metrics"),
    "Request": (
        attributes_set_by(compat.Request),
        "request_id sampling_params max_tokens num_prompt_tokens num_computed_tokens num_preemptions status "
        "prefill_stats",
        "the scheduler sizes and admits requests by these",
    ),
    "KVCacheManager": (
        attributes_set_by(KVCacheManager), "block_pool new_step_starts", "scratch pages come from its pool"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FIELDS)
def test_a_record_of_vllm_still_has_the_fields_we_use(name):
    present, needed, why = FIELDS[name]
    assert set(needed.split()) <= present, f"{name} lost {set(needed.split()) - present}: {why}"


def test_every_attribute_our_scheduler_uses_is_its_own_or_vllms():
    known = attributes_set_by(InfoGainScheduler)
    missing = attributes_read_by(InfoGainScheduler) - known
    assert not missing, f"{missing}: neither ours nor set by vLLM's Scheduler any more"
    assert "use_v2_model_runner" in attributes_set_by(compat.Scheduler), (
        "we set it to spare a copy of every token; if vLLM no longer reads it, drop the line"
    )


# Worker and runner.

NOT_REACHED_ON_CPU = {  # worker method that asks the runner for something it lacks: why it never gets there
    "sample_tokens": "asked for only if execute_model returned nothing; ours returns the step's result",
    "reload_weights": "an RPC of reinforcement learning, which is not supported",
    "finish_weight_update": "an RPC of reinforcement learning, which is not supported",
    "initialize_from_config": "_init_kv_zero_meta is asked for behind hasattr",
    "execute_model": "pool() is asked for of pooling runners only",
    "_get_cudagraph_capture_context": "CUDA graphs only",
    "get_draft_model": "speculative decoding is not supported",
    "add_lora": "LoRA is not supported",
    "remove_lora": "LoRA is not supported",
    "list_loras": "LoRA is not supported",
    "pin_lora": "LoRA is not supported",
}


def runner_attributes_by_method(*workers: type) -> dict[str, set[str]]:
    """For every method of the workers (the first one that defines it): the X of `self.model_runner.X` in it."""
    runner = ("self.model_runner", "model_runner")
    found: dict[str, set[str]] = {}
    for worker in workers:
        for name, member in vars(worker).items():
            if inspect.isfunction(member) and name not in found:
                found[name] = {
                    node.attr
                    for node in ast.walk(parsed(inspect.unwrap(member)))
                    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in runner
                }
    return found


@pytest.mark.skipif(not current_platform.is_cpu(), reason="reads the CPU worker")
def test_the_runner_has_all_that_the_cpu_worker_asks_of_it():
    from vllm.v1.worker.cpu_worker import CPUWorker

    offered = attributes_set_by(InfoGainRunner) | set(InfoGainRunner.__annotations__)
    asked = runner_attributes_by_method(CPUWorker, Worker)
    assert asked["execute_model"], "the scan finds nothing: vLLM's worker no longer has a `self.model_runner`"
    missing = {method: names - offered for method, names in asked.items() if names - offered}
    assert missing.keys() <= NOT_REACHED_ON_CPU.keys(), f"a CPU run may ask the runner for what it lacks: {missing}"
    assert missing.keys() >= NOT_REACHED_ON_CPU.keys(), "an exception is no longer needed: take it off the list"


@pytest.mark.parametrize(
    ("name", "positional", "keywords"),
    [
        ("__init__", 3, ""),
        ("load_model", 1, "load_dummy_weights"),
        ("initialize_kv_cache", 2, "kv_cache_allocation_context"),
        ("execute_model", 3, ""),
        ("update_max_model_len", 2, ""),
    ],
)
def test_the_runner_takes_what_vllms_worker_passes(name, positional, keywords):
    ours = inspect.signature(getattr(InfoGainRunner, name))
    ours.bind(*range(positional), **dict.fromkeys(keywords.split()))
    calls = {ast.unparse(node.func): node for node in ast.walk(parsed(Worker)) if isinstance(node, ast.Call)}
    call = calls.get(f"self.model_runner.{name}")
    if call is not None:
        passed = (len(call.args) + 1, {keyword.arg for keyword in call.keywords})
        assert passed == (positional, set(keywords.split())), f"the worker calls {name} in another way now"
    else:
        assert name == "__init__", f"the worker no longer calls {name}; nothing runs it"


def test_the_worker_has_the_seams_our_subclass_uses():
    made_by = {"_make_model_runner": "on CUDA", "init_device": "on CPU"}
    for name, where in made_by.items():
        assert callable(getattr(Worker, name, None)), f"our runner is put in place of vLLM's there {where}"
    needed = {"vllm_config", "device", "model_runner"}
    assert needed <= attributes_set_by(Worker), "_make_runner reads the first two, init_device sets the third"
    if current_platform.is_cpu():
        import torch

        assert callable(torch.cpu._init_amx), "the CPU worker asks for permission to use AMX by it"
        assert callable(torch.cpu._is_amx_tile_supported), "the CPU worker asks for AMX by it"


# Borders inside the package.


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_only_the_named_modules_import_vllm():
    sources = [*(ROOT / "vllm_infogain").rglob("*.py"), *(ROOT / "model_executors").glob("*.py")]
    sources += (ROOT / "patches").glob("*.py")
    importers = {
        str(path.relative_to(ROOT)).removeprefix("vllm_infogain/")
        for path in sources
        if any(name.split(".")[0] == "vllm" for name in imported_modules(path))
    }
    assert "engine/compat.py" in importers
    assert not {path for path in importers if not path.startswith(MAY_IMPORT_VLLM)}


def test_the_algorithm_works_where_vllm_cannot_be_imported():
    code = """
        import importlib, sys

        class NoVLLM:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "vllm":
                    raise ImportError(f"{name} must not be imported here")

        sys.meta_path.insert(0, NoVLLM())
        for name in sys.argv[1:]:
            importlib.import_module(name)
        try:
            import vllm_infogain.engine.compat
        except ImportError:
            print("kept out")
    """
    modules = ["", ".params", ".sampling.decoder", ".reference.oracle", ".embedded.tasks"]
    names = [f"vllm_infogain{module}" for module in modules]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *names], check=False, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "kept out\n"


# Structured output.


def test_a_grammar_backend_of_ours_is_what_the_manager_compiles_with():
    source = inspect.getsource(StructuredOutputManager.grammar_init)
    assert "if self.backend is None:" in source, "our scheduler sets the backend before the first request"
    assert parameters(compat.StructuredOutputBackend.compile_grammar) == parameters(CanvasBackend.compile_grammar)
    assert parameters(compat.StructuredOutputGrammar.accept_tokens) == parameters(CanvasGrammar.accept_tokens), (
        "vLLM checks every finished block by it"
    )
    assert not CanvasBackend.__abstractmethods__ | CanvasGrammar.__abstractmethods__, "vLLM's classes ask for more"


def test_a_constraint_still_has_the_key_and_the_fields_that_are_checked():
    constraint = StructuredOutputsParams(regex="a")
    assert compat.get_structured_output_key(constraint) == (compat.StructuredOutputOptions.REGEX, "a")
    checked = {"json", "regex", "choice", "grammar", "json_object", "structural_tag", "whitespace_pattern"}
    checked |= {"disable_any_whitespace", "disable_additional_properties"}
    present = {name for name in field_names(StructuredOutputsParams) if not name.startswith("_")}
    assert present == checked, "a field that vLLM adds would be ignored until structured.py knows it"


def test_a_regular_expression_is_compiled_with_vllms_time_limit():
    inspect.signature(compat.compile_regex_with_timeout).bind(print, "pattern")
    inspect.signature(compat.reduced_vocabulary).bind("tokenizer")
    inspect.signature(compat.cached_tokenizer_from_config).bind("model_config")
    assert "try_get_generation_config" in inspect.getsource(compat.InputProcessor), "further end tokens come from it"
