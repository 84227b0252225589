"""Requests for pictures: what they are filled in with, what is refused, and which columns of a head are computed."""

import re
from pathlib import Path
from types import SimpleNamespace

import jinja2
import pytest
import torch
from checkpoints import write_mmada
from engines import MASK_ID
from transformers import AutoTokenizer
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.model_executor.layers import vocab_parallel_embedding
from vllm.sampling_params import StructuredOutputsParams
from vllm_infogain.model_executors import llada
from vllm_infogain.model_executors.llada_config import LLaDAConfig
from vllm_infogain.model_executors.mmada_config import MMaDAConfig

from vllm_infogain import InfoGainSampler, ParameterError, engine_defaults, plugin
from vllm_infogain.compat import cached_tokenizer_from_config
from vllm_infogain.embedded.tokenizer import VOCAB
from vllm_infogain.request.from_vllm import decoding_params
from vllm_infogain.request.guidance import with_negative_prompt
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.request.params import parse_params
from vllm_infogain.serving.admission import check_request
from vllm_infogain.serving.infilling import with_canvas

TOKENS = ImageTokens(16, 101, 4, bos_token_id=0, eos_token_id=1, soi_token_id=97, eoi_token_id=98, t2i_token_id=99)
PROMPT = [99, 0, 40, 41, 1, 97]
SOI = VOCAB["~"]  # of `write_mmada`


def parsed(defaults: dict | None = None, **knobs):
    return parse_params(
        {"image": True, **knobs}, defaults=defaults or {}, temperature=0.0, canvas_length=16, image_tokens=TOKENS,
        stop_ids=(1,), eos_ids=(1,),
    )  # fmt: skip


def test_a_request_for_a_picture_has_the_papers_values_where_it_gives_none():
    params = parsed()
    assert (params.columns, params.suffix_token_ids, params.block_length) == ((101, 117), (98,), 0)
    assert (params.schedule, params.steps, params.num_candidates) == ("maskgit", 50, 8)
    assert (params.bypass_threshold, params.tau_position) == (1.0, 0.4)
    assert parsed(sampler="confidence").tau_position == 0.0
    assert (params.stop_ids, params.eos_ids) == ((), ()), "no code ends anything"
    assert params.guidance_prompt_ids is None
    assert parsed(guidance_scale=3.5).guidance_prompt_ids == (99, 0, 1, 97)
    assert parsed(guidance_scale=3.5, guidance_prompt_ids=[5]).guidance_prompt_ids == (5,)


def test_the_requests_own_values_come_before_the_servers_and_those_before_the_papers():
    server = {"steps": 16, "bypass_threshold": 0.9, "block_length": 8, "eos_last": True, "eos_penalty": 2}
    params = parsed(server)
    assert (params.schedule, params.steps, params.bypass_threshold) == ("maskgit", 16, 0.9)
    assert (params.block_length, params.eos_last, params.eos_penalty) == (0, False, 0.0), "blocks and ends are a text's"
    own = parsed(server, steps=5, schedule="linear", block_length=4)
    assert (own.schedule, own.steps, own.block_length) == ("linear", 5, 4)
    assert parsed(tokens_per_step=2).schedule == "fixed"


@pytest.mark.parametrize("wrapped", [[40, 41], [0, 40, 41], [0, 40, 41, 1]])
def test_a_prompt_has_its_text_between_bos_and_eos_once(wrapped):
    assert TOKENS.prompt(wrapped) == PROMPT
    assert TOKENS.prompt([]) == [99, 0, 1, 97]
    with pytest.raises(ParameterError, match="prompt='2 tokens': a text for a picture has at most 1"):
        TOKENS.prompt(wrapped, most=1)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("mmada")
    return path, write_mmada(path)


@pytest.fixture(scope="module")
def served(checkpoint):
    plugin.register()
    args = engine_defaults.engine_args() | {"dtype": "float32", "max_num_batched_tokens": 512}
    return EngineArgs(model=str(checkpoint[0]), **args).create_engine_config()


@pytest.fixture(scope="module")
def tokenizer(served):
    return cached_tokenizer_from_config(served.model_config)


def asked(image: bool = True, **fields) -> SamplingParams:
    extra = {"image": image, **fields.pop("extra_args", {})}
    return SamplingParams(**{"max_tokens": 16, "temperature": 0, "detokenize": False, **fields}, extra_args=extra)


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"max_tokens": 15}, "max_tokens=15: a picture of this model has 16 codes"),
        ({"allowed_token_ids": [101, 102]}, "allowed_token_ids="),
        ({"logit_bias": {101: 1.0}}, "logit_bias="),
        ({"structured_outputs": StructuredOutputsParams(regex="a*")}, "structured_outputs="),
        ({"structured_outputs": StructuredOutputsParams(choice=["a", "b"])}, "structured_outputs="),
        ({"structured_outputs": StructuredOutputsParams(json={"type": "string"})}, "structured_outputs="),
        ({"bad_words": ["ab"]}, "bad_words="),
        ({"bad_words": ["a"]}, "bad_words="),
        ({"presence_penalty": 1.0}, "presence_penalty="),
        ({"repetition_penalty": 1.2}, "repetition_penalty="),
        ({"prompt_logprobs": 1}, "prompt_logprobs="),
        ({"max_tokens": 17}, "max_tokens=17: a picture of this model has 16 codes"),
        ({"logprobs": 2, "logprob_token_ids": [101]}, "logprob_token_ids="),
        ({"stop_token_ids": [5, 105]}, r"stop_token_ids=\[105\]"),
        ({"stop": ["a"], "detokenize": True}, "stop="),
        ({"extra_args": {"suffix_token_ids": [5]}}, r"suffix_token_ids=\(5,\)"),
        ({"extra_args": {"eos_last": True}}, "eos_last=True"),
        ({"extra_args": {"eos_penalty": 1.0}}, "eos_penalty="),
        ({"extra_args": {"diffusion_seed_canvas": [MASK_ID] * 15}}, "max_tokens=16: the canvas has 15"),
        ({"extra_args": {"steps": 4, "schedule": "fixed"}}, "steps=4"),
        ({"extra_args": {"diffusion_seed_canvas": [*[MASK_ID] * 15, 40]}}, "diffusion_seed_canvas=40: no code"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_only_a_text_can_have_is_refused_by_name(served, tokenizer, fields, name):
    params = asked(**fields)
    params.update_from_tokenizer(tokenizer)  # as vLLM does before: words become token ids
    with pytest.raises(ValueError, match=name):
        check_request(params, [*PROMPT, SOI], served)


def test_what_a_picture_can_have_is_taken(served):
    check_request(asked(logprobs=2, stop_token_ids=[5], min_tokens=3), [*PROMPT, SOI], served)
    check_request(asked(extra_args={"diffusion_seed_canvas": [*[MASK_ID] * 15, 105]}), [*PROMPT, SOI], served)


def test_a_picture_follows_the_token_that_begins_it_behind_its_prompt_and_behind_its_guides(served, checkpoint):
    with pytest.raises(ValueError, match=f"prompt='token ids that end in 41': .*<\\|soi\\|>, here token {SOI}"):
        check_request(asked(), [5, 41], served)
    guided = {"guidance_scale": 1.0, "guidance_prompt_ids": [5, SOI]}
    check_request(asked(extra_args=guided), [5, SOI], served)
    with pytest.raises(ValueError, match="guidance_prompt_ids='token ids that end in 5'"):
        check_request(asked(extra_args=guided | {"guidance_prompt_ids": [SOI, 5]}), [5, SOI], served)
    with pytest.raises(ParameterError, match="input_ids='token ids that end in 41'"):
        InfoGainSampler(checkpoint[1]).sample([[5, SOI], [5, 41]], 16, image=True)


def test_a_pictures_negative_prompt_is_held_to_what_a_prompt_may_have_and_not_cut(checkpoint):
    def ids(length: int, longest: int | None = None) -> int:
        knobs = {"image": True, "guidance_scale": 1, "negative_prompt": "a" * length}
        made = with_negative_prompt(knobs, {}, lambda text: [40] * len(text), TOKENS, longest)
        return len(made["guidance_prompt_ids"])

    assert ids(510) == 514
    with pytest.raises(ParameterError, match="negative_prompt='511 tokens': a text for a picture has at most 510"):
        ids(511)
    assert ids(11, longest=32) == 15, "5 tokens around it, 16 codes"
    with pytest.raises(ParameterError, match="negative_prompt='12 tokens': a text for a picture has at most 11"):
        ids(12, longest=32)
    sampler = InfoGainSampler(checkpoint[1], AutoTokenizer.from_pretrained(checkpoint[0]))
    with pytest.raises(ParameterError, match=r"negative_prompt='\d+ tokens': a text for a picture has at most 107"):
        sampler.sample([5, SOI], 16, image=True, guidance_scale=1, negative_prompt="a" * 120)


def test_a_text_only_model_is_asked_for_no_picture():
    with pytest.raises(ParameterError, match="image=True: this model writes text only"):
        parse_params({"image": True}, defaults={}, temperature=0.0, canvas_length=16)


def test_a_text_of_an_image_model_may_not_be_of_codes_alone(served):
    with pytest.raises(ValueError, match="allowed_token_ids="):
        check_request(asked(False, allowed_token_ids=[101, 102]), PROMPT, served)
    check_request(asked(False, allowed_token_ids=[40, 102]), PROMPT, served)


def test_a_picture_has_as_many_codes_as_the_model_makes_where_the_request_names_none():
    filled = with_canvas(SamplingParams(extra_args={"image": True}), None, None, 64)
    assert (filled.max_tokens, filled.detokenize) == (64, False), "no text spells codes"
    assert with_canvas(SamplingParams(max_tokens=60, extra_args={"image": True}), None, 60, 64).max_tokens == 60
    text = SamplingParams(max_tokens=60)
    assert with_canvas(text, None, 60) is text


def test_the_engines_and_the_librarys_record_of_a_picture_are_one(served, checkpoint):
    params = decoding_params("", asked(), served)
    tokens = InfoGainSampler(checkpoint[1]).image_tokens
    assert tokens is not None
    assert params.columns == tokens.columns == (101, 117)


def test_a_released_config_needs_nothing_that_it_does_not_say():
    released = {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "codebook_size": 8192, "llm_vocab_size": 126464,
        "new_vocab_size": 134656, "vocab_size": 126464, "num_vq_tokens": 256, "d_model": 4096, "mask_token_id": 126336,
    }  # fmt: skip
    for config in (LLaDAConfig.from_dict(released), MMaDAConfig.from_dict(released | {"model_type": "mmada"})):
        assert (config.embedding_size, config.vocab_size) == (134656, 134541)
        tokens = ImageTokens.of(config)
        assert tokens == ImageTokens()
        assert (tokens.columns, tokens.codes) == ((126349, 134541), 1024)
    assert ImageTokens.of(LLaDAConfig.from_dict({"model_type": "llada", "d_model": 4096})) is None


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_the_columns_of_a_head_are_those_of_its_whole_product_on_any_number_of_ranks(monkeypatch, ranks: int):
    torch.manual_seed(0)
    weight, hidden = torch.randn(24, 8), torch.randn(5, 8)
    monkeypatch.setattr(
        vocab_parallel_embedding.UnquantizedEmbeddingMethod, "apply", lambda self, layer, x: x @ layer.weight.T
    )
    monkeypatch.setattr(llada, "tensor_model_parallel_all_reduce", lambda part: part)
    size = 24 // ranks
    for columns in ((9, 23), (0, 24), (16, 17)):
        parts = []
        for rank in range(ranks):
            shard = SimpleNamespace(org_vocab_start_index=rank * size, org_vocab_end_index=(rank + 1) * size)
            head = SimpleNamespace(weight=weight[rank * size : (rank + 1) * size], shard_indices=shard, tp_size=ranks)
            parts.append(llada.LLaDAModelLM.compute_logits_of(SimpleNamespace(lm_head=head), hidden, columns))
        whole = (hidden @ weight.T)[:, slice(*columns)]
        torch.testing.assert_close(torch.stack(parts).sum(0), whole)


def test_the_chat_template_that_is_written_down_ends_with_one_newline():
    page = (Path(llada.__file__).parent / "README.md").read_text()
    (template,) = re.findall(r"```jinja\n(.*?)\n```", page, re.DOTALL)
    messages = [{"role": "user", "content": " two\nlines \n"}, {"role": "assistant", "content": "yes"}]
    text = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(template)  # as transformers renders it
    assert text.render(messages=messages, add_generation_prompt=True) == (
        "<|startoftext|><|start_header_id|>user<|end_header_id|>\ntwo\nlines<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\nyes<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n"
    )
    assert text.render(messages=messages, add_generation_prompt=False).endswith("yes<|eot_id|>")
