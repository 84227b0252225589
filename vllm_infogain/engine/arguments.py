"""Every engine argument of vLLM 0.32 and 0.33: honoured, without meaning for our models, or refused.

An argument that a new vLLM adds fails `tests/test_engine_arguments.py` until it is listed here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from difflib import get_close_matches
from typing import Any

from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.settings import parse_settings


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Honoured by vLLM's front end, configuration, layers and worker, or by us. Some of their values are refused once the
# model is known: config_check.py.
HONOURED = {
    "the model and its files": _names(
        "model model_weights served_model_name tokenizer tokenizer_mode tokenizer_revision skip_tokenizer_init "
        "hf_config_path hf_overrides hf_token config_format revision code_revision trust_remote_code download_dir "
        "load_format model_loader_extra_config ignore_patterns safetensors_load_strategy pt_load_map_location "
        "safetensors_prefetch_num_threads safetensors_prefetch_block_size use_tqdm_on_load model_class_overrides "
        "max_parallel_loading_workers dtype quantization quantization_config allow_deprecated_quantization "
        "max_model_len generation_config override_generation_config"
    ),
    "memory and scheduling": _names(
        "block_size gpu_memory_utilization kv_cache_memory_bytes num_gpu_blocks_override enable_prefix_caching "
        "prefix_caching_hash_algo prefix_cache_retention_interval prefix_match_unit disable_hybrid_kv_cache_manager "
        "max_num_batched_tokens max_num_scheduled_tokens max_num_seqs max_num_active_seqs max_num_queued_reqs "
        "max_num_queued_tokens watermark enable_sleep_mode sleep_mode_backend sleep_mode_offload_cudagraph "
        "sleep_preserve_parameter_names enable_cumem_allocator kv_events_config"
    ),
    "devices and processes": _names(
        "tensor_parallel_size data_parallel_size data_parallel_rank data_parallel_start_rank data_parallel_size_local "
        "data_parallel_address data_parallel_rpc_port data_parallel_hybrid_lb data_parallel_external_lb "
        "data_parallel_multi_port_external_lb data_parallel_backend distributed_executor_backend master_addr "
        "master_port nnodes node_rank distributed_timeout_seconds cpu_distributed_timeout_seconds numa_bind "
        "numa_bind_nodes numa_bind_cpus device_ids disable_custom_all_reduce enable_nccl_comm_suspend "
        "ray_workers_use_nsight enable_shm_tensor_arena worker_cls worker_extension_cls scheduler_cls "
        "shutdown_timeout fail_on_environ_validation watchdog_config _api_process_count _api_process_rank"
    ),
    "kernels and graphs": _names(
        "enforce_eager compilation_config cudagraph_capture_sizes max_cudagraph_capture_size optimization_level "
        "performance_mode attention_config attention_backend kernel_config ir_op_priority moe_backend linear_backend "
        "profiler_config"
    ),
    "requests, answers and logs": _names(
        "seed max_logprobs stream_interval renderer_num_workers tokens_only structured_outputs_config reasoning_parser "
        "reasoning_parser_plugin additional_config disable_log_stats aggregate_engine_logging enable_log_requests "
        "logging_config log_level log_config_file show_hidden_metrics_for_version otlp_traces_endpoint "
        "kv_cache_metrics kv_cache_metrics_sample custom_histogram_buckets enable_logging_iteration_details "
        "allowed_local_media_path allowed_media_domains"
    ),
}
# About things that none of our models has, or that are refused as a whole. vLLM ignores them for such models, too.
NEUTRAL = {
    "images, sound and video": _names(
        "language_model_only limit_mm_per_prompt enable_mm_embeds "
        "interleave_mm_strings media_io_kwargs mm_processor_kwargs mm_processor_cache_gb mm_processor_cache_type "
        "mm_hasher_algorithm mm_shm_cache_max_object_size_mb mm_encoder_only mm_encoder_tp_mode "
        "mm_encoder_attn_backend mm_encoder_attn_dtype mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_path "
        "mm_encoder_fp8_scale_save_margin skip_mm_profiling video_pruning_rate video_pruning_method mm_tensor_ipc "
        "mm_processor_device mm_ipc_gpu_memory_gb mm_device_do_normalize disable_chunked_mm_input ec_manager_config "
        "enable_mm_processor_stats"
    ),
    "LoRA, but for enable_lora": _names(
        "max_loras max_lora_rank default_mm_loras fully_sharded_loras max_cpu_loras lora_dtype lora_target_modules "
        "enable_tower_connector_lora specialize_active_lora enable_mixed_moe_lora_format enable_moe_shared_loras "
        "max_lora_cls_labels"
    ),
    "state-space layers, other attention, other architectures": _names(
        "mamba_config mamba_backend mamba_cache_dtype mamba_ssm_cache_dtype mamba_block_size mamba_cache_mode "
        "enable_mamba_shared_prefix_checkpoint replayssm_buffer_len use_replayssm mamba_ssu_algorithm "
        "enable_mamba_cache_stochastic_rounding mamba_cache_philox_rounds gdn_prefill_backend kda_prefill_backend "
        "kda_decode_backend sparse_indexer_topk_backend disable_sliding_window swa_bounded_replay engram_config "
        "monokernel disable_cascade_attn"
    ),
    "expert, context and lockstep parallelism, but for their switches": _names(
        "all2all_backend eplb_config expert_placement_strategy enable_ep_weight_filter elastic_ep_max_dp_size "
        "dcp_comm_backend dcp_q_replicate dcp_kv_cache_interleave_size cp_kv_cache_interleave_size dp_sync_interval "
        "dbo_decode_token_threshold dbo_prefill_token_threshold disable_nccl_for_dp_synchronization"
    ),
    "speculation and offloading, but for their switches": _names(
        "per_request_spec_decode_metrics kv_offloading_backend"
    ),
    # vLLM makes it of reasoning_parser; what it may bound besides, thinking_token_budget, is refused per request.
    "reasoning": _names("reasoning_config"),
    # Read by nothing in these vLLMs but their own checks.
    "traces by phase": _names("collect_detailed_traces"),
}

WHOLE = "a sequence runs whole, prompt and canvas together"
PAGES = "our scheduler and runner hold whole sequences in pages of their own device"
OWN_SAMPLER = "our samplers run in place of vLLM's"
NO_METRIC = "our runner does not measure it"
GENERATES = "a masked diffusion model generates text from token ids, nothing else"
EXPERTS = "our forwards are not in lockstep over ranks"

# Name: (values that ask for nothing beside vLLM's default, why any other is refused).
REFUSED: dict[str, tuple[tuple, str]] = {
    "logprobs_mode": ((), "log-probabilities are those a token had when it was written, at temperature 1"),
    "logits_processors": (([], ()), OWN_SAMPLER),
    "use_fp64_gumbel": ((), OWN_SAMPLER),
    "enable_batch_sharded_sampling": ((False,), OWN_SAMPLER),
    "return_sampling_mask": ((), OWN_SAMPLER),
    "enable_trace_replay": ((), OWN_SAMPLER),
    "watermark_config": ((), OWN_SAMPLER),
    "diffusion_config": ((), "it is of vLLM's own diffusion models"),
    "enable_return_routed_experts": ((), NO_METRIC),
    "aux_output_config": ((), NO_METRIC),
    "cudagraph_metrics": ((), NO_METRIC),
    "enable_layerwise_nvtx_tracing": ((), NO_METRIC),
    "enable_mfu_metrics": ((), NO_METRIC),
    "jit_monitor_mode": ((), NO_METRIC),
    "jit_monitor_verbose": ((), NO_METRIC),
    "runner": (("generate",), GENERATES),
    "convert": (("none",), GENERATES),
    "pooler_config": ((), GENERATES),
    "io_processor_plugin": ((), GENERATES),
    "enable_prompt_embeds": ((), GENERATES),
    "model_impl": (("vllm",), "only the executors of this package know their attention"),
    "enable_lora": ((), "the executors have no adapters"),
    "speculative_config": ((), "nothing is to be guessed ahead: a step writes several positions"),
    "spec_method": ((), "nothing is to be guessed ahead: a step writes several positions"),
    "spec_model": ((), "nothing is to be guessed ahead: a step writes several positions"),
    "spec_tokens": ((), "nothing is to be guessed ahead: a step writes several positions"),
    "enable_chunked_prefill": ((False,), WHOLE),
    "long_prefill_token_threshold": ((), WHOLE),
    "long_prefill_token_threshold_adaptive": ((), WHOLE),
    "scheduler_reserve_full_isl": ((), WHOLE),
    "prefill_schedule_interval": ((), WHOLE),
    "kv_sharing_fast_prefill": ((), WHOLE),
    "async_scheduling": ((False,), "what a request wants next is known only from the logits"),
    "scheduling_policy": ((), "requests are served in the order they come"),
    "pipeline_parallel_size": ((), PAGES),
    "prefill_context_parallel_size": ((), PAGES),
    "decode_context_parallel_size": ((), PAGES),
    "kv_transfer_config": ((), PAGES),
    "ec_transfer_config": ((), PAGES),
    "kv_offloading_size": ((), PAGES),
    "kv_cache_dtype": (
        ("float16", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2"), "pages are copied without scales beside them",
    ),
    "kv_cache_dtype_skip_layers": ((), "all layers' pages are alike"),
    "cpu_offload_gb": ((), "our runner loads the whole model to the device"),
    "cpu_offload_params": ((), "our runner loads the whole model to the device"),
    "offload_backend": ((), "our runner loads the whole model to the device"),
    "offload_group_size": ((), "our runner loads the whole model to the device"),
    "offload_num_in_group": ((), "our runner loads the whole model to the device"),
    "offload_prefetch_step": ((), "our runner loads the whole model to the device"),
    "offload_params": ((), "our runner loads the whole model to the device"),
    "enable_hc_sp": ((), EXPERTS),
    "enable_expert_parallel": ((), EXPERTS),
    "enable_elastic_ep": ((), EXPERTS),
    "enable_eplb": ((), EXPERTS),
    "enable_dbo": ((), EXPERTS),
    "ubatch_size": ((), EXPERTS),
    "enable_fault_tolerance": ((), EXPERTS),
    "fault_tolerance_config": ((), EXPERTS),
    "enable_flashinfer_autotune": ((False,), "our worker tunes no kernels"),
    "weight_transfer_config": ((), "weights are loaded once, at the start"),
}  # fmt: skip

# What vLLM itself writes into additional_config, from arguments above.
VLLMS_ADDITIONS = {"gdn_prefill_backend", "kda_prefill_backend", "kda_decode_backend"}


def check_arguments(arguments: Any, known: type) -> None:
    """Refuse what our engine would not honour, before anything is loaded.

    Args:
        arguments: vLLM's EngineArgs, or a parsed command line, whose attributes have the same names.
        known: the class EngineArgs.

    Raises:
        ParameterError (a ValueError): names the argument, its value and the remedy.
    """
    defaults = dict(defaults_of(known))
    for name, (alike, why) in REFUSED.items():
        if name not in defaults:
            continue  # of another vLLM
        value = getattr(arguments, name, defaults[name])
        # On a command line many flags that are not given are None.
        if value is not None and value != defaults[name] and value not in alike:
            remedy = f"give {' or '.join(map(repr, alike))}, or leave it out" if any(alike) else "leave it out"
            raise ParameterError(name, value, f"not supported with masked diffusion, where {why}; {remedy}")
    check_additional_config(getattr(arguments, "additional_config", None))


def check_additional_config(given: Any) -> None:
    """Refuse settings under a name that nobody reads, and settings of ours that are unknown or out of range."""
    for name in given.keys() - {"infogain"} - VLLMS_ADDITIONS if isinstance(given, Mapping) else ():
        meant = ", did you mean it" if get_close_matches(name, ["infogain"]) else ""
        raise ParameterError(
            f"additional_config[{name!r}]", given[name],
            f"nobody reads it; settings of this plugin go under 'infogain'{meant}",
        )  # fmt: skip
    parse_settings(given)


def defaults_of(known: type) -> Iterator[tuple[str, Any]]:
    """Every argument's default."""
    field: Field
    for field in fields(known):
        if field.default is not MISSING:
            yield field.name, field.default
        elif field.default_factory is not MISSING:
            yield field.name, field.default_factory()
