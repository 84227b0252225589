"""Infilling from the user's words to the parameter record: masks in text, masks among token ids, checks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_admission import config
from vllm import SamplingParams

from vllm_infogain import ParameterError
from vllm_infogain.embedded.tokenizer import EOS, MASK, VOCAB
from vllm_infogain.request.canvas import check_infill, initial_canvas
from vllm_infogain.request.params import parse_params
from vllm_infogain.serving.admission import check_request, check_server_limit
from vllm_infogain.serving.asked import Asked
from vllm_infogain.serving.infilling import GAP, Gap, cut_prompt, with_canvas
from vllm_infogain.serving.mask_syntax import check_typed, expand_masks

M = VOCAB[MASK]
STOP = VOCAB[EOS]
OWN = "<|mdm_mask|>"  # how LLaDA's tokenizer writes the mask
PLAIN = st.text("ab\n<|>:[]", max_size=5).filter(lambda text: "|>" not in text and "<|" not in text)


# Masks in text.


@given(st.lists(st.tuples(PLAIN, st.integers(1, 9)), max_size=4), PLAIN)
def test_marks_become_as_many_masks_as_they_say_and_other_text_stays(parts, end):
    marked = "".join(f"{text} <|mask:{count}|> " for text, count in parts) + end
    assert expand_masks(marked, OWN, 36) == "".join(f"{text} {OWN * count} " for text, count in parts) + end


def test_a_mark_without_a_number_is_one_mask():
    assert expand_masks("a<|mask|>b<|mask|><|mask:1|>", OWN, 9) == f"a{OWN}b{OWN}{OWN}"


@pytest.mark.parametrize(
    "mark", ["<|mask:0|>", "<|mask:x|>", "<|mask:|>", "<|mask:-1|>", "<|mask:33|>", "<|mask:1.0|>", f"<|mask:{9**99}|>"]
)
def test_a_mark_that_says_no_number_of_masks_is_refused_by_its_text(mark):
    with pytest.raises(ParameterError) as refusal:
        expand_masks(f"a<|mask|>{mark}", OWN, 32)
    assert repr(mark) in str(refusal.value)


def test_what_is_almost_a_mask_is_refused_unless_it_is_a_token():
    for mistyped in ("<|mask7|>", "<|MASK|>", "<|mask 7|>", "<|masks:2|>", "<|the_mask|>"):
        with pytest.raises(ParameterError, match="no mask; give"):
            check_typed(f"a{mistyped}b", OWN, {"<|mask_start|>"}.__contains__)
    for text in (f"<|mask|>{OWN}<|mask:2|>", "<|mask_start|>", "a mask", "<|x|>mask<|y|>"):
        assert check_typed(text, OWN, {"<|mask_start|>"}.__contains__) is None


@pytest.mark.parametrize("other", ["[MASK]", "<mask>", "[mask:7]"])
def test_masks_of_other_models_are_text_and_noticed(other):
    assert check_typed(f"what does {other} mean?", OWN, bool) == other
    assert check_typed(f"a{other}", other, bool) is None, "it is this model's"


def test_all_marks_together_are_at_most_the_models_length():
    expand_masks("<|mask:16|>" * 2, OWN, 32)
    with pytest.raises(ParameterError, match="from 1 to 32 in all"):
        expand_masks("<|mask:16|>" * 3, OWN, 32)


# Masks among token ids.


@given(st.lists(st.integers(5, 9), min_size=1), st.lists(st.sampled_from([M, 5, 6])))
def test_a_prompt_ends_before_its_first_mask_and_the_rest_is_the_canvas(before, behind):
    engine_input = {"type": "token", "prompt_token_ids": [*before, *behind]}
    for _ in range(2):  # a second time changes nothing
        cut_prompt(engine_input, M, MASK)
        prompt, gap = engine_input["prompt_token_ids"], engine_input.get(GAP)
        assert M not in prompt
        if M in behind:
            assert [*prompt, *gap.canvas] == [*before, *behind]
            assert gap.canvas[0] == M
        else:
            assert (prompt, gap) == ([*before, *behind], None)


def test_the_prompts_text_ends_where_its_tokens_end():
    engine_input = {"prompt_token_ids": [5, 6, M, 7, M], "prompt": f"ab{OWN}c{OWN}"}
    cut_prompt(engine_input, M, OWN)
    assert engine_input == {"prompt_token_ids": [5, 6], "prompt": "ab", GAP: Gap((M, 7, M))}


def test_where_a_suffix_was_asked_for_what_follows_the_mask_is_no_canvas():
    engine_input = {"prompt_token_ids": [5, M, 7, 8]}
    cut_prompt(engine_input, M, MASK, inserts=True)
    assert engine_input == {"prompt_token_ids": [5], GAP: Gap(None, (7, 8))}


def test_a_mask_at_the_very_start_is_refused():
    with pytest.raises(ParameterError, match="at least one token before the first mask"):
        cut_prompt({"prompt_token_ids": [M, 5]}, M, MASK)


# What they make of the parameters.


def test_the_canvas_goes_into_a_copy_of_the_parameters():
    shared = SamplingParams(extra_args={"sampler": "ar"})
    mine = with_canvas(shared, Gap((M, 7)), None)
    other = with_canvas(shared, Gap((M, M, 7)), None)
    assert mine.extra_args == {"sampler": "ar", "diffusion_seed_canvas": (M, 7)}
    assert (mine.max_tokens, other.max_tokens) == (2, 3)
    assert (shared.max_tokens, shared.extra_args) == (16, {"sampler": "ar"})


def test_a_suffix_leaves_the_length_to_max_tokens():
    params = with_canvas(SamplingParams(max_tokens=5), Gap(None, (7, 8)), 5)
    assert (params.max_tokens, params.extra_args) == (5, {"suffix_token_ids": (7, 8)})


def test_parameters_of_a_request_without_a_canvas_are_left_as_they_are():
    params = SamplingParams(max_tokens=5, extra_args={"sampler": "ar", "suffix_token_ids": [7]})
    assert with_canvas(params, None, 5) is params


def test_parameters_that_are_none_are_no_canvas_and_clash_with_no_gap():
    nothing = SamplingParams(extra_args={"diffusion_seed_canvas": None, "diffusion_pinned": None})
    assert with_canvas(nothing, None, None) is nothing
    assert with_canvas(nothing, Gap((M, 7)), None).extra_args == {"diffusion_seed_canvas": (M, 7)}


def test_a_seed_gives_the_canvas_its_length_unless_the_request_gives_another():
    params = SamplingParams(extra_args={"diffusion_seed_canvas": [M, 7, M]})
    assert with_canvas(params, None, None).max_tokens == 3
    assert with_canvas(params, None, 3).max_tokens == 3
    with pytest.raises(ParameterError, match="max_tokens=4: the canvas has 3 tokens; give 3, or leave it out"):
        with_canvas(params, None, 4)


@pytest.mark.parametrize("gap", [Gap((M, 7)), Gap(None, (7,))])
@pytest.mark.parametrize("name", ["diffusion_seed_canvas", "diffusion_pinned", "suffix_token_ids"])
def test_masks_in_the_prompt_and_the_same_said_in_parameters_do_not_mix(gap, name):
    params = SamplingParams(extra_args={name: [7]})
    if gap.canvas is None and name != "suffix_token_ids":  # a suffix behind a canvas with text
        assert with_canvas(params, gap, None).extra_args == {name: [7], "suffix_token_ids": (7,)}
    else:
        with pytest.raises(ParameterError, match=name):
            with_canvas(params, gap, None)


def test_more_tokens_at_least_than_the_canvas_has_are_refused():
    with pytest.raises(ParameterError, match="min_tokens=4: the canvas has 2 tokens"):
        with_canvas(SamplingParams(min_tokens=4), Gap((M, 7)), None)


def test_offline_vllms_default_of_max_tokens_counts_as_not_given():
    assert [Asked.of(SamplingParams(max_tokens=size)).own_canvas for size in (16, None, 5)] == [None, None, 5]


# Checks.


def record(seed=None, canvas_length=None, stop_ids=(), **knobs):
    if seed is not None:
        knobs["diffusion_seed_canvas"] = seed
    length = canvas_length or len(seed or [M])
    return parse_params(knobs, defaults={}, temperature=0, canvas_length=length, stop_ids=stop_ids)


def check(params, stop=()):
    check_infill(params, stop, M, len(VOCAB))


GOOD = {
    "nothing stands": record(canvas_length=8),
    "text and masks": record([7, M, 8]),
    "tokens that are not pinned are filled": record([7, 8, 9], diffusion_pinned=[1]),
    "nothing pinned": record([7, 8, 9], diffusion_pinned=[]),
    "a suffix": record(canvas_length=8, suffix_token_ids=[7, 8]),
    "a stop token behind all other text": record([7, M, STOP, M], stop_ids=(STOP,)),
}
BAD = {
    "a stop token before all masks": (record([STOP, M, M], stop_ids=(STOP,)), "would end the text before place 1"),
    "a stop token in text before all masks": (record([7, STOP, M], stop_ids=(STOP,)), "before place 2"),
    "a token outside the vocabulary": (record([M, 999]), "diffusion_seed_canvas=999: outside the vocabulary"),
    "a suffix outside the vocabulary": (record(suffix_token_ids=[999]), "suffix_token_ids=999"),
    "a mask in the suffix": (record(suffix_token_ids=[7, M]), f"suffix_token_ids={M}"),
    "another length": (record([M, 7], canvas_length=3), "max_tokens=3: the canvas has 2 tokens"),
    "places of no canvas": (record(diffusion_pinned=[0]), r"diffusion_pinned=\[0\]"),
    "a place outside the canvas": (record([7, M], diffusion_pinned=[0, 2]), "diffusion_pinned=2: outside the canvas"),
    "a pinned mask": (record([7, M], diffusion_pinned=[1]), "diffusion_pinned=1: .* holds the mask token there"),
    "nothing to fill": (record([7, 8]), "nothing is left to fill"),
    "everything pinned": (record([7, 8], diffusion_pinned=[0, 1]), "nothing is left to fill"),
    "a stop token before other text": (record([M, STOP, 7], stop_ids=(STOP,)), f"token {STOP} at place 1.*ignore_eos"),
}


@pytest.mark.parametrize("what", GOOD)
def test_a_canvas_that_can_be_filled_is_let_in(what):
    check(GOOD[what])


@pytest.mark.parametrize("what", BAD)
def test_a_canvas_that_cannot_be_filled_is_refused_by_name(what):
    params, message = BAD[what]
    with pytest.raises(ParameterError, match=message):
        check(params)


def test_stop_strings_are_refused_where_they_could_cut_text_that_stands():
    check(record(canvas_length=8, suffix_token_ids=[7]), ["x"])
    check(record([7, 8], diffusion_pinned=[]), ["x"])
    with pytest.raises(ParameterError, match="stop="):
        check(record([M, 7]), ["x"])


@given(st.lists(st.sampled_from([M, 7, 8, STOP]), min_size=1, max_size=6), st.none() | st.sets(st.integers(0, 5)))
def test_of_a_canvas_let_in_no_text_that_stands_can_be_lost(seed, pinned):
    params = record(seed, stop_ids=(STOP,), **({} if pinned is None else {"diffusion_pinned": sorted(pinned)}))
    try:
        check(params)
    except ParameterError:
        return
    canvas = initial_canvas(params, M)
    end = canvas.index(STOP) + 1 if STOP in canvas else len(canvas)
    assert {*canvas[end:]} <= {M}
    assert M in canvas
    stands = [place for place in range(len(seed)) if seed[place] != M] if pinned is None else sorted(pinned)
    assert [canvas[place] for place in stands] == [seed[place] for place in stands]


# In front of an engine: admission and rendering.


@pytest.fixture(scope="module")
def served(checkpoint):
    return config(checkpoint)


def test_prompt_canvas_and_suffix_must_fit_the_models_length(served):
    params = SamplingParams(max_tokens=16, extra_args={"suffix_token_ids": [7] * 12})
    check_request(params, [5] * 100, served)
    with pytest.raises(ValueError, match=r"max_tokens=16: prompt .101 tokens. \+ canvas \+ suffix .12 tokens.*most 15"):
        check_request(params, [5] * 101, served)


def test_bad_canvases_are_refused_with_the_request(served):
    with pytest.raises(ValueError, match="diffusion_pinned=7"):
        check_request(
            SamplingParams(max_tokens=2, extra_args={"diffusion_seed_canvas": [M, 5], "diffusion_pinned": [7]}),
            [5],
            served,
        )
    with pytest.raises(ValueError, match="stop="):
        check_request(SamplingParams(max_tokens=2, stop="x", extra_args={"diffusion_seed_canvas": [M, 5]}), [5], served)


def test_a_canvas_longer_than_the_servers_limit_is_refused(checkpoint):
    limited = config(checkpoint, override_generation_config={"max_new_tokens": 8})
    check_server_limit(8, limited)
    with pytest.raises(ValueError, match="max_tokens=9: this server's limit is 8"):
        check_server_limit(9, limited)
