"""Pictures without a server, by the library: what the sampler writes, decoded, in the order of the prompts."""

import pytest
import torch
from checkpoints import write_llada, write_magvit, write_mmada
from transformers import AutoTokenizer

from vllm_infogain import InfoGainSampler, ParameterError
from vllm_infogain.images import generate
from vllm_infogain.images.magvit import pixels
from vllm_infogain.request.seeds import child_seed

KNOBS = {"sampler": "entropy", "steps": 4, "schedule": "linear"}


@pytest.fixture(scope="module")
def sampler(tmp_path_factory) -> InfoGainSampler:
    path = tmp_path_factory.mktemp("mmada")
    model = write_mmada(path)
    return InfoGainSampler(model, AutoTokenizer.from_pretrained(path))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return write_magvit(tmp_path_factory.mktemp("magvit"))


@torch.no_grad()
def test_pictures_are_those_of_the_samplers_codes_prompt_by_prompt(sampler, tokenizer):
    prompts = ["a red circle", "two"]
    pictures = generate(sampler, prompts, n=2, seed=3, tokenizer=tokenizer, **KNOBS)
    tokens = sampler.image_tokens
    ids = [tokens.prompt(sampler.tokenizer.encode(text, add_special_tokens=False)) for text in prompts]
    due = [
        sampler.sample(prompt, tokens.codes, seed=child_seed(3, "sample", index), temperature=0.4, image=True, **KNOBS)[
            0
        ]
        for prompt in ids
        for index in range(2)
    ]
    assert len(pictures) == 4
    assert len({picture.tobytes() for picture in pictures}) == 4
    for picture, sample in zip(pictures, due, strict=True):
        codes = [token - tokens.image_token_offset for token in sample.tokens]
        assert picture.info["codes"] == codes
        assert picture.info["infogain"]["cumulative_entropy"] == sample.report.cumulative_entropy
        assert picture.tobytes() == pixels(tokenizer.decode(torch.tensor(codes).reshape(1, 4, 4))).numpy().tobytes()


def test_one_text_gives_one_picture_and_a_seed_gives_it_again(sampler, tokenizer):
    (first,), (again,) = (generate(sampler, "a cat", seed=1, tokenizer=tokenizer, **KNOBS) for _ in range(2))
    assert first.size == (16, 16)
    assert first.info["codes"] == again.info["codes"]
    (other,) = generate(
        sampler, "a cat", seed=1, tokenizer=tokenizer, guidance_scale=3, negative_prompt="dogs", **KNOBS
    )
    assert other.info["codes"] != first.info["codes"]
    assert other.info["infogain"]["rows"] > 1.5 * first.info["infogain"]["rows"]


def test_what_gives_no_pictures_is_refused(sampler, tokenizer, tmp_path):
    with pytest.raises(ParameterError, match="tokenizer"):
        generate(sampler, "a cat")
    text_only = InfoGainSampler(write_llada(tmp_path), AutoTokenizer.from_pretrained(tmp_path))
    with pytest.raises(ParameterError, match="text only"):
        generate(text_only, "a cat", tokenizer=tokenizer)
    with pytest.raises(ParameterError, match="at most 510"):
        generate(sampler, "a" * 600, tokenizer=tokenizer)
