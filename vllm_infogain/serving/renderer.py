"""The renderer of our engines: vLLM's, and masks in text, in a chat's last message and before a `suffix` become mask
tokens of the prompt. No special token comes twice. A chat's picture becomes tokens in front of its text.

vLLM makes it for `tokenizer_mode="infogain"`, which engines of our models get. Only who renders a text knows how a mask
is written, and that nothing may be appended to a text whose end is the canvas's. Everything from a prompt's first mask
on becomes the canvas later, at admission.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from vllm_infogain.compat import ChatParams, HfRenderer, TokenizeParams, init_logger
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.serving import mask_syntax
from vllm_infogain.serving.admission import refusing
from vllm_infogain.serving.chat_pictures import URL, PictureReader, without_picture

logger = init_logger("vllm.infogain")

PICTURE = "infogain_picture"  # key of a rendered chat that holds the token ids of its picture


class InfoGainRenderer(HfRenderer):
    engine: Any = None  # vLLM's, whose workers encode pictures; set by patches/renderer_engine.py

    @property
    def mask_id(self) -> int:
        return self.model_config.hf_config.mask_token_id

    @property
    def mask_text(self) -> str | None:
        """How the tokenizer writes the mask token, `<|mask|>` if it has none; None if there is no tokenizer."""
        if self.tokenizer is None:
            return None
        return self.tokenizer.convert_ids_to_tokens([self.mask_id])[0] or "<|mask|>"

    # Texts and token ids.

    def _tokenize_singleton_prompt(self, prompt: Any, params: TokenizeParams) -> Any:
        self._check_whole(prompt, params)
        return super()._tokenize_singleton_prompt(prompt, params)

    async def _tokenize_singleton_prompt_async(self, prompt: Any, params: TokenizeParams) -> Any:
        self._check_whole(prompt, params)
        return await super()._tokenize_singleton_prompt_async(prompt, params)

    def _tokenize_prompt(self, prompt: Any, params: TokenizeParams) -> Any:
        """A text's tokens, behind those of its picture."""
        tokens = self._tokenize_text(prompt, params)
        if PICTURE in prompt:
            tokens["prompt_token_ids"] = [*prompt[PICTURE], *tokens["prompt_token_ids"]]
        return tokens

    def _tokenize_text(self, prompt: Any, params: TokenizeParams) -> Any:
        """Masks become mask tokens, and nothing is appended behind them. A text that begins as the tokenizer would
        begin it is taken as it is; to one that holds what it would append, that is not appended."""
        text, mask_text = prompt["prompt"], self.mask_text
        if mask_text is None:
            return super()._tokenize_prompt(prompt, params)
        self._check_typed(text, mask_text)
        before, behind = self._added_tokens(params)
        if before and text.startswith(self._spelt(before)):
            params, behind = replace(params, add_special_tokens=False), []
        with_masks = mask_syntax.has_masks(text, mask_text)
        if with_masks:
            prompt = prompt | {"prompt": self._expanded(text, params, mask_text)}
        elif not behind or self._spelt(behind) not in text:
            return super()._tokenize_prompt(prompt, params)
        # Without a limit: vLLM's tokenizers stop at one, and the check of the length, which follows, would not see a
        # text that is too long once what was appended is left off.
        tokens: Any = super()._tokenize_prompt(prompt, replace(params, max_total_tokens=None))
        for name in ("prompt_token_ids", "prompt_token_offsets"):
            if name in tokens:
                tokens[name] = tokens[name][: len(tokens[name]) - len(behind)]
        if with_masks:
            self._check_masks_spelt(tokens["prompt_token_ids"])
        return tokens

    def render_completion_suffix(self, prompt: str, suffix: str) -> str | None:
        """Prompt, one mask, suffix."""
        mask_text = self.mask_text
        if mask_text is None:
            return super().render_completion_suffix(prompt, suffix)
        if not suffix:
            return prompt
        with refusing():
            mask_syntax.check_without_masks(prompt + suffix, mask_text)
        return prompt + mask_text + suffix

    # Chats: a last message of the assistant with masks is continued, as by `continue_final_message`.

    def render_messages(self, messages: list, params: ChatParams) -> tuple[list, Any]:
        messages, source = self._without_picture(messages)
        picture = None
        if source is not None:
            with refusing():
                picture = self._picture_reader.read(source, _loading(params))
        messages, params = self._with_masks(messages, params)
        conversation, prompt = super().render_messages(messages, params)
        self._check_chat(messages, prompt)
        return conversation, _with_picture(prompt, picture)

    async def render_messages_async(self, messages: list, params: ChatParams) -> tuple[list, Any]:
        messages, source = self._without_picture(messages)
        picture = None
        if source is not None:
            with refusing():
                picture = await self._picture_reader.read_async(source, _loading(params))
        messages, params = self._with_masks(messages, params)
        conversation, prompt = await super().render_messages_async(messages, params)
        self._check_chat(messages, prompt)
        return conversation, _with_picture(prompt, picture)

    # What they share.

    def _without_picture(self, messages: list) -> tuple[list, Any]:
        """Messages of text, and where the chat's picture is; None if it has none."""
        with refusing():
            return without_picture(messages)

    @cached_property
    def _picture_reader(self) -> PictureReader:
        tokens = ImageTokens.of(self.model_config.hf_config)
        if tokens is None or not tokens.are_read:
            raise ParameterError(URL, "a picture", "this model reads text only; leave it out")
        if self.engine is None:
            raise ParameterError(URL, "a picture", "here is no engine to encode it; send it to a server that has one")
        return PictureReader(self.engine, self.model_config, tokens)

    def _check_whole(self, prompt: Mapping[str, Any], params: TokenizeParams) -> None:
        """Refuse to truncate token ids with masks, and whatever follows a picture."""
        with refusing():
            if self.mask_id in (prompt.get("prompt_token_ids") or ()):
                mask_syntax.check_whole(params.truncate_prompt_tokens)
            if PICTURE in prompt and params.truncate_prompt_tokens is not None:
                remedy = "would cut the picture of a chat; leave it out"
                raise ParameterError("truncate_prompt_tokens", params.truncate_prompt_tokens, remedy)

    def _added_tokens(self, params: TokenizeParams) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and behind a text."""
        if not params.add_special_tokens:
            return [], []
        tokenizer = self.get_tokenizer()
        bare, ids = tokenizer("a", add_special_tokens=False)["input_ids"], tokenizer("a")["input_ids"]
        first = next(start for start in range(len(ids)) if ids[start : start + len(bare)] == bare)
        return ids[:first], ids[first + len(bare) :]

    def _spelt(self, ids: list[int]) -> str:
        return "".join(self.get_tokenizer().convert_ids_to_tokens(ids))

    def _expanded(self, text: str, params: TokenizeParams, mask_text: str) -> str:
        """The text with the model's mask token wherever a mask is written."""
        with refusing():
            mask_syntax.check_whole(params.truncate_prompt_tokens)
            if self.mask_id not in self.get_tokenizer()(mask_text)["input_ids"]:
                remedy = "this model's tokenizer has no mask token; give token ids"
                raise ParameterError("prompt", "masks in text", remedy)
            return mask_syntax.expand_masks(text, mask_text, self.model_config.max_model_len)

    def _check_typed(self, text: str, mask_text: str) -> None:
        with refusing():
            if not text:
                raise ParameterError("prompt", text, "give at least one character")
            other = mask_syntax.check_typed(text, mask_text, self.get_tokenizer().get_added_vocab().__contains__)
        if other:
            logger.warning("%s in a prompt is text; masks are <|mask|> and <|mask:N|>", other)

    def _check_masks_spelt(self, ids: Sequence[int]) -> None:
        tokenizer = self.get_tokenizer()
        if tokenizer.unk_token_id != tokenizer.eos_token_id:  # where they are one, nothing is unknown
            with refusing():
                mask_syntax.check_spelt(ids, self.mask_id, tokenizer.unk_token_id)

    def _with_masks(self, messages: list, params: ChatParams) -> tuple[list, ChatParams]:
        """Messages and parameters with the masks of a last assistant message as mask tokens, to be continued."""
        mask_text, last = self.mask_text, _last_of_assistant(messages)
        if mask_text is None or last is None:
            return messages, params
        if last.get("content") is not None and not isinstance(last["content"], str):
            last = {**last, "content": list(last["content"])}  # pydantic's iterators can be read once
        if mask_syntax.has_masks(mask_syntax.message_text(last), mask_text):
            with refusing():
                last = mask_syntax.expand_message(last, mask_text, self.model_config.max_model_len)
            flags = {"add_generation_prompt": False, "continue_final_message": True}
            params = replace(params, chat_template_kwargs={**params.chat_template_kwargs, **flags})
        return [*messages[:-1], last], params

    def _check_chat(self, messages: list, prompt: Mapping[str, Any]) -> None:
        """Refuse a rendered chat unless all of its masks are the last assistant message's: the template's text follows
        the others."""
        mask_text, last = self.mask_text, _last_of_assistant(messages)
        if mask_text is not None and "prompt" in prompt:
            own = mask_syntax.message_text(last).count(mask_text) if last else 0
            with refusing():
                mask_syntax.check_chat(prompt["prompt"], own, mask_text)


def _loading(params: ChatParams) -> Mapping[str, Any]:
    """Arguments of vLLM's loader of pictures that a request gives."""
    return (params.media_io_kwargs or {}).get("image") or {}


def _with_picture(prompt: Any, picture: list[int] | None) -> Any:
    """A rendered chat, whose tokens follow its picture's."""
    if picture is None:
        return prompt
    if "prompt_token_ids" in prompt:  # made by the template
        prompt = prompt | {"prompt_token_ids": [*picture, *prompt["prompt_token_ids"]]}
    return prompt | {PICTURE: picture}


def _last_of_assistant(messages: list) -> dict[str, Any] | None:
    last = messages[-1] if messages else None
    return last if isinstance(last, dict) and last.get("role") == "assistant" else None
