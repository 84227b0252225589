"""The seams of vLLM's engine this plugin stands on: scheduler, runner, worker, records, grammars.

Each assertion says what breaks if the seam moves; what fails here is work for a new minor. Those of the front end:
test_vllm_contract_front_end.py.
"""

import ast
import gc
import inspect
import runpy
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, call

import pytest
from seams import attributes_read_by, attributes_set_by, calls_in, field_names, parameters, parsed
from vllm.model_executor.model_loader import BaseModelLoader
from vllm.platforms import current_platform
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.attention.backend import CommonAttentionMetadata
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.kv_cache_utils import generate_block_hash_extra_keys, hash_block_tokens
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.structured_output import StructuredOutputManager
from vllm.v1.worker.gpu_worker import Worker

from vllm_infogain import compat
from vllm_infogain.engine import worker as worker_module
from vllm_infogain.engine.runner import InfoGainRunner
from vllm_infogain.engine.scheduler import InfoGainScheduler
from vllm_infogain.grammar.backend import CanvasBackend, CanvasGrammar

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
    "reload_weights": (compat.reload_weights, 5, "", "the runner's method of that name is it"),
    "lock_workspace": (compat.lock_workspace, 0, "", "no workspace may move under the graphs"),
    "clear_all_graphs": (compat.CUDAGraphWrapper.clear_all_graphs, 0, "", "graphs captured for an estimate go by it"),
    "is_breakable_cudagraph_enabled": (
        compat.is_breakable_cudagraph_enabled, 0, "", "graphs that only vLLM's runner makes are refused"
    ),
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
    "record_prefix_cache_stats": (
        KVCacheManager.record_prefix_cache_stats, 3, "", "queries and hits of the prefix cache are counted by it"
    ),
    "cache_blocks": (KVCacheManager.cache_blocks, 3, "", "finished pages of block-causal models may serve others"),
    "_preempt_request": (compat.Scheduler._preempt_request, 3, "", "cached states are to be recomputed after it"),
    "_free_request_blocks": (compat.Scheduler._free_request_blocks, 2, "", "cached states' pages are freed there"),
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
    "update_block_hashes": (compat.Request.update_block_hashes, 1, "", "keys of pages hold their block length by it"),
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


# Functions we override.


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
        "prefill_stats skip_reading_prefix_cache cache_salt block_hashes",
        "the scheduler sizes and admits requests by these, and keys their pages",
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


def test_a_pages_key_depends_on_its_requests_salt_and_on_those_before_it():
    source = inspect.getsource(generate_block_hash_extra_keys)
    assert '("cache_salt", request.cache_salt)' in source, "pages of different block lengths are told apart by it"
    chained = inspect.signature(hash_block_tokens).parameters
    assert "parent_block_hash" in chained, "the salt is in the first page's key only"


# Worker and runner.

NOT_ASKED_OF_OURS = {  # what vLLM's workers ask of their runners and ours lacks: why it is never asked
    "sample_tokens": "only if execute_model returned nothing; ours returns the step's result",
    "pool": "of pooling runners only",
    "_init_kv_zero_meta": "behind hasattr",
    "needs_cudagraph_capture": "only where vLLM's worker captures; on CUDA ours does that itself",
    "maybe_remove_all_loras": "only in the GPU worker's warm-up, which ours replaces",
    "_dummy_sampler_run": "only in the GPU worker's warm-up, which ours replaces",
    "_dummy_pooler_run": "only in the GPU worker's warm-up, which ours replaces",
    "eplb": "only in the GPU worker's warm-up, which ours replaces",
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


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_the_runner_has_all_that_vllms_worker_asks_of_it(platform):
    from vllm.v1.worker.cpu_worker import CPUWorker

    offered = attributes_set_by(InfoGainRunner) | set(InfoGainRunner.__annotations__)
    asked_by = runner_attributes_by_method(*([CPUWorker, Worker] if platform == "cpu" else [Worker]))
    assert asked_by["execute_model"], "the scan finds nothing: vLLM's worker no longer has a `self.model_runner`"
    asked = set().union(*asked_by.values())
    missing = asked - offered
    assert missing <= NOT_ASKED_OF_OURS.keys(), "vLLM's worker may ask the runner for what it lacks"
    assert NOT_ASKED_OF_OURS.keys() & asked <= missing, "an exception is no longer needed: take it off the list"


def test_the_cuda_worker_warms_up_captures_and_freezes_what_stays(monkeypatch):
    """Its class exists on CUDA only, so its module is run once more as if there were one."""
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda self: False)
    worker_class = runpy.run_path(worker_module.__file__)["InfoGainWorker"]
    assert worker_class.__bases__[-1] is Worker
    compilation = SimpleNamespace(
        compile_sizes=[4, 16], cudagraph_capture_sizes=[4], compilation_time=2.0, encoder_compilation_time=0.0
    )
    on_cuda = SimpleNamespace(model_runner=Mock(), compilation_config=compilation, model_config=SimpleNamespace(seed=0))
    frozen = gc.get_freeze_count()
    try:
        times = worker_class.compile_or_warm_up_model(on_cuda)
        assert gc.get_freeze_count() > frozen
    finally:
        gc.unfreeze()
    assert on_cuda.model_runner.method_calls == [call.profile_run(), call._dummy_run(16), call.capture_model()]
    assert times.language_model == 2.0


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
    call = calls_in(Worker).get(f"self.model_runner.{name}")
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


@pytest.mark.skipif(not current_platform.is_cpu(), reason="makes the CPU worker")
def test_the_cpu_worker_makes_and_warms_up_nothing_of_vllms_v2_runner(monkeypatch):
    from vllm.v1.worker.cpu_worker import CPUWorker

    seen = []
    monkeypatch.setattr(CPUWorker, "init_device", lambda self: seen.append(self.use_v2_model_runner))
    monkeypatch.setattr(worker_module, "_make_runner", lambda _: None)
    ours = object.__new__(worker_module.InfoGainWorker)
    ours.use_v2_model_runner = True  # as where Triton has a CPU backend
    ours.init_device()
    assert seen == [False], "vLLM's init_device and warm-up go by it"
    assert "use_v2_model_runner" in inspect.getsource(CPUWorker.init_device)


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


def test_a_models_tokenizer_and_end_tokens_are_found_where_vllm_finds_them():
    inspect.signature(compat.cached_tokenizer_from_config).bind("model_config")
    assert "try_get_generation_config" in inspect.getsource(compat.InputProcessor), "further end tokens come from it"
