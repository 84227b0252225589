"""Masks in a prompt's text, in a chat's last message, and OpenAI's `suffix`: all become mask tokens of the prompt.

Why: vLLM renders text to token ids before anyone else sees it. How a mask is written, and that a tokenizer must append
    nothing to a text whose end is the canvas's, is known only there; and for `suffix` it asks its renderer.
How: wrap
      - `BaseRenderer._tokenize_singleton_prompt` and its async twin: token ids with masks are not truncated.
      - `BaseRenderer._tokenize_prompt`: `<|mask|>` and `<|mask:12|>` become the model's mask token, once or twelve
        times, and what the tokenizer appends behind the text is left off.
      - `HfRenderer.render_messages` and its async twin: a last message of the assistant with masks is continued, as by
        `continue_final_message`. Masks anywhere else in a chat are refused: the template's text follows them.
      - `BaseRenderer.render_completion_suffix`: prompt, one mask, suffix.
    All behind a prompt's first mask becomes the canvas, in `admission_check`. Engines not ours are left alone.
Upstream: none.
Remove when: vLLM renders infilling requests of diffusion models.
"""

from dataclasses import replace

from vllm_infogain.patches import wrap_once


def apply() -> None:
    from vllm_infogain.engine import compat

    for seam in ("_tokenize_singleton_prompt", "_tokenize_singleton_prompt_async"):
        wrap_once(compat.BaseRenderer, seam, _truncate_no_canvas)
    wrap_once(compat.BaseRenderer, "_tokenize_prompt", _tokenize_with_masks)
    wrap_once(compat.BaseRenderer, "render_completion_suffix", _suffix_behind_a_mask)
    wrap_once(compat.HfRenderer, "render_messages", _continue_last_message)
    wrap_once(compat.HfRenderer, "render_messages_async", _continue_last_message_async)


def _truncate_no_canvas(tokenize):
    def wrapper(self, prompt, params):
        from vllm_infogain import marks
        from vllm_infogain.admission import refusing
        from vllm_infogain.plugin import is_active

        if is_active(self.config) and _mask_id(self) in (prompt.get("prompt_token_ids") or ()):
            with refusing():
                marks.check_whole(params.truncate_prompt_tokens)
        return tokenize(self, prompt, params)  # of the async twin, what is to be awaited

    return wrapper


def _tokenize_with_masks(tokenize_prompt):
    def wrapper(self, prompt, params):
        from vllm_infogain import marks
        from vllm_infogain.admission import refusing

        mask_text = _mask_text(self)
        if mask_text is None or not marks.has_masks(prompt["prompt"], mask_text):
            return tokenize_prompt(self, prompt, params)
        with refusing():
            marks.check_whole(params.truncate_prompt_tokens)
            text = marks.expand_marks(prompt["prompt"], mask_text, self.model_config.max_model_len)
            appended = _appended_tokens(self, mask_text, params.add_special_tokens)
            # Without a limit: vLLM's tokenizers stop at one, and the check of the length, which follows, would not see
            # a text that is too long once what was appended is left off.
            tokens = tokenize_prompt(self, {**prompt, "prompt": text}, replace(params, max_total_tokens=None))
            for name in ("prompt_token_ids", "prompt_token_offsets"):
                if name in tokens:
                    tokens[name] = tokens[name][: len(tokens[name]) - appended]
            tokenizer = self.get_tokenizer()
            if tokenizer.unk_token_id != tokenizer.eos_token_id:  # where they are one, nothing is unknown
                marks.check_spelt(tokens["prompt_token_ids"], _mask_id(self), tokenizer.unk_token_id)
            return tokens

    return wrapper


def _suffix_behind_a_mask(render_completion_suffix):
    def wrapper(self, prompt, suffix):
        from vllm_infogain import marks
        from vllm_infogain.admission import refusing

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
    from vllm_infogain.plugin import is_active

    if renderer.tokenizer is None or not is_active(renderer.config):
        return None
    return renderer.tokenizer.convert_ids_to_tokens([_mask_id(renderer)])[0] or "<|mask|>"


def _mask_id(renderer) -> int:
    return renderer.model_config.hf_config.mask_token_id


def _appended_tokens(renderer, mask_text: str, add_special_tokens: bool) -> int:
    """How many tokens the tokenizer appends to a text."""
    from vllm_infogain.values import ParameterError

    ids = renderer.get_tokenizer()(mask_text, add_special_tokens=add_special_tokens)["input_ids"]
    if _mask_id(renderer) not in ids:
        raise ParameterError("prompt", "masks in text", "this model's tokenizer has no mask token; give token ids")
    return len(ids) - 1 - ids.index(_mask_id(renderer))


def _last_of_assistant(messages):
    last = messages[-1] if messages else None
    return last if isinstance(last, dict) and last.get("role") == "assistant" else None


def _with_masks(renderer, messages, params):
    """Messages and ChatParams with the masks of a last assistant message as mask tokens, to be continued."""
    from vllm_infogain import marks
    from vllm_infogain.admission import refusing

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
    from vllm_infogain import marks
    from vllm_infogain.admission import refusing

    mask_text, last = _mask_text(renderer), _last_of_assistant(messages)
    if mask_text is not None and "prompt" in prompt:
        own = marks.message_text(last).count(mask_text) if last else 0
        with refusing():
            marks.check_chat(prompt["prompt"], own, mask_text)
