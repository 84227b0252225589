"""Our renderer: masks in texts, suffixes and chats become mask tokens; no special token comes twice."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from checkpoints import write_llada
from test_admission import config
from vllm.engine.arg_utils import EngineArgs
from vllm.renderers import ChatParams, renderer_from_config
from vllm.renderers.inputs.preprocess import parse_model_prompt

from vllm_infogain.compat import ResponsesRequest, VLLMValidationError
from vllm_infogain.embedded.tokenizer import ANSWER, BOS, MASK, VOCAB, encode

M = VOCAB[MASK]
OWN = "<|mdm_mask|>"  # how LLaDA's tokenizer writes the mask


@pytest.fixture(scope="module", params=[MASK, OWN])
def renderer(request, tmp_path_factory):
    """vLLM's, of a model whose tokenizer writes the mask token as our mark or in its own way."""
    path = tmp_path_factory.mktemp("model")
    write_llada(path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (path / name).write_text((path / name).read_text().replace(MASK, request.param))
    renderer = renderer_from_config(config(path))
    yield renderer
    renderer.shutdown()


def test_where_the_tokenizer_has_no_mask_token_masks_are_given_as_ids(tmp_path):
    write_llada(tmp_path)
    renderer = renderer_from_config(
        config(tmp_path, hf_overrides={"mask_token_id": len(VOCAB), "vocab_size": len(VOCAB) + 1})
    )
    assert rendered(renderer, "a<|x|>", add_special_tokens=False) == encode("a<|x|>")
    with pytest.raises(ValueError, match="this model's tokenizer has no mask token; give token ids"):
        rendered(renderer, "a<|mask:2|>")
    renderer.shutdown()


def rendered(renderer, text: str, **changes):
    params = replace(renderer.default_cmpl_tok_params, **changes)
    (engine_input,) = renderer.render_cmpl([parse_model_prompt(renderer.model_config, text)], params)
    return engine_input["prompt_token_ids"]


def test_nothing_is_appended_to_a_text_with_masks(renderer):
    assert rendered(renderer, "a") == [VOCAB[BOS], *encode("a"), VOCAB[ANSWER]]
    assert rendered(renderer, f"a{ANSWER}b<|mask:2|>c") == [
        VOCAB[BOS], *encode("a"), VOCAB[ANSWER], *encode("b"), M, M, *encode("c"),
    ]  # fmt: skip


def test_no_special_token_comes_twice(renderer):
    templated = [VOCAB[BOS], *encode("a"), VOCAB[ANSWER]]
    assert rendered(renderer, f"{BOS}a{ANSWER}") == templated == chat(renderer, ("user", "a"))
    assert rendered(renderer, f"a{ANSWER}") == templated
    assert rendered(renderer, f"a{ANSWER}b") == [*templated, *encode("b")]
    assert rendered(renderer, f"{BOS}a{ANSWER}b<|mask|>") == [*templated, *encode("b"), M]
    assert rendered(renderer, f"{BOS}a") == templated[:-1], "who writes special tokens writes all of them"


def test_a_response_leaves_special_tokens_to_the_template_as_a_chat_does(renderer):
    asked = ResponsesRequest(input="a").build_tok_params(renderer.model_config)
    assert not asked.add_special_tokens
    other = SimpleNamespace(max_model_len=64, architectures=["LlamaForCausalLM"])
    assert ResponsesRequest(input="a").build_tok_params(other).add_special_tokens


def test_a_text_with_special_tokens_is_not_cut_to_the_models_length(renderer):
    length = renderer.model_config.max_model_len
    for begin in (BOS, ""):
        assert len(rendered(renderer, begin + "a" * (length - 2) + ANSWER)) == length
        with pytest.raises(VLLMValidationError, match="maximum context length"):
            rendered(renderer, begin + "a" * (length - 1) + ANSWER)


@pytest.mark.parametrize("text", ["a<|mask7|>b", "<|MASKS|>"])
def test_what_is_almost_a_mask_is_refused_by_its_text(renderer, text):
    with pytest.raises(ValueError, match=r"no mask; give <\|mask\|>"):
        rendered(renderer, text)


def test_a_mask_of_other_models_is_served_as_text_with_a_warning(renderer, caplog):
    text = "what is [MASK]?"
    with caplog.at_level("WARNING", "vllm.infogain"):
        assert rendered(renderer, text) == [VOCAB[BOS], *encode(text), VOCAB[ANSWER]]
    assert "[MASK] in a prompt is text" in caplog.text


def test_the_models_own_mask_token_in_the_text_is_a_mask_too(renderer):
    own = renderer.tokenizer.convert_ids_to_tokens(M)
    assert rendered(renderer, f"a{own}b", add_special_tokens=False) == [*encode("a"), M, *encode("b")]


def test_a_text_with_masks_is_never_cut_to_the_models_length(renderer):
    length = renderer.model_config.max_model_len
    assert len(rendered(renderer, "a" * (length - 2) + "<|mask|>")) == length
    with pytest.raises(VLLMValidationError, match="maximum context length"):
        rendered(renderer, "a" * (length - 1) + "<|mask|>")
    with pytest.raises(ValueError, match="truncate_prompt_tokens=5"):
        rendered(renderer, "aaaaaaaa<|mask|>", truncate_prompt_tokens=5)


def test_text_behind_a_mask_that_the_tokenizer_cannot_spell_is_refused(renderer):
    rendered(renderer, "é<|mask|>e")
    with pytest.raises(ValueError, match="does not know"):
        rendered(renderer, "e<|mask|>é")


def test_a_suffix_is_rendered_behind_one_mask_and_an_empty_one_not_at_all(renderer):
    assert renderer.render_completion_suffix("a", "") == "a"
    assert rendered(renderer, renderer.render_completion_suffix("a", "b")) == [
        VOCAB[BOS], *encode("a"), M, *encode("b"),
    ]  # fmt: skip
    for prompt, suffix in (("a<|mask|>", "b"), ("a", "<|mask:3|>")):
        with pytest.raises(ValueError, match="suffix="):
            renderer.render_completion_suffix(prompt, suffix)


def test_the_renderer_of_an_engine_that_is_not_ours_takes_marks_as_text(checkpoint):
    others = EngineArgs(model=str(checkpoint), dtype="float32").create_engine_config()
    others.scheduler_config.scheduler_cls = "vllm.v1.core.sched.scheduler.Scheduler"
    others.model_config.tokenizer_mode = "auto"
    renderer = renderer_from_config(others)
    text = "a<|mask:2|>"
    assert rendered(renderer, text) == [VOCAB[BOS], *encode(text), VOCAB[ANSWER]]
    assert chat(renderer, ("user", text)) == [VOCAB[BOS], *encode(text), VOCAB[ANSWER]]
    assert renderer.render_completion_suffix("a", "b") is None
    renderer.shutdown()


# Most families' form of chat: every turn is closed by the template.
TURNS = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def chat(renderer, *messages: tuple[str, object], template: str | None = None):
    kwargs = {"add_generation_prompt": True, "tokenize": False}
    params = ChatParams(chat_template=template, chat_template_kwargs=kwargs)
    conversation = [{"role": role, "content": content} for role, content in messages]
    _, (engine_input,) = renderer.render_chat([conversation], params)
    return engine_input["prompt_token_ids"]


COMPLETED = [VOCAB[BOS], *encode("q"), VOCAB[ANSWER], *encode("a"), M, M, *encode("b")]


@pytest.mark.parametrize("content", ["a<|mask:2|>b", [{"type": "text", "text": "a<|mask:2|>b"}]], ids=["text", "parts"])
def test_a_last_message_of_the_assistant_with_masks_is_completed_in_place(renderer, content):
    assert chat(renderer, ("user", "q"), ("assistant", content)) == COMPLETED


def test_the_templates_text_behind_the_last_message_is_left_off(renderer):
    messages = ("user", "q"), ("assistant", "x"), ("user", "r"), ("assistant", "a<|mask:2|>b ")
    turns = [*encode("<user>q</><assistant>x</><user>r</><assistant>a"), M, M, *encode("b ")]
    assert chat(renderer, *messages, template=TURNS) == turns


@pytest.mark.parametrize(
    "messages",
    [
        [("user", "a<|mask:2|>")],
        [("user", f"a{MASK}")],
        [("user", "<|mask|>"), ("assistant", "a<|mask|>")],
    ],
    ids=["a user's", "a user's single one", "a user's and the assistant's"],
)
def test_masks_outside_the_last_message_of_the_assistant_are_refused(renderer, messages):
    with pytest.raises(ValueError, match="messages='a mask outside the last message'"):
        chat(renderer, *messages)


def test_a_chat_without_masks_is_rendered_as_ever(renderer):
    assert chat(renderer, ("user", "q")) == [VOCAB[BOS], *encode("q"), VOCAB[ANSWER]]
    with pytest.raises(VLLMValidationError, match="role user"):
        chat(renderer, ("user", "q"), ("assistant", "a"))
