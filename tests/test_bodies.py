"""Names in a body that an endpoint would pass over."""

import pytest

from vllm_infogain import ParameterError
from vllm_infogain.request.params import PARSERS
from vllm_infogain.request.settings import SETTINGS
from vllm_infogain.serving.bodies import check_body, check_sampling_body

FIELDS = {"model", "prompt", "max_tokens", "vllm_xargs", "best_of"}
SAMPLING = {"seed": None, "n": 1, "max_tokens": 16, "extra_args": None}
BEST_OF = "give n for samples; sampler='best_of_n' in vllm_xargs returns the surest of several"


@pytest.mark.parametrize("name", PARSERS)
def test_every_decoding_parameter_belongs_into_vllm_xargs(name):
    with pytest.raises(ParameterError, match=f"^{name}=1: is a decoding parameter; put it in vllm_xargs"):
        check_body({"model": "m", name: 1}, FIELDS, SAMPLING)
    check_body({"model": "m", "vllm_xargs": {name: 1}, name: None}, FIELDS, SAMPLING)
    check_body({"model": "m", name: 1}, FIELDS | {name}, SAMPLING)


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_is_the_servers(name):
    with pytest.raises(ParameterError, match=f"^{name}=1: is a setting of the server"):
        check_body({name: 1}, FIELDS, SAMPLING)


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("num_candidate", 4, "if num_candidates is meant, put that in vllm_xargs"),
        ("token_per_step", 4, "if tokens_per_step is meant"),
        ("guided_json", {}, "structured_outputs"),
        ("extra_args", {}, "over HTTP its name is vllm_xargs"),
        ("extra_body", {}, "put what it holds at the top"),
        ("stream", True, "does not stream"),
        ("seed", 3, "does not have it"),
        ("response_format", {"type": "json_object"}, "does not have it"),
        ("best_of", 4, BEST_OF),
        ("length_penalty", 1.5, "beam search"),
    ],
)
def test_what_asks_for_another_decoding_is_refused_with_the_remedy(name, value, remedy):
    with pytest.raises(ParameterError, match=remedy) as refusal:
        check_body({name: value}, FIELDS, SAMPLING)
    assert refusal.value.parameter == name


def test_what_changes_nothing_is_let_in():
    same = {"seed": None, "n": 1, "best_of": 1, "length_penalty": 1.0, "early_stopping": False, "stream": False}
    others = {"store": True, "metadata": {}, "user": "u", "service_tier": "auto", "prompt_cache_key": "k", "stops": "x"}
    check_body(same | others, FIELDS, SAMPLING)


def test_parameters_among_sampling_parameters_belong_into_extra_args():
    with pytest.raises(ParameterError, match=r"^sampling_params\.sampler='ar': .* put it in extra_args"):
        check_sampling_body({"max_tokens": 3, "sampler": "ar"}, SAMPLING)
    check_sampling_body({"max_tokens": 3, "extra_args": {"sampler": "ar"}}, SAMPLING)
