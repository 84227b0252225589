"""A picture that a model reads, as pixels. Pure."""

from PIL import Image, ImageOps

from vllm_infogain.request.fields import ParameterError

MOST_OBLONG = 32  # times as long as wide: a longer strip would be huge when its width is scaled


def middle_square(picture: Image.Image, side: int, name: str = "picture") -> bytes:
    """A picture as MMaDA reads it: scaled until its shorter side is `side`, and cut to its middle.

    It is turned upright as its EXIF says, which released code does not do. Transparency is left out, as there.

    Args:
        name: of the parameter that it is.

    Returns:
        [row, column, colour], uint8.

    Raises:
        ParameterError: it is a strip.
    """
    upright = ImageOps.exif_transpose(picture)
    shorter, longer = sorted(upright.size)
    if longer > MOST_OBLONG * shorter:
        given = "{}x{} pixels".format(*upright.size)
        raise ParameterError(name, given, f"give one at most {MOST_OBLONG} times as long as wide")
    width, height = (side * length // shorter for length in upright.size)
    left, top = round((width - side) / 2), round((height - side) / 2)
    scaled = upright.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    return scaled.crop((left, top, left + side, top + side)).tobytes()
