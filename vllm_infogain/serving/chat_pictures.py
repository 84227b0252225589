"""The picture of a chat: taken out of its messages, fetched, and made token ids by the worker.

vLLM's own path for media ends in embeddings, which only its multimodal models have. Here a picture is tokens like any
others, so what comes behind the renderer knows nothing of it.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from PIL import Image

from vllm_infogain.compat import MEDIA_CONNECTOR_REGISTRY, ImageMediaIO, VLLMError, envs
from vllm_infogain.images.answers import answer_of
from vllm_infogain.images.reading import middle_square
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.image_tokens import ImageTokens

NO_TOKENIZER = (
    "this server has no tokenizer of pictures; start it with "
    '--additional-config \'{"infogain": {"image_tokenizer": FOLDER}}\''
)
# Of a message's part: the field that holds a picture, in chats and responses of OpenAI's, and in vLLM's offline chats.
URL, PILLOW = "image_url", "image_pil"
SHOWN_OF_VALUE = 40  # characters of a URL, in an error


def without_picture(messages: list[Any]) -> tuple[list[Any], Any]:
    """Messages of text, and the picture that one of them had: its URL, or Pillow's; None if there was none.

    Raises:
        ParameterError: there are several, or something else in a picture's place.
    """
    texts, found = [], []
    for message in messages:
        content = message.get("content") if isinstance(message, Mapping) else None
        if content is not None and not isinstance(content, str):
            parts = list(content)  # pydantic's iterators can be read once
            found += [part for part in parts if _is_picture(part)]
            message = {**message, "content": [part for part in parts if not _is_picture(part)]}
        texts.append(message)
    if len(found) > 1:
        remedy = "the model reads one in a chat, in front of all its messages; give one"
        raise ParameterError(URL, f"{len(found)} pictures", remedy)
    return texts, _source(found[0]) if found else None


def _is_picture(part: Any) -> bool:
    return isinstance(part, Mapping) and (part.get("type") == "input_image" or URL in part or PILLOW in part)


def _source(part: Mapping[str, Any]) -> Any:
    fields = part.get(URL)
    if not isinstance(fields, Mapping):
        fields = {"url": fields}
    detail = fields.get("detail") or part.get("detail") or "auto"
    if detail != "auto":
        raise ParameterError(
            "detail", detail, "a picture is read in the model's own size; give 'auto', or leave it out"
        )
    source = fields.get("url") or part.get(PILLOW)
    if not isinstance(source, str | Image.Image):
        raise ParameterError(URL, source, "give a picture's URL, such as data:image/png;base64,...")
    return source


class Squares(ImageMediaIO):
    """vLLM's way from a file to a picture, in a thread of vLLM's, and on to the pixels that are encoded."""

    def __init__(self, side: int, **loading: Any) -> None:
        super().__init__(**{"image_mode": None, **loading})
        self.side = side

    def load_bytes(self, data: bytes) -> bytes:  # type: ignore[override]
        return middle_square(super().load_bytes(data).media, self.side, URL)


@dataclass
class PictureReader:
    """Makes token ids of pictures. Owner: the renderer.

    Args:
        engine: vLLM's; a server's is asked by `read_async`, an `LLM`'s by `read`.
        model_config: vLLM's.
        tokens: how the model reads pictures.
        side: pixels of one, once an engine has been asked.
    """

    engine: Any
    model_config: Any
    tokens: ImageTokens
    side: int | None = None

    def read(self, source: Any, loading: Mapping[str, Any]) -> list[int]:
        """The token ids that show a picture.

        Args:
            source: of `without_picture`.
            loading: arguments of vLLM's loader of pictures, which the request gives.

        Raises:
            ParameterError: it is no picture, or one that may not be fetched.
            NotImplementedError (HTTP 501): the engine has no tokenizer of pictures.
        """
        side = self.side = self.side or _known(answer_of(self.engine.collective_rpc("picture_side")))
        with _refused(source):
            if isinstance(source, str):
                pixels = self._connector().load_from_url(source, Squares(side, **loading), fetch_timeout=_patience())
            else:
                pixels = middle_square(source, side, PILLOW)
        return self.tokens.shown(answer_of(self.engine.collective_rpc("encode_images", args=(pixels,))))

    async def read_async(self, source: Any, loading: Mapping[str, Any]) -> list[int]:
        """The same beside an event loop."""
        side = self.side = self.side or _known(answer_of(await self.engine.collective_rpc("picture_side")))
        with _refused(source):
            if isinstance(source, str):
                pixels = await self._connector().load_from_url_async(
                    source, Squares(side, **loading), fetch_timeout=_patience()
                )
            else:
                pixels = await asyncio.to_thread(middle_square, source, side, PILLOW)
        return self.tokens.shown(answer_of(await self.engine.collective_rpc("encode_images", args=(pixels,))))

    def _connector(self) -> Any:
        """vLLM's, with the server's policy: which hosts and which folder pictures may come from."""
        return MEDIA_CONNECTOR_REGISTRY.load(
            envs.VLLM_MEDIA_CONNECTOR,
            allowed_local_media_path=self.model_config.allowed_local_media_path,
            allowed_media_domains=self.model_config.allowed_media_domains,
        )


def _patience() -> int:
    return envs.VLLM_IMAGE_FETCH_TIMEOUT


def _known(side: int | None) -> int:
    if side is None:
        raise NotImplementedError(NO_TOKENIZER)
    return side


@contextmanager
def _refused(source: Any) -> Iterator[None]:
    """What vLLM and Pillow say about a picture, as an error of the request's field."""
    try:
        yield
    except (ParameterError, VLLMError):
        raise
    except (ValueError, RuntimeError, NotImplementedError, SyntaxError, Image.DecompressionBombError) as error:
        given = f"{source[:SHOWN_OF_VALUE]}..." if isinstance(source, str) else source
        raise ParameterError(
            URL, given, f"{error}; give a picture as a data URL, or one that this server may fetch"
        ) from None
