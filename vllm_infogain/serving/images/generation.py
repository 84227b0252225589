"""A request for pictures: to the engine as one for codes, and back as files."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from vllm_infogain.compat import (
    RequestOutputKind,
    RetryableRequestError,
    SamplingParams,
    VLLMNotFoundError,
    create_error_response,
)
from vllm_infogain.images.answers import answer_of
from vllm_infogain.images.canvas import TEMPERATURE, UNKNOWN, PartialPicture
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.from_vllm import settings_of
from vllm_infogain.request.guidance import check_is_guided
from vllm_infogain.request.image_tokens import ImageTokens
from vllm_infogain.serving.admission import refusing
from vllm_infogain.serving.chat_pictures import NO_TOKENIZER
from vllm_infogain.serving.images.encoding import codes_to_redraw, encoded, json_with_file, pixels_of
from vllm_infogain.serving.images.fields import PictureRequest, check_size


@dataclass(frozen=True)
class Asked:
    """What the engine is asked for."""

    prompt: list[int]
    params: SamplingParams
    codes: list[int]  # that the picture begins with; UNKNOWN where it is to be drawn
    event: str  # how a stream's events begin


async def picture_server(state: Any) -> "PictureServer":
    """Of a server's app; the engine is asked once.

    Raises:
        NotImplementedError (HTTP 501): the engine makes no pictures.
    """
    found = getattr(state, "infogain_pictures", None)
    if found is None:
        engine = state.engine_client
        tokens = ImageTokens.of(engine.vllm_config.model_config.hf_config)
        if tokens is None:
            raise NotImplementedError("this server's model writes text only: it has no codes of pictures")
        side = answer_of(await engine.collective_rpc("picture_side"))
        if side is None:
            raise NotImplementedError(NO_TOKENIZER)
        found = state.infogain_pictures = PictureServer(engine, state.openai_serving_models, tokens, side)
    return found


class PictureServer:
    """Pictures of one engine.

    Args:
        engine: vLLM's client of it.
        models: vLLM's list of the names that it is served by.
        tokens: how the model writes pictures.
        side: pixels.
    """

    def __init__(self, engine: Any, models: Any, tokens: ImageTokens, side: int) -> None:
        self.engine, self.models, self.tokens, self.side = engine, models, tokens, side
        config = engine.vllm_config.model_config
        self.mask_id: int = config.hf_config.mask_token_id
        self.most_text = tokens.most_text(config.max_model_len)

    async def asked(self, request: PictureRequest, image: bytes | None = None, mask: bytes | None = None) -> Asked:
        """What to ask the engine for.

        Args:
            request: checked by itself; its model and size are checked here.
            image: the file of a picture to edit.
            mask: the file of a picture that is transparent where that is to be drawn anew; None: `image` is.

        Raises:
            RequestError: names the field, its value and the remedy.
            VLLMNotFoundError (HTTP 404): the model is not served here.
        """
        if request.model and not self.models.is_base_model(request.model):
            raise VLLMNotFoundError(f"The model `{request.model}` does not exist.")
        with refusing():
            check_size(request.size, self.side)
            codes = [UNKNOWN] * self.tokens.codes
            if image is not None:
                codes = await self._codes_to_keep(image, mask)
            prompt = await self._prompt("prompt", request.prompt)
            knobs = request.knobs | {"image": True}
            if request.shows_steps:
                knobs["stream_mode"] = "canvas"
            if request.negative_prompt is not None:
                check_is_guided(request.negative_prompt, knobs, settings_of(self.engine.vllm_config)[1])
                knobs["guidance_prompt_ids"] = await self._prompt("negative_prompt", request.negative_prompt)
            if image is not None:
                knobs["diffusion_seed_canvas"] = [
                    self.mask_id if code == UNKNOWN else self.tokens.image_token_offset + code for code in codes
                ]
            params = SamplingParams(
                n=request.n,
                max_tokens=self.tokens.codes,
                detokenize=False,  # codes lie beyond the tokenizer's end
                output_kind=RequestOutputKind.CUMULATIVE if request.stream else RequestOutputKind.FINAL_ONLY,
                extra_args=knobs,
                **{"temperature": TEMPERATURE, **request.drawing},
            )
        return Asked(prompt, params, codes, "image_generation" if image is None else "image_edit")

    def outputs(self, asked: Asked, request_id: str | None) -> AsyncGenerator[Any, None]:
        """The engine's outputs. A request that cannot be served is refused now, not when they are read."""
        request_id = f"img-{request_id or uuid.uuid4().hex}"
        return self.engine.generate({"prompt_token_ids": asked.prompt}, asked.params, request_id)

    async def answer(self, request: PictureRequest, asked: Asked, outputs: AsyncGenerator[Any, None]) -> bytes:
        """The body of a response that is no stream, JSON."""
        created, data = int(time.time()), []
        async with aclosing(outputs):
            *_, result = [result async for result in outputs]  # the last has every sample
        for output in sorted(result.outputs, key=lambda output: output.index):
            file = await self._file(self._codes(output), request.output_format)
            data.append(json_with_file({"infogain": output.infogain.report}, file))
        common = {"background": "opaque", "output_format": request.output_format, "size": self.size}
        fields = {"created": created, **common, "usage": self.usage(asked, request.n)}
        return json.dumps(fields).encode()[:-1] + b',"data":[' + b",".join(data) + b"]}"

    async def events(
        self, request: PictureRequest, asked: Asked, outputs: AsyncGenerator[Any, None]
    ) -> AsyncGenerator[str, None]:
        """The lines of a stream: partial pictures while codes are written, then the whole one."""
        created = int(time.time())
        common = {
            "created_at": created, "size": self.size, "quality": "auto", "background": "opaque",
            "output_format": request.output_format,
        }  # fmt: skip
        picture, sent = PartialPicture(asked.codes, self.tokens.image_token_offset, request.partial_images), 0
        try:
            async with aclosing(outputs):
                async for result in outputs:
                    (output,) = result.outputs
                    steps = output.infogain.take_steps() if request.shows_steps and hasattr(output, "infogain") else []
                    for taken, codes in picture.write(steps):
                        file = await self._file(codes, request.output_format)
                        place = {"partial_image_index": sent, "infogain_step": taken}
                        yield _event(f"{asked.event}.partial_image", {**place, **common}, file)
                        sent += 1
            file = await self._file(self._codes(output), request.output_format)
            whole = {**common, "usage": self.usage(asked, 1), "infogain": output.infogain.report}
            yield _event(f"{asked.event}.completed", whole, file)
        except Exception as error:  # the response has begun: its status is sent
            fields = {"type": "error", **create_error_response(error).model_dump()}
            yield f"event: error\ndata: {json.dumps(fields)}\n\n"

    @property
    def size(self) -> str:
        return f"{self.side}x{self.side}"

    def usage(self, asked: Asked, pictures: int) -> dict[str, Any]:
        """Tokens, as OpenAI counts them: text of the prompt, codes kept of a picture, codes drawn."""
        text, kept = len(asked.prompt), sum(code != UNKNOWN for code in asked.codes)
        drawn = pictures * self.tokens.codes
        return {
            "input_tokens": text + kept,
            "input_tokens_details": {"text_tokens": text, "image_tokens": kept},
            "output_tokens": drawn,
            "output_tokens_details": {"text_tokens": 0, "image_tokens": drawn},
            "total_tokens": text + kept + drawn,
        }

    async def _prompt(self, name: str, text: str) -> list[int]:
        """Token ids of a prompt for a picture; vLLM's renderer makes tokens beside the event loop."""
        ids: list[int] = []
        if text:
            renderer = self.engine.renderer
            plain = renderer.default_cmpl_tok_params.with_kwargs(add_special_tokens=False)
            (rendered,) = await renderer.render_cmpl_async([{"prompt": text}], plain)
            ids = rendered["prompt_token_ids"]
        if self.mask_id in ids:
            raise ParameterError(name, text, "holds the mask token; a picture is filled in by /v1/images/edits")
        return self.tokens.prompt(ids, self.most_text, name)

    async def _codes_to_keep(self, image: bytes, mask: bytes | None) -> list[int]:
        pixels = await asyncio.to_thread(pixels_of, "image", image, self.side)
        marked = ("image", image) if mask is None else ("mask", mask)
        redrawn = await asyncio.to_thread(codes_to_redraw, *marked, self.side, self.tokens.image_codes_per_side)
        codes = answer_of(await self.engine.collective_rpc("encode_images", args=(pixels,)))
        return [UNKNOWN if is_redrawn else code for code, is_redrawn in zip(codes, redrawn, strict=True)]

    def _codes(self, output: Any) -> list[int]:
        """Of a finished sample.

        Raises:
            RetryableRequestError (HTTP 503): it was ended before its picture was whole.
        """
        if len(output.token_ids) != self.tokens.codes:
            raise RetryableRequestError("the request took longer than the server's request_timeout allows")
        return [token - self.tokens.image_token_offset for token in output.token_ids]

    async def _file(self, codes: list[int], output_format: str) -> bytes:
        rgb = answer_of(await self.engine.collective_rpc("decode_images", args=([codes],)))
        return await asyncio.to_thread(encoded, rgb, self.side, output_format)


def _event(kind: str, fields: dict[str, Any], file: bytes) -> str:
    return f"event: {kind}\ndata: {json_with_file({'type': kind, **fields}, file).decode()}\n\n"
