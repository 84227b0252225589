"""Guidance in the library and in parameters: logits of a sequence and its guide, joined as the definition says."""

import pytest
import torch
from engines import MASK_ID
from transformers import AutoTokenizer

from vllm_infogain import InfoGainSampler, ParameterError
from vllm_infogain.reference import oracle
from vllm_infogain.reference.llada import LLaDA
from vllm_infogain.request.guidance import with_negative_prompt
from vllm_infogain.request.params import SAMPLER_DEFAULTS, SAMPLERS, DecodingParams
from vllm_infogain.sampling.guidance import combine

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [5, 6, 7]]


@pytest.fixture(scope="module")
def llada(checkpoint):
    return LLaDA.from_checkpoint(checkpoint)


@pytest.mark.parametrize("other", [None, (9, 8, 7, 6)])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_guided_batch_equals_the_oracle_prompt_by_prompt(llada, sampler: str, other: tuple[int, ...] | None):
    knobs = {"sampler": sampler, "tokens_per_step": 2, "block_length": 8, "guidance_scale": 1.5}
    given = {} if other is None else {"guidance_prompt_ids": [*other]}
    results = InfoGainSampler(llada, max_sequences=5).sample(PROMPTS, 12, seed=3, ignore_eos=True, **knobs, **given)
    knobs |= SAMPLER_DEFAULTS.get(sampler, {})
    params = DecodingParams(**knobs, guidance_prompt_ids=other, temperature=0.0, seed=3, canvas_length=12)
    for prompt, result in zip(PROMPTS, results, strict=True):
        expected = oracle.decode(llada, prompt, params, MASK_ID)
        assert result.tokens == expected.tokens
        for step, plain in zip(result.report.trajectory, expected.steps, strict=True):
            assert step.objective == pytest.approx(plain.objective, abs=1e-4)
            assert step.entropies == pytest.approx(plain.entropies, abs=1e-4)


def test_logits_are_those_of_the_sequence_and_less_those_of_its_guide(llada):
    """Said once more without anything of ours: what the oracle itself is held to."""
    prompt, other, scale = [5, 6, 7], [9, 8], 2.5
    knobs = {"sampler": "entropy", "guidance_scale": scale, "guidance_prompt_ids": other}
    (result,) = InfoGainSampler(llada).sample(prompt, 5, ignore_eos=True, **knobs)
    canvas = [MASK_ID] * 5
    for step in result.report.trajectory:
        own, guide = (llada(torch.tensor([[*ids, *canvas]]))[0, len(ids) :].double() for ids in (prompt, other))
        p = ((1 + scale) * own - scale * guide).softmax(-1)
        entropy = -(p * p.log()).sum(-1)
        (place,) = step.positions
        assert entropy[place].item() == pytest.approx(step.entropies[0], abs=1e-4)
        assert place == min((at for at in range(5) if canvas[at] == MASK_ID), key=lambda at: entropy[at])
        (canvas[place],) = step.tokens
    assert result.tokens == canvas


def test_a_scale_of_0_and_a_guide_of_the_prompt_itself_change_nothing(llada):
    plain, off, same = (
        InfoGainSampler(llada).sample(PROMPTS[0], 9, seed=1, temperature=1.0, ignore_eos=True, **knobs)[0]
        for knobs in ({}, {"guidance_scale": 0}, {"guidance_scale": 9, "guidance_prompt_ids": PROMPTS[0]})
    )
    assert plain.tokens == off.tokens == same.tokens
    assert (off.report.rows, same.report.rows) == (plain.report.rows, 2 * plain.report.rows)


def test_rows_of_guides_are_counted(llada):
    knobs = {"bypass_threshold": 1.0, "suffix_token_ids": [7, 7], "guidance_scale": 1}
    for other in (None, [9, 8, 7, 6, 5]):
        (result,) = InfoGainSampler(llada).sample([5, 6, 7], 6, ignore_eos=True, guidance_prompt_ids=other, **knobs)
        report, both = result.report, (3 + 6 + 2) + (len(other or [5, 6, 7]) + 6 + 2)
        sequences = 1 + report.candidates  # the first state
        assert report.rows == sequences * both
        assert report.candidate_rows == report.candidates * both
        assert report.canvas_positions == sequences * 2 * 6


def test_a_negative_prompt_is_its_token_ids(checkpoint, llada):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    sampler, knobs = InfoGainSampler(llada, tokenizer), {"guidance_scale": 2, "ignore_eos": True}
    (text,) = sampler.sample(PROMPTS[1], 9, negative_prompt="judge 1+2=3", **knobs)
    (ids,) = sampler.sample(PROMPTS[1], 9, guidance_prompt_ids=tokenizer.encode("judge 1+2=3"), **knobs)
    (none,) = sampler.sample(PROMPTS[1], 9, **knobs)
    assert text.tokens == ids.tokens != none.tokens


@pytest.mark.parametrize(
    ("knobs", "name"),
    [
        ({"guidance_scale": -0.5}, "guidance_scale=-0.5"),
        ({"guidance_scale": 1, "guidance_prompt_ids": [5, 10**6]}, "guidance_prompt_ids=1000000: outside"),
        ({"guidance_scale": 1, "guidance_prompt_ids": [5] * 124}, r"max_new_tokens=5: .*\(124 tokens\)"),
        ({"guidance_scale": 1, "guidance_prompt_ids": [5], "negative_prompt": "a"}, "negative_prompt='a': .*same"),
        ({"guidance_scale": 1, "negative_prompt": ["a"]}, "negative_prompt=.*give a text"),
        ({"negative_prompt": "a"}, "negative_prompt='a': nothing is guided"),
        ({"guidance_prompt_ids": [5]}, "guidance_prompt_ids=.*nothing is guided"),
    ],
)
def test_what_guides_nothing_or_cannot_be_read_is_refused_by_name(checkpoint, llada, knobs, name):
    with pytest.raises(ParameterError, match=name):
        InfoGainSampler(llada, AutoTokenizer.from_pretrained(checkpoint)).sample([5], 5, **knobs)


def test_a_negative_prompt_without_a_tokenizer_or_tokens_is_refused(llada):
    with pytest.raises(ParameterError, match=r"negative_prompt='a': .*no tokenizer"):
        InfoGainSampler(llada).sample([5], 5, guidance_scale=1, negative_prompt="a")
    with pytest.raises(ParameterError, match=r"negative_prompt='': .*no tokens"):
        with_negative_prompt({"negative_prompt": ""}, {"guidance_scale": 1}, lambda text: [])


def test_hidden_states_are_joined_in_fp32():
    torch.manual_seed(0)
    own, guide = (torch.randn(64, 32).bfloat16() for _ in range(2))
    joined = combine(own, guide, torch.full((64, 1), 3.5))
    assert joined.dtype == torch.float32
    torch.testing.assert_close(joined, 4.5 * own.float() - 3.5 * guide.float())
