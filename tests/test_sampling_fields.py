"""Every field of vLLM's SamplingParams is honoured or refused by name, and the reference says which."""

import re
from typing import Any

import pytest
from readme import REFERENCE
from vllm import SamplingParams
from vllm.sampling_params import RepetitionDetectionParams, RequestOutputKind, StructuredOutputsParams
from vllm.tokenizers import get_tokenizer

from vllm_infogain import engine_defaults, plugin
from vllm_infogain.request.from_vllm import decoding_params
from vllm_infogain.serving.admission import check_request

# A value of each public field that differs from its default.
ASKED: dict[str, Any] = {
    "n": 2,
    "presence_penalty": 0.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.2,
    "temperature": 0.5,
    "watermarking": True,
    "top_p": 0.9,
    "top_k": 3,
    "min_p": 0.1,
    "seed": 4,
    "stop": ["x"],
    "stop_token_ids": [9],
    "ignore_eos": True,
    "max_tokens": 9,
    "min_tokens": 2,
    "logprobs": 1,
    "prompt_logprobs": 1,
    "prompt_logprob_token_ids": [[5]],
    "prompt_logprob_start": 1,
    "logprob_token_ids": [7],
    "flat_logprobs": True,
    "detokenize": False,
    "skip_special_tokens": False,
    "spaces_between_special_tokens": False,
    "include_stop_str_in_output": True,
    "output_kind": RequestOutputKind.FINAL_ONLY,
    "stream_interval": 2,
    "structured_outputs": StructuredOutputsParams(regex="[0-9]+"),
    "logit_bias": {7: 1.0},
    "allowed_token_ids": [7, 8],
    "extra_args": {"sampler": "ar"},
    "bad_words": ["7"],
    "skip_reading_prefix_cache": True,
    "thinking_token_budget": 3,
    "repetition_detection": RepetitionDetectionParams(max_pattern_size=2, min_count=2),
    "routed_experts_prompt_start": 1,
    "trace_decode_token_ids": [5, 6],
}
# Set by vLLM itself, never by a user.
OWN = {"skip_clone", "output_text_buffer_length"}

# What each honoured field becomes in the decoding record; the others are vLLM's output processor's or engine's.
RECORD = {
    "temperature": lambda params: params.temperature == 0.5,
    "top_p": lambda params: params.top_p == 0.9,
    "top_k": lambda params: params.top_k == 3,
    "min_p": lambda params: params.min_p == 0.1,
    "seed": lambda params: params.seed == 4,
    "stop_token_ids": lambda params: 9 in params.stop_ids,
    "max_tokens": lambda params: params.canvas_length == 9,
    "min_tokens": lambda params: params.constraints.min_tokens == 2,
    "logprobs": lambda params: params.logprobs == 1,
    "logprob_token_ids": lambda params: params.logprob_token_ids == (7,),
    "structured_outputs": lambda params: params.is_structured,
    "logit_bias": lambda params: params.constraints.logit_bias == ((7, 1.0),),
    "allowed_token_ids": lambda params: params.constraints.allowed_ids == (7, 8),
    "extra_args": lambda params: params.sampler == "ar",
    "bad_words": lambda params: len(params.constraints.banned) == 1,
}


def table() -> dict[str, str]:
    """The reference's verdict on each field: vllm_infogain/request/README.md."""
    section = REFERENCE.split("## Fields of `SamplingParams`")[1].split("\n#")[0]
    verdicts = {}
    for verdict, names in re.findall(r"^\| (honoured|refused)[^|]*\| ([^|]*)\|", section, re.MULTILINE):
        verdicts |= dict.fromkeys(re.findall(r"`(\w+)`", names), verdict)
    return verdicts


@pytest.fixture(scope="module")
def served(checkpoint):
    from vllm.engine.arg_utils import EngineArgs

    plugin.register()
    args = engine_defaults.engine_args() | {"dtype": "float32", "max_num_batched_tokens": 512}
    return EngineArgs(model=str(checkpoint), **args).create_engine_config()


@pytest.fixture(scope="module")
def tokenizer(checkpoint):
    return get_tokenizer(str(checkpoint))


def test_every_public_field_has_a_value_here_and_a_verdict_in_the_reference():
    public = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")} - OWN
    assert public == set(ASKED) == set(table())
    plain = SamplingParams()
    assert [name for name, value in ASKED.items() if getattr(plain, name) == value] == []


@pytest.mark.parametrize("name", ASKED)
def test_a_field_is_honoured_or_refused_as_the_reference_says(served, tokenizer, name: str):
    params = SamplingParams(**({"max_tokens": 16} | {name: ASKED[name]}))
    params.update_from_tokenizer(tokenizer)
    if table()[name] == "refused":
        with pytest.raises(ValueError, match=f"^{name}="):
            check_request(params, [5], served)
        return
    check_request(params, [5], served)
    if name in RECORD:
        plain = SamplingParams(max_tokens=16)
        assert RECORD[name](decoding_params("", params, served))
        assert not RECORD[name](decoding_params("", plain, served)), "the default means something else"
