"""The samplers as a library: any Hugging Face model, the same tokens as the engine and the oracle, no vLLM."""

import subprocess
import sys
import textwrap

import pytest
import torch
from engines import MASK_ID, Job, running
from transformers import AutoTokenizer, BertConfig, BertForMaskedLM, Qwen2Config, Qwen2ForCausalLM
from waiting import PATIENCE

from vllm_infogain import InfoGainSampler, ParameterError, block_causal, shifted
from vllm_infogain.reference import oracle
from vllm_infogain.request.params import SAMPLER_DEFAULTS, SAMPLERS, DecodingParams

PROMPTS = [[5, 6, 7], [8, 9, 10, 11, 12], [5, 6, 7]]


@pytest.fixture(scope="module")
def llada(checkpoint):
    from vllm_infogain.reference.llada import LLaDA

    return LLaDA.from_checkpoint(checkpoint)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_batch_of_prompts_equals_the_oracle_prompt_by_prompt(llada, sampler: str):
    knobs = {"sampler": sampler, "tokens_per_step": 2, "block_length": 8}
    results = InfoGainSampler(llada, max_sequences=5).sample(
        PROMPTS, 12, temperature=1.0, seed=3, ignore_eos=True, **knobs
    )
    knobs |= SAMPLER_DEFAULTS.get(sampler, {})
    params = DecodingParams(**knobs, temperature=1.0, seed=3, canvas_length=12)
    for prompt, result in zip(PROMPTS, results, strict=True):
        assert result.tokens == oracle.decode(llada, prompt, params, MASK_ID).tokens
    assert results[0].tokens == results[2].tokens


def test_the_trajectory_holds_every_step_and_the_j_of_every_candidate(llada):
    (result,) = InfoGainSampler(llada).sample(torch.tensor(PROMPTS[0]), 8, bypass_threshold=1.0, ignore_eos=True)
    steps = result.report.trajectory
    assert sorted(position for step in steps for position in step.positions) == list(range(8))
    assert [step.tokens[0] for step in sorted(steps, key=lambda step: step.positions)] == result.tokens
    assert sum(len(step.objective) for step in steps) == result.report.candidates > 8
    assert all(step.objective[step.chosen] == max(step.objective) for step in steps if step.objective)


def bert() -> BertForMaskedLM:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=30,
        initializer_range=0.5,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
    )
    return BertForMaskedLM(config).eval()


def qwen() -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=30, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=48, attn_implementation="eager",
    )  # fmt: skip
    return Qwen2ForCausalLM(config).eval()


def test_a_model_of_the_transformers_library_runs_as_it_is():
    model = bert()
    (result,) = InfoGainSampler(model, mask_token_id=29).sample(PROMPTS[1], 6, temperature=1.0, seed=1)
    params = DecodingParams(temperature=1.0, seed=1, canvas_length=6)
    assert result.tokens == oracle.decode(lambda ids: model(ids).logits, PROMPTS[1], params, 29).tokens


def test_shifted_logits_read_position_i_off_row_i_minus_1():
    ids = torch.tensor([[3, 4, 5, 6]])
    model = qwen()
    rows, plain = shifted(model, ids), model(ids).logits
    torch.testing.assert_close(rows[:, 1:], plain[:, :-1])
    torch.testing.assert_close(rows[:, 0], plain[:, 0])


def test_block_causal_attention_sees_its_own_block_and_those_before():
    model, adapter = qwen(), block_causal(4)
    ids = torch.arange(1, 13).unsqueeze(0)

    def changes(position: int) -> list[int]:
        other = ids.clone()
        other[0, position] = 20
        difference = (adapter(model, ids) - adapter(model, other)).abs().amax(-1)[0]
        return [row for row, value in enumerate(difference.tolist()) if value > 1e-6]

    assert changes(5) == [4, 5, 6, 7, 8, 9, 10, 11]
    assert changes(11) == [8, 9, 10, 11]


def test_absolute_blocks_end_at_multiples_of_their_length():
    sampler = InfoGainSampler(qwen(), mask_token_id=29, adapter=block_causal(4))
    (result,) = sampler.sample([3, 4, 5, 6, 7, 8], 9, block_length=4, absolute_blocks=True, ignore_eos=True)
    blocks = [(6 + position) // 4 for step in result.report.trajectory for position in step.positions]
    assert blocks == [1, 1, 2, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"input_ids": [[]]}, "input_ids"),
        ({"input_ids": [MASK_ID, 5]}, "input_ids"),
        ({"input_ids": [5, 10**6]}, "input_ids"),
        ({"input_ids": "text"}, "input_ids"),
        ({"input_ids": {"text": [5]}}, r"input_ids=\['text'\]"),
        ({"input_ids": [5] * 120, "max_new_tokens": 9}, "max_new_tokens=9: .*120.* max_sequence_length of 128"),
        ({"suffix_token_ids": [5] * 124}, r"max_new_tokens=4: .*\(128\).* max_sequence_length of 128"),
        ({"max_new_tokens": 0}, "max_tokens"),
        ({"sampler": "x"}, "sampler"),
        ({"unknown": 1}, "unknown"),
        ({"temperature": -1}, "temperature"),
        ({"cache": "dual"}, "cache"),
        ({"diffusion_seed_canvas": [MASK_ID, MASK_ID, 5]}, "max_tokens"),
        ({"diffusion_seed_canvas": [MASK_ID, 5, 5, 10**6]}, "diffusion_seed_canvas"),
        ({"diffusion_seed_canvas": [MASK_ID, 5, 5, 5], "diffusion_pinned": [4]}, "diffusion_pinned"),
        ({"suffix_token_ids": [MASK_ID]}, "suffix_token_ids"),
    ],
)
def test_bad_input_is_refused_by_name(llada, arguments, name):
    with pytest.raises(ParameterError, match=name):
        InfoGainSampler(llada).sample(**({"input_ids": [5], "max_new_tokens": 4} | arguments))


@pytest.mark.parametrize("tensors", [None, "pt"])
@pytest.mark.parametrize("texts", ["multiply", ["multiply 6*7", "judge"]])
def test_what_a_tokenizer_returns_is_taken_without_its_padding(checkpoint, llada, tensors, texts):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    sampler = InfoGainSampler(llada, tokenizer)
    several = texts if isinstance(texts, list) else [texts]
    plain = sampler.sample([tokenizer.encode(text) for text in several], 8, ignore_eos=True)
    encoding = tokenizer(texts, return_tensors=tensors, padding=tensors is not None)
    assert [result.tokens for result in sampler.sample(encoding, 8, ignore_eos=True)] == [
        result.tokens for result in plain
    ]


def test_a_model_in_training_is_evaluated_and_left_as_it_was():
    model, knobs = bert(), {"temperature": 1.0, "seed": 1}
    plain = InfoGainSampler(model, mask_token_id=29).sample([5, 6, 7], 8, **knobs)
    model.train()
    model.bert.embeddings.eval()
    before = [module.training for module in model.modules()]
    for _ in range(2):
        (result,) = InfoGainSampler(model, mask_token_id=29).sample([5, 6, 7], 8, **knobs)
        assert result.tokens == plain[0].tokens
    assert [module.training for module in model.modules()] == before


def test_a_mask_token_that_is_an_end_token_is_refused(llada):
    with pytest.raises(ParameterError, match=f"mask_token_id={MASK_ID}: is an end token"):
        InfoGainSampler(llada, eos_token_id=[7, MASK_ID])


def test_another_mask_token_than_the_tokenizers_is_named(checkpoint, llada):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with pytest.warns(UserWarning, match=f"mask_token_id=9 is not the tokenizer's mask token, {MASK_ID}"):
        InfoGainSampler(llada, tokenizer, mask_token_id=9)


def test_text_in_the_canvas_stands_and_a_suffix_is_read(llada):
    seed = [MASK_ID, MASK_ID, 7, MASK_ID, 9, MASK_ID]
    knobs = {"diffusion_seed_canvas": seed, "suffix_token_ids": [11, 12]}
    (result,) = InfoGainSampler(llada).sample([5, 6], 6, ignore_eos=True, **knobs)
    params = DecodingParams(
        diffusion_seed_canvas=tuple(seed), suffix_token_ids=(11, 12), temperature=0, canvas_length=6
    )
    assert result.tokens == oracle.decode(llada, [5, 6], params, MASK_ID).tokens
    assert (result.tokens[2], result.tokens[4]) == (7, 9)


def test_a_text_ends_with_the_eos_token_that_was_given(llada):
    (whole,) = InfoGainSampler(llada).sample([5, 6], 8, ignore_eos=True)
    eos = whole.tokens[3]
    (result,) = InfoGainSampler(llada, eos_token_id=[eos]).sample([5, 6], 8)
    assert result.tokens == whole.tokens[: whole.tokens.index(eos) + 1]


def test_a_forward_of_no_sequences_is_refused(llada):
    with pytest.raises(ParameterError, match="max_sequences"):
        InfoGainSampler(llada, max_sequences=0)


def test_a_model_without_a_mask_token_is_refused():
    with pytest.raises(ParameterError, match="mask_token_id"):
        InfoGainSampler(bert())


@pytest.mark.engine
def test_the_library_and_the_engine_give_the_same_tokens(checkpoint, llada):
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    with running(checkpoint) as engine:
        for sampler in SAMPLERS:
            job = Job("the same", {"sampler": sampler, "tokens_per_step": 2}, 14, 1.0, seed=21)
            output = engine.run([job])[0]
            (result,) = InfoGainSampler(llada, tokenizer).sample(
                output.prompt_token_ids, 14, temperature=1.0, seed=21, ignore_eos=True, **job.knobs
            )
            assert result.tokens == list(output.outputs[0].token_ids), sampler
            assert result.text == output.outputs[0].text


def test_it_runs_where_vllm_is_not_installed(checkpoint):
    script = """
        import sys

        class NoVllm:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "vllm":
                    raise ModuleNotFoundError(name)

        sys.meta_path.insert(0, NoVllm())
        from transformers import AutoTokenizer
        from vllm_infogain import InfoGainSampler
        from vllm_infogain.embedded import model_path
        from vllm_infogain.reference.llada import LLaDA

        tokenizer = AutoTokenizer.from_pretrained(model_path())
        sampler = InfoGainSampler(LLaDA.from_checkpoint(model_path()), tokenizer)
        (result,) = sampler.sample(tokenizer.encode("multiply 6*7"), max_new_tokens=12)
        assert "vllm" not in sys.modules
        print(result.text)
    """
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True, timeout=PATIENCE
    ).stdout
    assert output.strip() == "6*7=0101010"
