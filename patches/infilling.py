"""Masks in a prompt's text, in a chat's last message, and OpenAI's `suffix`: all become mask tokens of the prompt.
And no special token comes twice.

Why: vLLM renders text to token ids before anyone else sees it. How a mask is written, and that a tokenizer must append
    nothing to a text whose end is the canvas's, is known only there; and for `suffix` it asks its renderer. A chat that
    was templated to text holds the special tokens that a tokenizer adds; `/v1/responses` tokenizes its own so.
How: wrap
      - `BaseRenderer._tokenize_singleton_prompt` and its async twin: token ids with masks are not truncated.
      - `BaseRenderer._tokenize_prompt`: `<|mask|>` and `<|mask:12|>` become the model's mask token, once or twelve
        times, and what the tokenizer appends behind the text is left off. A text that begins as the tokenizer would
        begin it is taken as it is; to one that holds what it would append, that is not appended.
        What is almost such a mask is refused.
      - `ResponsesRequest.build_tok_params`: the template adds the special tokens, as for `/v1/chat/completions`.
      - `HfRenderer.render_messages` and its async twin: a last message of the assistant with masks is continued, as by
        `continue_final_message`. Masks anywhere else in a chat are refused: the template's text follows them.
      - `BaseRenderer.render_completion_suffix`: prompt, one mask, suffix.
    All behind a prompt's first mask becomes the canvas, in `admission_check`. Engines not ours are left alone.
Upstream: none.
Remove when: vLLM renders infilling requests of diffusion models.
"""

import logging
from dataclasses import replace

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain import compat

    for seam in ("_tokenize_singleton_prompt", "_tokenize_singleton_prompt_async"):
        wrap_once(compat.BaseRenderer, seam, _truncate_no_canvas)
    wrap_once(compat.BaseRenderer, "_tokenize_prompt", _tokenize)
    wrap_once(compat.ResponsesRequest, "build_tok_params", _leave_special_tokens_to_the_template)
    wrap_once(compat.BaseRenderer, "render_completion_suffix", _suffix_behind_a_mask)
    wrap_once(compat.HfRenderer, "render_messages", _continue_last_message)
    wrap_once(compat.HfRenderer, "render_messages_async", _continue_last_message_async)


def _truncate_no_canvas(tokenize):
    def wrapper(self, prompt, params):
        from vllm_infogain.engine.identity import is_active
        from vllm_infogain.serving import mask_syntax as marks
        from vllm_infogain.serving.admission import refusing

        if is_active(self.config) and _mask_id(self) in (prompt.get("prompt_token_ids") or ()):
            with refusing():
                marks.check_whole(params.truncate_prompt_tokens)
        return tokenize(self, prompt, params)  # of the async twin, what is to be awaited

    return wrapper


def _tokenize(tokenize_prompt):
    def wrapper(self, prompt, params):
        from vllm_infogain.serving import mask_syntax as marks

        mask_text = _mask_text(self)
        if mask_text is None:
            return tokenize_prompt(self, prompt, params)
        _check_typed(self, prompt["prompt"], mask_text)
        before, behind = _added_tokens(self, params)
        if before and prompt["prompt"].startswith(_spelt(self, before)):
            params, behind = replace(params, add_special_tokens=False), []
        with_masks = marks.has_masks(prompt["prompt"], mask_text)
        if with_masks:
            prompt = _expanded(self, prompt, params, mask_text)
        elif not behind or _spelt(self, behind) not in prompt["prompt"]:
            return tokenize_prompt(self, prompt, params)
        # Without a limit: vLLM's tokenizers stop at one, and the check of the length, which follows, would not see a
        # text that is too long once what was appended is left off.
        tokens = tokenize_prompt(self, prompt, replace(params, max_total_tokens=None))
        for name in ("prompt_token_ids", "prompt_token_offsets"):
            if name in tokens:
                tokens[name] = tokens[name][: len(tokens[name]) - len(behind)]
        if with_masks:
            _check_masks_spelt(self, tokens["prompt_token_ids"])
        return tokens

    return wrapper


def _leave_special_tokens_to_the_template(build_tok_params):
    def wrapper(self, model_config):
        from vllm_infogain.model_executors import EXECUTORS

        params = build_tok_params(self, model_config)
        is_ours = not set(EXECUTORS).isdisjoint(model_config.architectures)
        return replace(params, add_special_tokens=False) if is_ours else params

    return wrapper


def _suffix_behind_a_mask(render_completion_suffix):
    def wrapper(self, prompt, suffix):
        from vllm_infogain.serving import mask_syntax as marks
        from vllm_infogain.serving.admission import refusing

        mask_text = _mask_text(self)
        if mask_text is None:
            return render_completion_suffix(self, prompt, suffix)
        if not suffix:
            return prompt
        with refusing():
            marks.check_without_masks(prompt + suffix, mask_text)
        return prompt + mask_text + suffix

    return wrapper


def _continue_last_message(render_messages):
    def wrapper(self, messages, params):
        messages, params = _with_masks(self, messages, params)
        conversation, prompt = render_messages(self, messages, params)
        _check_chat(self, messages, prompt)
        return conversation, prompt

    return wrapper


def _continue_last_message_async(render_messages):
    async def wrapper(self, messages, params):
        messages, params = _with_masks(self, messages, params)
        conversation, prompt = await render_messages(self, messages, params)
        _check_chat(self, messages, prompt)
        return conversation, prompt

    return wrapper


# What the wrappers share.


def _mask_text(renderer) -> str | None:
    """How the tokenizer writes the mask token, as our mark if it has none; None where the engine is not ours."""
    from vllm_infogain.engine.identity import is_active

    if renderer.tokenizer is None or not is_active(renderer.config):
        return None
    return renderer.tokenizer.convert_ids_to_tokens([_mask_id(renderer)])[0] or "<|mask|>"


def _mask_id(renderer) -> int:
    return renderer.model_config.hf_config.mask_token_id


def _added_tokens(renderer, params) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text."""
    if not params.add_special_tokens:
        return [], []
    tokenizer = renderer.get_tokenizer()
    bare, ids = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
    first = next(start for start in range(len(ids)) if ids[start : start + len(bare)] == bare)
    return ids[:first], ids[first + len(bare) :]


def _spelt(renderer, ids: list[int]) -> str:
    return "".join(renderer.tokenizer.convert_ids_to_tokens(ids))


def _expanded(renderer, prompt, params, mask_text: str):
    """A prompt whose text has the model's mask token for marks."""
    from vllm_infogain.request.fields import ParameterError
    from vllm_infogain.serving import mask_syntax as marks
    from vllm_infogain.serving.admission import refusing

    with refusing():
        marks.check_whole(params.truncate_prompt_tokens)
        if _mask_id(renderer) not in renderer.get_tokenizer()(mask_text)["input_ids"]:
            remedy = "this model's tokenizer has no mask token; give token ids"
            raise ParameterError("prompt", "masks in text", remedy)
        return prompt | {"prompt": marks.expand_marks(prompt["prompt"], mask_text, renderer.model_config.max_model_len)}


def _check_typed(renderer, text: str, mask_text: str) -> None:
    from vllm_infogain.request.fields import ParameterError
    from vllm_infogain.serving import mask_syntax as marks
    from vllm_infogain.serving.admission import refusing

    with refusing():
        if not text:
            raise ParameterError("prompt", text, "give at least one character")
        other = marks.check_typed(text, mask_text, lambda token: token in renderer.get_tokenizer().get_added_vocab())
    if other:
        logging.getLogger("vllm.infogain").warning("%s in a prompt is text; masks are <|mask|> and <|mask:N|>", other)


def _check_masks_spelt(renderer, ids: list[int]) -> None:
    from vllm_infogain.serving import mask_syntax as marks
    from vllm_infogain.serving.admission import refusing

    tokenizer = renderer.get_tokenizer()
    if tokenizer.unk_token_id != tokenizer.eos_token_id:  # where they are one, nothing is unknown
        with refusing():
            marks.check_spelt(ids, _mask_id(renderer), tokenizer.unk_token_id)


def _last_of_assistant(messages):
    last = messages[-1] if messages else None
    return last if isinstance(last, dict) and last.get("role") == "assistant" else None


def _with_masks(renderer, messages, params):
    """Messages and ChatParams with the masks of a last assistant message as mask tokens, to be continued."""
    from vllm_infogain.serving import mask_syntax as marks
    from vllm_infogain.serving.admission import refusing

    mask_text, last = _mask_text(renderer), _last_of_assistant(messages)
    if mask_text is None or last is None:
        return messages, params
    if last.get("content") is not None and not isinstance(last["content"], str):
        last = {**last, "content": list(last["content"])}  # pydantic's iterators can be read once
    if marks.has_masks(marks.message_text(last), mask_text):
        with refusing():
            last = marks.expand_message(last, mask_text, renderer.model_config.max_model_len)
        flags = {"add_generation_prompt": False, "continue_final_message": True}
        params = replace(params, chat_template_kwargs={**params.chat_template_kwargs, **flags})
    return [*messages[:-1], last], params


def _check_chat(renderer, messages, prompt) -> None:
    """Refuse a rendered chat unless all of its masks are the last assistant message's."""
    from vllm_infogain.serving import mask_syntax as marks
    from vllm_infogain.serving.admission import refusing

    mask_text, last = _mask_text(renderer), _last_of_assistant(messages)
    if mask_text is not None and "prompt" in prompt:
        own = marks.message_text(last).count(mask_text) if last else 0
        with refusing():
            marks.check_chat(prompt["prompt"], own, mask_text)
