"""Request parameters: parsed once, refused with their name, value and remedy."""

import dataclasses

import pytest

from vllm_infogain.request.constraints import Constraints
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.request.params import (
    PARSERS,
    READERS,
    SAMPLER_DEFAULTS,
    SAMPLERS,
    DecodingParams,
    parse_knobs,
    parse_params,
)
from vllm_infogain.request.presets import ONE_PER_STEP, PICTURE, PRESETS, TEXT
from vllm_infogain.request.settings import SETTINGS, parse_settings


def parse(given=None, defaults=None, canvas_length=64, temperature=1.0) -> DecodingParams:
    return parse_params(
        given or {}, defaults=defaults or {}, temperature=temperature, seed=0, canvas_length=canvas_length
    )


def test_the_papers_settings_are_the_defaults():
    params = parse()
    assert (params.sampler, params.num_candidates, params.tau_position) == ("info_gain", 8, 0.1)
    assert (params.position_score, params.bypass_threshold, params.tokens_per_step) == ("sampled", 0.8, 1)
    assert (params.block_length, params.state_uncertainty) == (32, "mean")


def test_baselines_are_greedy_unless_a_position_temperature_is_given():
    assert parse({"sampler": "entropy"}).tau_position == 0
    assert parse({"sampler": "entropy", "position_temperature": 0.5}).tau_position == 0.5


def test_adaptive_has_defaults_of_its_own_below_the_servers_and_the_requests():
    params = parse({"sampler": "adaptive"})
    own = SAMPLER_DEFAULTS["adaptive"]
    assert {name: getattr(params, name) for name in own} == own
    assert params.tau_position == 1
    assert all(getattr(DecodingParams(), name) != value for name, value in own.items())
    assert parse({"sampler": "adaptive"}, {"num_candidates": 16}).num_candidates == 16
    assert parse({"sampler": "adaptive", "num_candidates": 8}).num_candidates == 8
    assert parse({}, {"sampler": "adaptive"}).entropy_bound == own["entropy_bound"]
    assert parse({"sampler": "lookum"}, {"sampler": "adaptive"}).num_candidates == DecodingParams.num_candidates


def test_a_request_overrides_the_servers_defaults():
    params = parse({"num_candidates": 3}, defaults={"num_candidates": 5, "tokens_per_step": 2})
    assert (params.num_candidates, params.tokens_per_step) == (3, 2)


def test_a_default_block_longer_than_the_canvas_is_no_error():
    assert parse(canvas_length=16).block_length == 32
    assert parse(defaults={"block_length": 64}, canvas_length=16).block_length == 64


def test_the_block_length_of_a_block_causal_model_is_the_requests_the_servers_or_the_checkpoints():
    def block_length(given: dict, defaults: dict) -> int:
        params = parse_params(given, defaults=defaults, temperature=0, canvas_length=8, block_causal_size=4)
        assert params.block_causal
        return params.block_length

    assert block_length({}, {}) == 4
    assert block_length({}, {"block_length": 32}) == 32
    assert block_length({"block_length": 16}, {"block_length": 32}) == 16, (
        "longer than the canvas: it counts the prompt"
    )


def test_the_record_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        parse().sampler = "ar"  # type: ignore[misc]


def test_numbers_of_http_are_accepted():
    params = parse({"num_candidates": 4.0, "position_temperature": 1, "return_trajectory": 1})
    assert (params.num_candidates, params.position_temperature, params.return_trajectory) == (4, 1.0, True)
    assert isinstance(params.num_candidates, int)


BAD = [
    ("prune", "yes"),
    ("cache", "all"),
    ("cache_refresh", -1), ("image", "yes"),
    ("sampler", "greedy"), ("sampler", 3), ("num_candidates", 0), ("num_candidates", 65), ("num_candidates", 2.5),
    ("num_candidates", "8"), ("num_candidates", True), ("position_temperature", -0.1),
    ("position_temperature", float("nan")), ("position_temperature", float("inf")), ("position_temperature", "warm"),
    ("position_score", "luck"), ("bypass_threshold", -1), ("tokens_per_step", 0),
    ("block_length", -1), ("block_length", 65), ("state_uncertainty", "max"), ("return_trajectory", "yes"),
    ("schedule", "sine"), ("schedule", "linear"), ("steps", 0), ("bypass_mode", "never"), ("bypass_mode", "only"),
    ("uncertainty_scope", "world"), ("cost_weight", -1), ("beam_width", 0), ("beam_width", 33), ("num_generations", 0),
    ("klass_epsilon", -1), ("pc_lambda", "a"), ("pc_alpha", -2), ("entropy_bound", -1), ("threshold", 1.5),
    ("factor", -0.5), ("eos_penalty", -1), ("eos_last", "late"), ("stream_mode", "words"), ("stream_mode", "canvas"),
    ("diffusion_seed_canvas", "text"), ("diffusion_seed_canvas", [-1]), ("diffusion_pinned", 3),
    ("suffix_token_ids", [1.5]), ("tokens_per_step", 2**70), ("cost_weight", 1e300), ("eos_penalty", 1e39),
    ("steps", 10**12), ("pc_alpha", 1e39), ("guidance_scale", -1), ("guidance_scale", float("nan")),
    ("guidance_scale", 101), ("guidance_scale", 1e300), ("guidance_scale", "3"), ("guidance_prompt_ids", "text"),
    ("guidance_prompt_ids", [2.5]), ("guidance_prompt_ids", []), ("negative_prompt", 3),
    ("preset", "quick"), ("preset", 3),
]  # fmt: skip


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("others", [{"sampler": "eb"}, {"num_candidates": 2, "block_length": 8}])
def test_none_is_as_left_out(name, others):
    others = {key: value for key, value in others.items() if key != name}
    assert parse(others | {name: None}) == parse(others)
    assert parse(others, {name: None}) == parse(others)
    assert parse({name: None}, others) == parse({}, others), "the server's default holds"


def test_a_table_whose_rows_have_other_columns_too_asks_for_nothing_by_them():
    assert parse({"sampler": "ar", "not_of_ours": None}) == parse({"sampler": "ar"})


def test_a_setting_of_none_is_as_left_out():
    assert parse_settings({"infogain": None}) == parse_settings({}) == parse_settings(None)
    nothing = dict.fromkeys([*SETTINGS, *PARSERS])
    assert parse_settings({"infogain": nothing}) == parse_settings({})
    assert parse_settings({"infogain": nothing | {"steps": 3}}) == parse_settings({"infogain": {"steps": 3}})


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_refused_by_name(name, value):
    sampler = {"bypass_mode": {"sampler": "beam"}, "stream_mode": {"sampler": "best_of_n"}}.get(name, {})
    with pytest.raises(ParameterError, match=name) as caught:
        parse({**sampler, name: value})
    assert repr(value) in str(caught.value) or repr(value[0]) in str(caught.value)
    assert "give" in str(caught.value)
    assert caught.value.parameter in (name, "steps")  # a schedule is refused for the steps it lacks


def test_a_beam_of_too_many_sequences_is_refused():
    with pytest.raises(ParameterError, match="beam_width=32: num_candidates x beam_width must be at most 256"):
        parse({"sampler": "beam", "beam_width": 32, "num_candidates": 16})
    assert parse({"num_candidates": 16}, {"beam_width": 32}).most_sequences == 16, "without a beam its width is idle"


OTHER = {  # a value of each sampler's own parameters that is not the default
    "num_candidates": 2, "position_score": "entropy", "bypass_threshold": 0.5, "bypass_mode": "only",
    "state_uncertainty": "sum", "uncertainty_scope": "sequence", "cost_weight": 0.5, "prune": True, "beam_width": 2,
    "num_generations": 2, "klass_epsilon": 0.1, "pc_lambda": 1, "pc_alpha": 1, "entropy_bound": 1, "threshold": 0.5,
    "factor": 2,
}  # fmt: skip


def test_every_parameter_of_some_samplers_only_is_known_here():
    assert {name for name, readers in READERS.items() if readers != set(SAMPLERS)} == set(OTHER)


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("name", OTHER)
def test_a_parameter_is_refused_where_its_sampler_has_no_use_for_it(sampler, name):
    given, never = {"sampler": sampler, name: OTHER[name]}, {"bypass_threshold": 1}
    if sampler in READERS[name]:
        assert getattr(parse(given, never), name) == OTHER[name]
        return
    with pytest.raises(ParameterError, match=f"^{name}=.*sampler='{sampler}' has no use for it; leave it out"):
        parse(given)
    plain = getattr(DecodingParams(), name)
    assert getattr(parse({"sampler": sampler, name: plain}), name) == plain, "who gives the default asks for nothing"
    others = never | {name: OTHER[name]}
    assert parse({"sampler": sampler}, others).sampler == sampler, "the server's defaults are for all"
    assert parse(given, others).sampler == sampler, "nor does who repeats the server's default"


@pytest.mark.parametrize(
    ("given", "defaults", "name"),
    [
        ({"steps": 4}, {}, "steps"),
        ({"steps": 4, "schedule": "fixed"}, {"schedule": "linear", "steps": 9}, "steps"),
        ({"tokens_per_step": 2, "schedule": "linear", "steps": 4}, {}, "tokens_per_step"),
        ({"cache_refresh": 2}, {}, "cache_refresh"),
        ({"guidance_prompt_ids": [5]}, {}, "guidance_prompt_ids"),
        ({"guidance_scale": 0, "guidance_prompt_ids": [5]}, {"guidance_scale": 2}, "guidance_prompt_ids"),
    ],
)
def test_a_parameter_that_another_one_makes_idle_is_refused(given, defaults, name):
    with pytest.raises(ParameterError, match=f"^{name}="):
        parse(given, defaults)
    parse({other: value for other, value in given.items() if other != name}, defaults)


def test_every_parameter_has_a_bad_value_in_this_file():
    assert {name for name, _ in BAD} == set(PARSERS)


def test_an_unknown_key_is_refused_with_the_known_ones():
    with pytest.raises(ParameterError, match=r"candidates=8: unknown parameter; known are .*num_candidates"):
        parse_knobs({"candidates": 8})


def test_a_negative_temperature_is_refused():
    with pytest.raises(ParameterError, match="temperature=-1"):
        parse(temperature=-1)


def test_a_preset_is_as_if_its_knobs_were_given():
    for name in PRESETS:
        assert parse({"preset": name}) == dataclasses.replace(parse(TEXT[name]), preset=name)
        assert parse({}, {"preset": name}) == parse({"preset": name}), "a server may have one, too"


def test_the_requests_own_knobs_win_over_its_presets_and_those_over_the_servers():
    assert parse({"preset": "fast", "threshold": 0.7}).threshold == 0.7
    params = parse({"preset": "best", "sampler": "lookum"})
    assert (params.sampler, params.state_uncertainty) == ("lookum", TEXT["best"]["state_uncertainty"])
    assert parse({"preset": "fast"}, {"threshold": 0.7}).threshold == TEXT["fast"]["threshold"]
    assert parse({"sampler": "ar"}, {"preset": "fast"}).sampler == "ar"
    assert parse({}, {"preset": "fast", "threshold": 0.7}).threshold == 0.7


def test_a_preset_takes_nothing_from_the_servers_preset():
    for name in PRESETS:
        for other in PRESETS:
            assert parse({"preset": name}, {"preset": other}) == parse({"preset": name})


def test_a_preset_of_which_nothing_is_left_is_refused():
    with pytest.raises(ParameterError, match="preset='fast': nothing of it is left beside sampler='ar'; leave one"):
        parse({"preset": "fast", "sampler": "ar"})
    assert parse({"sampler": "ar"}, {"preset": "fast"}).sampler == "ar", "a default asks for nothing"


def test_a_knob_that_the_presets_sampler_does_not_have_is_refused():
    with pytest.raises(ParameterError, match=r"^cost_weight=.*sampler='threshold' has no use for it"):
        parse({"preset": "fast", "cost_weight": 2})


WORD = {"constraints": Constraints(banned=((5, 6),))}


@pytest.mark.parametrize("joint", [WORD, {"is_structured": True}])
@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_writes_one_position_per_step_where_a_request_needs_that(name, joint):
    given = {"temperature": 0, "canvas_length": 8, **joint}
    params = parse_params({"preset": name}, defaults={}, **given)
    assert params == dataclasses.replace(parse_params(ONE_PER_STEP[name], defaults={}, **given), preset=name)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_of_a_picture_is_another(name):
    given = {"defaults": {}, "temperature": 0, "canvas_length": 1024, "image_tokens": ImageTokens()}
    params = parse_params({"preset": name, "image": True}, **given)
    assert params == dataclasses.replace(parse_params({**PICTURE[name], "image": True}, **given), preset=name)
    assert params.schedule == "maskgit"
    assert parse_params({"preset": name, "image": True, "steps": 9}, **given).steps == 9


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_suits_models_whose_attention_is_causal_over_blocks(name):
    given = {"defaults": {}, "temperature": 0, "canvas_length": 8, "block_causal_size": 4}
    assert parse_params({"preset": name}, **given).block_length == 4


@pytest.mark.parametrize(
    "knobs", [{"sampler": "eb"}, {"sampler": "threshold"}, {"tokens_per_step": 2}, {"schedule": "linear", "steps": 4}]
)
@pytest.mark.parametrize("joint", [WORD, {"is_structured": True}])
def test_what_depends_on_neighbours_is_written_one_position_at_a_time(knobs, joint):
    with pytest.raises(ParameterError, match="one position per step"):
        parse_params(knobs, defaults={}, temperature=0, canvas_length=8, **joint)
    parse_params({}, defaults={}, temperature=0, canvas_length=8, **joint)


@pytest.mark.parametrize(
    ("constraints", "name"),
    [
        (Constraints(allowed_ids=(3,)), "allowed_token_ids"),
        (Constraints(allowed_ids=(5, 6), banned=((5,), (6,))), "allowed_token_ids"),
        (Constraints(banned=((0,), (1,), (2,), (4,), (5,), (6,), (7,))), "bad_words"),
        (Constraints(allowed_ids=(5, 6), banned=((5, 6),)), "allowed_token_ids"),
        (Constraints(allowed_ids=(1,)), "allowed_token_ids"),
        (Constraints(logit_bias=((5, float("inf")),)), "logit_bias"),
        (Constraints(logit_bias=((5, float("nan")),)), "logit_bias"),
    ],
)
def test_constraints_that_may_leave_a_position_without_any_token_are_refused(constraints, name):
    with pytest.raises(ParameterError, match=name):
        constraints.check(vocab=8, mask_id=3, stop_ids=(1,), stops_from=2)


def test_constraints_that_always_leave_a_token_are_let_in():
    some = Constraints(allowed_ids=(1, 5, 6, 7), banned=((5, 6),), logit_bias=((5, -100.0),))
    some.check(vocab=8, mask_id=3, stop_ids=(1,), stops_from=2)
    Constraints(allowed_ids=(1,)).check(vocab=8, mask_id=3, stop_ids=(1,), stops_from=0)
    Constraints().check(vocab=8, mask_id=3, stop_ids=(), stops_from=0)
