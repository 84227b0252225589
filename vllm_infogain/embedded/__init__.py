"""infogain-tiny: the small LLaDA-shaped model that ships with the package, its tasks and its recipe."""

from pathlib import Path

SERVED_NAME = "infogain-tiny"


def model_path() -> Path:
    """The checkpoint's directory: config, weights, tokenizer and model card."""
    return Path(__file__).parent / "model"
