"""infogain-tiny-image: the small MMaDA-shaped model of pictures that ships with the package, and its recipe."""

from pathlib import Path

SERVED_NAME = "infogain-tiny-image"


def model_path() -> Path:
    """The checkpoint's directory: config, weights, tokenizer of words, tokenizer of pictures, and model card."""
    return Path(__file__).parent / "model"
