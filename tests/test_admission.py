"""Requests and engine settings, checked against a real vLLM configuration."""

import json
import shutil
from pathlib import Path

import pytest
from vllm import SamplingParams
from vllm.config import CUDAGraphMode, StructuredOutputsConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs import tokens_input
from vllm_infogain.patches import admission_check, wrap_once

from vllm_infogain import ParameterError, engine_defaults, plugin
from vllm_infogain.compat import InputProcessor
from vllm_infogain.embedded.tokenizer import EOS, MASK, VOCAB
from vllm_infogain.engine import config_check as startup
from vllm_infogain.engine import identity
from vllm_infogain.engine.config_check import check_attention_backends, check_engine
from vllm_infogain.request import from_vllm
from vllm_infogain.request.from_vllm import decoding_params
from vllm_infogain.serving.admission import check_request


def config(checkpoint: Path, **settings):
    plugin.register()
    args = engine_defaults.engine_args() | {"dtype": "float32", "max_num_batched_tokens": 512} | settings
    return EngineArgs(model=str(checkpoint), **args).create_engine_config()


@pytest.fixture(scope="module")
def served(checkpoint):
    return config(checkpoint)


@pytest.mark.parametrize(
    ("whose", "file", "fields", "mask_id"),
    [
        ("the model's config.json", "config.json", {"mask_token_id": VOCAB[EOS]}, VOCAB[EOS]),
        ("the generation config", "generation_config.json", {"eos_token_id": [9, VOCAB[MASK]]}, VOCAB[MASK]),
        ("the tokenizer", "config.json", {"mask_token_id": VOCAB[EOS], "eos_token_id": None}, VOCAB[EOS]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_mask_token_that_is_an_end_token_fails_the_start(tmp_path, checkpoint, whose, file, fields, mask_id):
    shutil.copytree(checkpoint, tmp_path / "model")
    path = tmp_path / "model" / file
    written = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(written | fields))
    with pytest.raises(ParameterError, match=f"mask_token_id={mask_id}: the end token of {whose}"):
        config(tmp_path / "model")


def test_another_mask_token_than_the_tokenizers_is_named_in_a_warning(checkpoint, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(startup.logger, "warning", lambda text, *values: said.append(text % values))
    config(checkpoint)
    assert said == []
    config(checkpoint, hf_overrides={"mask_token_id": 9})
    (warning,) = said
    assert warning.startswith(f"mask_token_id=9 ('#') is not the tokenizer's mask token, {VOCAB[MASK]} ('{MASK}')")
    assert f"--hf-overrides '{{\"mask_token_id\": {VOCAB[MASK]}}}'" in warning


def test_our_own_settings_are_let_in(served):
    check_engine(served)


def test_an_engine_for_one_of_our_models_is_ours_unasked(checkpoint, served):
    plugin.register()
    own = {"dtype": "float32", "max_num_batched_tokens": 512, "seed": 3, "max_num_seqs": 7}
    unasked = EngineArgs(model=str(checkpoint), **own).create_engine_config()
    assert identity.is_active(unasked)
    assert unasked.model_config.tokenizer_mode == served.model_config.tokenizer_mode == identity.TOKENIZER_MODE
    assert unasked.parallel_config.worker_cls == identity.WORKER
    for of in ("cache_config", "scheduler_config", "structured_outputs_config"):
        asked = config(checkpoint, **own)
        assert repr(getattr(unasked, of)) == repr(getattr(asked, of))
    assert unasked.model_config.enforce_eager == served.model_config.enforce_eager
    assert unasked.model_config.seed == 3


def test_what_was_given_for_one_of_our_models_is_kept_or_refused(checkpoint):
    plugin.register()
    given = {"backend": "xgrammar", "disable_any_whitespace": True}
    kept = EngineArgs(model=str(checkpoint), structured_outputs_config=StructuredOutputsConfig(**given))
    assert kept.create_engine_config().structured_outputs_config.backend == "xgrammar"
    for name, value in {"enable_prefix_caching": True, "async_scheduling": True, "runner": "pooling"}.items():
        with pytest.raises(ParameterError, match=f"^{name}="):
            EngineArgs(model=str(checkpoint), **{name: value}).create_engine_config()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"scheduling_policy": "priority"}, "scheduling_policy"),
        ({"enable_prefix_caching": True}, "enable_prefix_caching"),
        ({"scheduler_cls": "some.Scheduler"}, "scheduler_cls"),
        ({"worker_cls": "some.Worker"}, "worker_cls"),
        ({"runner": "pooling"}, "runner"),
        ({"tokenizer_mode": "mistral"}, "tokenizer_mode='mistral': it does not read the masks"),
        ({"additional_config": {"infogain": {"num_candidates": 0}}}, "num_candidates"),
        ({"additional_config": {"infogain": 3}}, "additional_config"),
        ({"attention_backend": "FLASHINFER"}, "attention_backend='FLASHINFER': give FLASH_ATTN or TRITON_ATTN"),
        ({"attention_config": {"backend": "FLEX_ATTENTION"}}, "attention_backend='FLEX_ATTENTION'"),
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


@pytest.mark.parametrize("mode", CUDAGraphMode)
def test_graphs_that_hold_attention_fail_the_start(served, monkeypatch, mode):
    monkeypatch.setattr(served.compilation_config, "cudagraph_mode", mode)
    if mode in (CUDAGraphMode.NONE, CUDAGraphMode.PIECEWISE):
        check_engine(served)
    else:
        with pytest.raises(ParameterError, match=f"cudagraph_mode='{mode.name}': give PIECEWISE or NONE"):
            check_engine(served)


def test_graphs_that_only_vllms_runner_captures_fail_the_start(served, monkeypatch):
    monkeypatch.setenv("VLLM_USE_BREAKABLE_CUDAGRAPH", "1")
    check_engine(served)
    monkeypatch.setattr(served.compilation_config, "cudagraph_mode", CUDAGraphMode.PIECEWISE)
    with pytest.raises(ParameterError, match=r"VLLM_USE_BREAKABLE_CUDAGRAPH=1: .*set it to 0"):
        check_engine(served)


def test_an_attention_backend_that_vllm_chose_is_checked_too():
    check_attention_backends(["FLASH_ATTN", "TRITON_ATTN", "CPU_ATTN"])
    with pytest.raises(ParameterError, match="FLASHINFER"):
        check_attention_backends(["FLASH_ATTN", "FLASHINFER"])


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
        ({}, [5] * 128, {}, "prompt='128 tokens': leaves no room for a canvas in the model length of 128"),
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


@pytest.mark.parametrize(
    ("budget", "pages", "knobs", "message"),
    [
        (128, 0, {}, r"guidance_scale=2.0: .*\(80 positions\).*\(80\).* is 128: .*--max-num-batched-tokens 160"),
        (150, 0, {"guidance_prompt_ids": [5] * 31}, "guidance_scale=2.0: .* is 150: .*--max-num-batched-tokens 151"),
        (151, 10, {"guidance_prompt_ids": [5] * 31}, r"guidance_scale=2.0: .*the KV pool holds 144 positions"),
        (160, 11, {}, None),
        (160, 11, {"sampler": "beam", "cache": "dual", "beam_width": 2}, "beam_width=2: .* as many guides, .*160"),
        (160, 21, {"sampler": "beam", "cache": "dual", "beam_width": 2}, None),
    ],
)
def test_a_sequence_and_its_guide_must_fit_a_forward_and_the_pool(checkpoint, budget, pages, knobs, message):
    served = config(checkpoint, max_num_batched_tokens=budget, max_num_seqs=8, block_size=16)
    served.cache_config.num_gpu_blocks = pages  # one of them is vLLM's null page; 0: not known yet
    params = SamplingParams(max_tokens=40, extra_args={"guidance_scale": 2, **knobs})
    if message is None:
        check_request(params, [5] * 40, served)
        return
    with pytest.raises(ValueError, match=message):
        check_request(params, [5] * 40, served)


def test_guides_count_as_rows(checkpoint):
    served = config(checkpoint, additional_config={"infogain": {"request_rows": 8 * 2 * 56}})
    guided = {"guidance_scale": 1, "num_candidates": 8}
    check_request(SamplingParams(max_tokens=16, extra_args=guided), [5] * 40, served)
    with pytest.raises(ValueError, match=r"num_candidates=8: .* differ in 113 positions are 904 rows"):
        check_request(
            SamplingParams(max_tokens=16, extra_args=guided | {"guidance_prompt_ids": [5] * 41}), [5] * 40, served
        )


@pytest.fixture
def front_end(checkpoint):
    """Of an engine that never runs, and with a configuration of its own: what vLLM's front end does with a request."""

    class Engine:
        vllm_config = config(checkpoint)
        input_processor = InputProcessor(vllm_config)

        def generate(self, prompt, params, request_id, **options):
            return self.input_processor.process_inputs(request_id, prompt, params, ("generate",), **options)

    wrap_once(Engine, "generate", admission_check._check_before_streaming)
    yield Engine()
    Engine.input_processor.renderer.shutdown()


def counted(monkeypatch, name: str) -> list:
    """Gets an item for every call of a parser."""
    calls: list = []
    parse = getattr(from_vllm, name)

    def parse_counted(*args, **own):
        calls.append(args)
        return parse(*args, **own)

    monkeypatch.setattr(from_vllm, name, parse_counted)
    return calls


def test_the_front_end_parses_each_request_once_and_the_settings_once(front_end, monkeypatch):
    requests, settings = counted(monkeypatch, "parse_params"), counted(monkeypatch, "parse_settings")
    mask = VOCAB[MASK]
    for number, prompt in enumerate(([5, 6], [5, mask, mask]), start=1):
        rendered, params = tokens_input(prompt), SamplingParams(max_tokens=2)
        made = [front_end.generate(rendered, params, str(name)) for name in range(2)]  # as /v1/responses: it asks twice
        assert [request.prompt_token_ids for request in made] == [prompt[: 3 - number]] * 2
        assert len(requests) == number
    front_end.generate({"prompt_token_ids": [5, 6]}, SamplingParams(max_tokens=2), "not rendered")
    front_end.input_processor.process_inputs("offline", tokens_input([5]), SamplingParams(max_tokens=2), ("generate",))
    assert len(requests) == 4
    assert len(settings) == 1


def test_a_negative_prompt_becomes_token_ids_as_a_completions_prompt_does(front_end):
    def made(text: str, **knobs) -> dict:
        params = SamplingParams(max_tokens=4, extra_args={"guidance_scale": 1, "negative_prompt": text, **knobs})
        request = front_end.generate({"prompt_token_ids": [5, 6]}, params, "a")
        assert params.extra_args["negative_prompt"] == text, "the caller's own are left as they were"
        return request.sampling_params.extra_args

    assert made("a<|mask:2|>") == {"guidance_scale": 1, "guidance_prompt_ids": [0, VOCAB["a"], *[VOCAB[MASK]] * 2]}
    with pytest.raises(ValueError, match=r"negative_prompt='10 characters': .*<\|mask7\|>"):
        made("a<|mask7|>")
    with pytest.raises(ValueError, match="negative_prompt='': its text has no tokens"):
        made("")
    with pytest.raises(ValueError, match="guidance_scale='much'"):
        made("a", guidance_scale="much")


def test_a_prompt_is_checked_again_with_other_parameters_and_decoded_with_those_it_was_checked_with(front_end):
    rendered, params = tokens_input([5, 6]), SamplingParams(max_tokens=2)
    front_end.generate(rendered, params, "a")
    with pytest.raises(ValueError, match="max_tokens=500"):
        front_end.generate(rendered, SamplingParams(max_tokens=500), "b")
    with pytest.raises(ValueError, match="priority=3"):
        front_end.generate(rendered, params, "c", priority=3)
    params.max_tokens = 500
    assert front_end.generate(rendered, params, "d").sampling_params.max_tokens == 2


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
