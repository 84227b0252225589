"""What is let in, against a real vLLM configuration: requests and engine settings."""

from pathlib import Path

import pytest
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs

from vllm_infogain import ParameterError, plugin
from vllm_infogain.admission import check_request, decoding_params
from vllm_infogain.embedded.tokenizer import EOS, VOCAB
from vllm_infogain.startup import check_engine


def config(checkpoint: Path, **settings):
    plugin.register()
    args = plugin.engine_args() | {"dtype": "float32", "max_num_batched_tokens": 512} | settings
    return EngineArgs(model=str(checkpoint), **args).create_engine_config()


@pytest.fixture(scope="module")
def served(checkpoint):
    return config(checkpoint)


def test_our_own_settings_are_let_in(served):
    check_engine(served)


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"scheduling_policy": "priority"}, "scheduling_policy"),
        ({"enable_prefix_caching": True}, "enable_prefix_caching"),
        ({"scheduler_cls": "some.Scheduler"}, "scheduler_cls"),
        ({"worker_cls": "some.Worker"}, "worker_cls"),
        ({"runner": "pooling"}, "runner"),
        ({"additional_config": {"infogain": {"num_candidates": 0}}}, "num_candidates"),
        ({"additional_config": {"infogain": 3}}, "additional_config"),
    ],
)
def test_a_setting_that_cannot_be_served_fails_the_start_by_name(checkpoint, settings, name):
    with pytest.raises(ParameterError, match=name):
        check_engine(config(checkpoint, **settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pipeline_parallel_size": 2}, "pipeline_parallel_size"),
        ({"enable_lora": True}, "enable_lora"),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, "speculative_config"),
        ({"tensor_parallel_size": 2, "decode_context_parallel_size": 2}, "decode_context_parallel_size"),
        ({"prefill_context_parallel_size": 2}, "prefill_context_parallel_size"),
        ({"tensor_parallel_size": 2, "enable_expert_parallel": True}, "expert"),
        ({"tensor_parallel_size": 2, "enable_hc_sp": True}, "enable_hc_sp"),
    ],
)
def test_what_cannot_be_parallel_or_adapted_fails_the_start_by_name(checkpoint, settings, message):
    with pytest.raises(ParameterError, match=message):
        check_engine(config(checkpoint, **settings))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("pipeline_parallel_size", 2),
        ("decode_context_parallel_size", 2),
        ("prefill_context_parallel_size", 2),
        ("enable_expert_parallel", True),
        ("enable_dbo", True),
    ],
)
def test_what_vllm_may_let_through_on_another_model_or_platform_fails_the_start_by_name(
    served, monkeypatch, name, value
):
    monkeypatch.setattr(served.parallel_config, name, value)
    with pytest.raises(ParameterError, match=f"{name}=True: not supported with masked diffusion; leave it out"):
        check_engine(served)


def test_replicas_fail_the_start_only_of_a_mixture_of_experts(served, monkeypatch):
    monkeypatch.setattr(served.parallel_config, "data_parallel_size", 2)
    check_engine(served)
    monkeypatch.setattr(type(served.model_config), "is_moe", True)
    with pytest.raises(ParameterError, match="data_parallel_size"):
        check_engine(served)


def test_a_budget_below_one_sequence_fails_the_start(served):
    served.scheduler_config.max_num_scheduled_tokens = 100
    with pytest.raises(ParameterError, match=r"max_num_batched_tokens=100: .* at least max_model_len=128"):
        check_engine(served)
    served.scheduler_config.max_num_scheduled_tokens = None


@pytest.mark.parametrize(
    ("fields", "prompt", "options", "message"),
    [
        ({}, [5], {"requested_canvas": 40}, "this server's limit is 16"),
        ({}, [5] * 120, {}, "max_tokens=16: prompt .120 tokens. .* at most 8"),
        ({}, [], {}, "prompt="),
        ({}, [5, 999999], {}, "outside the vocabulary"),
        ({}, [5], {"is_resumable": True}, "resumable"),
        ({}, [5], {"priority": 3}, "priority=3"),
        ({"prompt_logprobs": 2}, [5], {}, "prompt_logprobs=2"),
        ({"repetition_penalty": 1.2}, [5], {}, "generation config"),
        ({"extra_args": {"sampler": "x"}}, [5], {}, "sampler='x'"),
        ({"extra_args": {"schedule": "dream", "steps": 3, "block_length": 5}}, [5], {}, "steps=3: 4 blocks .* give 4"),
    ],
)
def test_a_request_that_cannot_be_served_is_refused(served, fields, prompt, options, message):
    with pytest.raises(ValueError, match=message):
        check_request(SamplingParams(max_tokens=16, **fields), prompt, served, **options)
    check_request(SamplingParams(max_tokens=16), [5], served)


def test_a_request_without_a_seed_is_seeded_by_its_id_but_at_temperature_0(served):
    def seed(request_id: str, **fields) -> int:
        return decoding_params(request_id, SamplingParams(max_tokens=4, **fields), served).seed

    assert seed("a") == seed("a") != seed("b")
    assert seed("a", temperature=0) == seed("b", temperature=0) == 0
    assert seed("a", seed=7) == seed("b", seed=7) == 7


def test_the_models_eos_pays_the_penalty_and_stops_unless_ignored(served):
    params = SamplingParams(max_tokens=4, stop_token_ids=[9])
    params.update_from_generation_config({}, VOCAB[EOS])
    assert decoding_params("", params, served).stop_ids == (VOCAB[EOS], 9)
    ignoring = SamplingParams(max_tokens=4, ignore_eos=True)
    ignoring.update_from_generation_config({}, VOCAB[EOS])
    assert decoding_params("", ignoring, served).stop_ids == ()
    assert decoding_params("", ignoring, served).eos_ids == (VOCAB[EOS],)
