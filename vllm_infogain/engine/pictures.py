"""The tokenizer of pictures on the worker: codes to pixels and back, on the model's device."""

from collections.abc import Sequence
from pathlib import Path

import torch
from huggingface_hub import snapshot_download

from vllm_infogain.compat import VllmConfig
from vllm_infogain.images.canvas import UNKNOWN
from vllm_infogain.images.magvit import Magvit, from_pixels, pixels
from vllm_infogain.request.fields import ParameterError
from vllm_infogain.request.from_vllm import image_tokens, settings_of

IN_THE_MODEL = "image_tokenizer"  # the folder of a model's own tokenizer of pictures, in the model's


class Pictures:
    """Owner of the tokenizer. Pictures are square, `codes_per_side` codes wide.

    One picture at a time is decoded or encoded, so that the memory that `rehearse` takes is the most there is.
    """

    def __init__(self, tokenizer: Magvit, codes_per_side: int, device: torch.device) -> None:
        self.tokenizer = tokenizer.to(device)
        self.device = device
        self.codes_per_side = codes_per_side
        self.side = codes_per_side * tokenizer.config.pixels_per_code

    @torch.inference_mode()
    def decode(self, pictures: Sequence[Sequence[int]]) -> bytes:
        """Pixels of pictures, [picture, row, column, colour], uint8.

        Args:
            pictures: of each, its codes row by row; `UNKNOWN` is shown as neither bit.
        """
        if any(len(codes) != self.codes_per_side**2 for codes in pictures):
            raise ValueError(f"a picture has {self.codes_per_side**2} codes, not {[*map(len, pictures)]}")
        grids = torch.tensor(pictures, device=self.device).unflatten(1, (self.codes_per_side, self.codes_per_side))
        decoded = (self.tokenizer.decode(grid.clamp(min=0), grid == UNKNOWN) for grid in grids[:, None])
        return b"".join(pixels(picture).cpu().numpy().tobytes() for picture in decoded)

    @torch.inference_mode()
    def encode(self, picture: bytes) -> list[int]:
        """Codes of one picture, [row, column, colour] uint8, row by row."""
        raw = torch.frombuffer(bytearray(picture), dtype=torch.uint8).to(self.device)
        return self.tokenizer.encode(from_pixels(raw.view(1, self.side, self.side, 3))).flatten().tolist()

    def rehearse(self) -> None:
        """What takes the most memory, for vLLM's measurement of it."""
        self.decode([self.encode(bytes(3 * self.side**2))])


def load_pictures(vllm_config: VllmConfig, device: torch.device) -> Pictures | None:
    """The tokenizer that the server names, else the one in the model's folder; None if there is neither.

    Raises:
        ParameterError (a ValueError): what is named is no tokenizer of this model's codes.
    """
    named, tokens = settings_of(vllm_config)[0].image_tokenizer, image_tokens(vllm_config)
    if tokens is None:
        if named is not None:
            raise ParameterError("image_tokenizer", named, "this model has no codes of pictures; leave it out")
        return None
    folder = Path(vllm_config.model_config.model) / IN_THE_MODEL if named is None else _fetched(named)
    if not folder.is_dir():
        return None
    tokenizer = Magvit.from_checkpoint(folder)
    if 2**tokenizer.config.bits != tokens.codebook_size:
        raise ParameterError(
            "image_tokenizer", str(folder),
            f"it has {2**tokenizer.config.bits} codes and the model {tokens.codebook_size}; give the model's own",
        )  # fmt: skip
    return Pictures(tokenizer, tokens.image_codes_per_side, device)


def _fetched(named: str) -> Path:
    """A folder as it is; anything else is a name on the hub."""
    if Path(named).is_dir():
        return Path(named)
    try:
        return Path(snapshot_download(named, allow_patterns=["config.json", "model.safetensors", "pytorch_model.bin"]))
    except (OSError, ValueError) as error:
        raise ParameterError("image_tokenizer", named, f"no folder, and not to be had from the hub: {error}") from error
