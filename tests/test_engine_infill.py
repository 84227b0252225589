"""Infilling through the real engine, offline."""

import pytest
from engines import running
from vllm import SamplingParams

from vllm_infogain.embedded.tokenizer import ANSWER, BOS, MASK, VOCAB, encode

pytestmark = pytest.mark.engine

M = VOCAB[MASK]
GIVEN = f"multiply 6*7{ANSWER}6*7="
IDS = [VOCAB[BOS], *encode("multiply 6*7"), VOCAB[ANSWER], *encode("6*7=")]


@pytest.fixture(scope="module")
def llm():
    with running(None) as engine:
        yield engine.llm


def texts(outputs) -> list[str]:
    return [sample.text for output in outputs for sample in output.outputs]


def test_prompts_that_share_their_parameters_have_canvases_of_their_own(llm):
    shared = SamplingParams(temperature=0, extra_args={"sampler": "entropy"})
    prompts = [f"{GIVEN}<|mask:7|>", {"prompt_token_ids": [*IDS, M, *encode("101010")]}, "multiply 6*7"]
    outputs = llm.generate(prompts, shared, use_tqdm=False)
    assert texts(outputs) == ["0101010", "0101010", "6*7=0101010"]
    assert outputs[0].prompt == GIVEN
    assert [output.prompt_token_ids for output in outputs[:2]] == [IDS, IDS]
    assert (shared.max_tokens, shared.extra_args) == (16, {"sampler": "entropy"})
    assert prompts[1] == {"prompt_token_ids": [*IDS, M, *encode("101010")]}, "the caller's own is left as it is"


def test_all_samples_of_a_prompt_get_its_canvas(llm):
    params = SamplingParams(n=3, seed=1, temperature=2)
    samples = texts(llm.generate("a<|mask:6|>bcd<|mask:2|>", params, use_tqdm=False))
    assert len(set(samples)) == 3


def test_a_chat_is_completed_in_place_without_being_told_to(llm):
    messages = [{"role": "user", "content": "multiply 6*7"}, {"role": "assistant", "content": "6*7=<|mask:7|>"}]
    assert texts(llm.chat(messages, SamplingParams(temperature=0), use_tqdm=False)) == ["0101010"]


def test_a_templated_text_is_generated_from_as_its_chat(llm):
    params = SamplingParams(temperature=0, max_tokens=12)
    messages = [{"role": "user", "content": "multiply 3*3"}]
    text = llm.get_tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    outputs = [
        *llm.generate([text, "multiply 3*3"], params, use_tqdm=False),
        *llm.chat(messages, params, use_tqdm=False),
    ]
    assert texts(outputs) == ["3*3=0001001"] * 3
    assert len({tuple(output.prompt_token_ids) for output in outputs}) == 1


def test_a_prompt_that_vllm_has_not_rendered_yet_is_completed_too(llm):
    room = 64 - len(IDS)
    for index, prompt in enumerate((f"{GIVEN}<|mask:{room}|>", {"prompt_token_ids": [*IDS, *[M] * room]})):
        llm.llm_engine.add_request(str(index), prompt, SamplingParams(temperature=0, ignore_eos=True))
    outputs = []
    while llm.llm_engine.has_unfinished_requests():
        outputs += [output for output in llm.llm_engine.step() if output.finished]
    assert [output.prompt_token_ids for output in outputs] == [IDS, IDS]
    assert [len(output.outputs[0].token_ids) for output in outputs] == [room, room]


def test_a_canvas_that_cannot_be_filled_is_refused_before_anything_runs(llm):
    for prompt, message in (("a<|mask:0|>", "<.mask:0.>"), ([M, 5], "before the first mask")):
        with pytest.raises(ValueError, match=message):
            llm.generate(prompt if isinstance(prompt, str) else {"prompt_token_ids": prompt}, use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
