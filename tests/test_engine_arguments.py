"""Every argument of vLLM's engines is honoured, of no meaning for our models, or refused by name before the start."""

from dataclasses import fields
from typing import Any

import pytest
from vllm.config.aux_output import AuxOutputConfig
from vllm.config.ec_transfer import ECTransferConfig
from vllm.config.fault_tolerance import FaultToleranceConfig
from vllm.config.kv_transfer import KVTransferConfig
from vllm.config.pooler import PoolerConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.engine.arg_utils import AsyncEngineArgs

from vllm_infogain import ParameterError, engine_defaults
from vllm_infogain.compat import EngineArgs
from vllm_infogain.engine.arguments import HONOURED, NEUTRAL, REFUSED, check_arguments, defaults_of

# A value of each refused argument that asks for something.
ASKED: dict[str, Any] = {
    "logprobs_mode": "raw_logits",
    "logits_processors": ["some.module:Processor"],
    "use_fp64_gumbel": True,
    "enable_batch_sharded_sampling": True,
    "return_sampling_mask": True,
    "enable_trace_replay": True,
    "watermark_config": {"key": 1},
    "diffusion_config": {"canvas_length": 8},
    "enable_return_routed_experts": True,
    "aux_output_config": AuxOutputConfig(enable_return_routed_experts=True),
    "cudagraph_metrics": True,
    "enable_layerwise_nvtx_tracing": True,
    "enable_mfu_metrics": True,
    "jit_monitor_mode": "error",
    "jit_monitor_verbose": True,
    "runner": "pooling",
    "convert": "embed",
    "pooler_config": PoolerConfig(),
    "io_processor_plugin": "some",
    "enable_prompt_embeds": True,
    "model_impl": "transformers",
    "enable_lora": True,
    "speculative_config": {"method": "ngram", "num_speculative_tokens": 2},
    "spec_method": "ngram",
    "spec_model": "some/model",
    "spec_tokens": 2,
    "enable_chunked_prefill": True,
    "long_prefill_token_threshold": 100,
    "long_prefill_token_threshold_adaptive": True,
    "scheduler_reserve_full_isl": False,
    "prefill_schedule_interval": 2,
    "kv_sharing_fast_prefill": True,
    "async_scheduling": True,
    "scheduling_policy": "priority",
    "pipeline_parallel_size": 2,
    "prefill_context_parallel_size": 2,
    "decode_context_parallel_size": 2,
    "kv_transfer_config": KVTransferConfig(),
    "ec_transfer_config": ECTransferConfig(),
    "kv_offloading_size": 1.0,
    "kv_cache_dtype": "int8_per_token_head",
    "kv_cache_dtype_skip_layers": ["0"],
    "cpu_offload_gb": 1,
    "cpu_offload_params": {"mlp"},
    "offload_backend": "uva",
    "offload_group_size": 2,
    "offload_num_in_group": 2,
    "offload_prefetch_step": 2,
    "offload_params": {"mlp"},
    "enable_hc_sp": True,
    "enable_expert_parallel": True,
    "enable_elastic_ep": True,
    "enable_eplb": True,
    "enable_dbo": True,
    "ubatch_size": 2,
    "enable_fault_tolerance": True,
    "fault_tolerance_config": FaultToleranceConfig(engine_recovery_timeout_sec=7),
    "enable_flashinfer_autotune": True,
    "weight_transfer_config": WeightTransferConfig(),
}
OF_0_33 = {"monokernel", "sleep_mode_backend", "watchdog_config"}  # 0.32 has no such argument


def asking(**arguments: Any) -> EngineArgs:
    """Arguments of an engine of ours, with some as they may be set."""
    engine_args = EngineArgs(**engine_defaults.engine_args())
    for name, value in arguments.items():
        setattr(engine_args, name, value)
    return engine_args


def test_every_argument_has_one_verdict():
    verdicts = [*HONOURED.values(), *NEUTRAL.values(), frozenset(REFUSED)]
    arguments = {field.name for field in (*fields(EngineArgs), *fields(AsyncEngineArgs))}
    assert arguments - frozenset().union(*verdicts) == set(), "vLLM has new arguments: what becomes of them?"
    assert frozenset().union(*verdicts) - arguments <= OF_0_33, "vLLM has these arguments no more"
    assert sum(map(len, verdicts)) == len(frozenset().union(*verdicts)), "an argument has two verdicts"


def test_every_refused_argument_has_a_value_here_that_asks_for_something():
    defaults = dict(defaults_of(EngineArgs))
    assert ASKED.keys() == REFUSED.keys()
    assert [name for name, value in ASKED.items() if name in defaults and value == defaults[name]] == []


@pytest.mark.parametrize("name", ASKED)
def test_an_argument_that_cannot_be_honoured_is_refused_by_name(name: str):
    with pytest.raises(ParameterError, match=rf"^{name}=.*: not supported with masked diffusion, where .*leave it out"):
        check_arguments(asking(**{name: ASKED[name]}), EngineArgs)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (alike, _) in REFUSED.items() for value in alike], ids=str
)
def test_a_value_that_asks_for_nothing_more_is_let_in(name: str, value: Any):
    check_arguments(asking(**{name: value}), EngineArgs)


@pytest.mark.parametrize(
    ("additional", "message"),
    [
        ({"infogian": {"num_candidates": 4}}, r"additional_config\['infogian'\]=.*did you mean it"),
        ({"num_candidates": 4}, r"additional_config\['num_candidates'\]=4: .* go under 'infogain'$"),
        ({"infogain": {"num_candidate": 4}}, "num_candidate=4"),
        ({"infogain": {"steps_per_schedule": 0}}, "steps_per_schedule=0"),
    ],
)
def test_a_setting_that_nobody_reads_is_refused_by_name(additional: dict, message: str):
    with pytest.raises(ParameterError, match=message):
        check_arguments(asking(additional_config=additional), EngineArgs)


def test_what_vllm_itself_adds_to_the_settings_is_let_in():
    settings = {"gdn_prefill_backend": "triton", "infogain": {"num_candidates": 4}}
    check_arguments(asking(additional_config=settings), EngineArgs)
