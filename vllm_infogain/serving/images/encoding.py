"""Pixels to files and back, by Pillow. Slow for large pictures: called in a thread. Imports neither torch nor vLLM."""

import base64
import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from vllm_infogain.request.fields import ParameterError

FORMATS = ("png", "jpeg", "webp")
OPTIONS: dict[str, dict[str, Any]] = {"png": {}, "jpeg": {"quality": 95}, "webp": {"lossless": True}}


def encoded(rgb: bytes, side: int, output_format: str) -> bytes:
    """The file of a square picture, as base64.

    Args:
        rgb: [row, column, colour], uint8.
        side: pixels.
        output_format: of `FORMATS`.
    """
    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), rgb).save(file, output_format, **OPTIONS[output_format])
    return base64.b64encode(file.getvalue())


def json_with_file(fields: Mapping[str, Any], b64_json: bytes) -> bytes:
    """The JSON of an object's fields and a file's base64, which needs no escapes: JSON's encoder would look for some,
    holding every thread of the process up for some 4 ms per MB."""
    return json.dumps({**fields, "b64_json": ""}, separators=(",", ":")).encode()[:-2] + b64_json + b'"}'


def pixels_of(name: str, file: bytes, side: int) -> bytes:
    """What `encoded` takes, of a file; its transparency is left out.

    Raises:
        ParameterError: under this name, no picture, or one of another size.
    """
    return _opened(name, file, side).convert("RGB").tobytes()


def codes_to_redraw(name: str, file: bytes, side: int, codes_per_side: int) -> list[bool]:
    """Of each code, row by row, whether any of its pixels is wholly transparent in a file.

    Raises:
        ParameterError: as of `pixels_of`; or nothing is transparent.
    """
    picture = _opened(name, file, side)
    alpha = np.asarray(picture.convert("RGBA"))[..., 3]
    each = side // codes_per_side
    redrawn = (alpha == 0).reshape(codes_per_side, each, codes_per_side, each).any(axis=(1, 3))
    if not redrawn.any():
        raise ParameterError(
            name, picture.mode, "nothing in it is transparent; make it so where the picture is to be drawn anew"
        )
    return redrawn.ravel().tolist()


def _opened(name: str, file: bytes, side: int) -> Image.Image:
    try:
        picture = Image.open(io.BytesIO(file), formats=[*map(str.upper, FORMATS)])
        if picture.size == (side, side):  # its header's; one of another size is not unpacked
            picture.load()
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ParameterError(name, f"{len(file)} bytes", f"no picture: {error}; give png, jpeg or webp") from None
    if picture.size != (side, side):
        given = "{}x{}".format(*picture.size)
        raise ParameterError(name, given, f"the model's pictures are {side}x{side}; scale it to that")
    return picture
