"""MAGVIT-v2 (arXiv 2310.05737, as released with Show-o and MMaDA): pictures to codes and back. Plain torch, no vLLM.

A picture of H x W pixels is H/16 x W/16 codes of 13 bits. The quantiser looks nothing up: each bit is a channel's sign.
Modules and weights have the released names, so that `load_state_dict` reads a released checkpoint.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

NORM_EPSILON = 1e-6


@dataclass(frozen=True)
class MagvitConfig:
    """The shape of the network; the default is the released one (95.4 M parameters).

    Args:
        channels: of the first level.
        encoder_multipliers, decoder_multipliers: channels of each level, in `channels`; level 0 is full size.
        encoder_blocks, decoder_blocks: residual blocks of each level.
        bits: of a code; the codebook has 2 ** bits codes.
        norm_groups: that the channels of any level are normalised in.
    """

    channels: int = 128
    encoder_multipliers: tuple[int, ...] = (1, 2, 2, 4, 4)
    encoder_blocks: tuple[int, ...] = (4, 3, 4, 3, 4)
    decoder_multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
    decoder_blocks: tuple[int, ...] = (4, 4, 3, 4, 3)
    bits: int = 13
    norm_groups: int = 32

    @property
    def pixels_per_code(self) -> int:
        """Along one side: every level but the last halves the picture."""
        return 2 ** (len(self.encoder_multipliers) - 1)


class Magvit(nn.Module):
    """The tokenizer of pictures: `encode` and `decode`."""

    def __init__(self, config: MagvitConfig | None = None):
        super().__init__()
        self.config = config or MagvitConfig()
        self.encoder = Encoder(self.config)
        self.decoder = Decoder(self.config)

    @classmethod
    def from_checkpoint(cls, folder: Path) -> "Magvit":
        """The tokenizer in a folder: `model.safetensors` or `pytorch_model.bin`, and a `config.json` that says its
        shape under "magvit".

        The released `config.json` says nothing of a shape; without one, it is the released shape.
        """
        stated = folder / "config.json"
        shape = json.loads(stated.read_text()).get("magvit", {}) if stated.exists() else {}
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in shape.items()
        }
        model = cls(MagvitConfig(**fields))
        pickled, safe = folder / "pytorch_model.bin", folder / "model.safetensors"
        weights = load_file(safe) if safe.exists() else torch.load(pickled, weights_only=True)
        model.load_state_dict(without_buffers(weights))
        return model.eval()

    def save_checkpoint(self, folder: Path) -> None:
        """Write what `from_checkpoint` reads, in fp16."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps({"magvit": asdict(self.config)}, indent=2) + "\n")
        weights = {name: weight.half().contiguous() for name, weight in self.state_dict().items()}
        save_file(weights, folder / "model.safetensors")

    def encode(self, pictures: Tensor) -> Tensor:
        """Codes of pictures.

        Args:
            pictures: [n, 3, height, width], -1 to 1; both sides multiples of `pixels_per_code`.

        Returns:
            [n, height / pixels_per_code, width / pixels_per_code], int64, 0 to 2 ** bits - 1.
        """
        return codes_from_bits(self.encoder(pictures) > 0)

    def decode(self, codes: Tensor, unknown: Tensor | None = None) -> Tensor:
        """Pictures of codes.

        Args:
            codes: [n, rows, columns], int64.
            unknown: like `codes`, bool: codes not known yet. They count as neither bit: their channels are 0.

        Returns:
            [n, 3, rows * pixels_per_code, columns * pixels_per_code], about -1 to 1: see `pixels`.
        """
        latent = bits_from_codes(codes, self.config.bits)
        if unknown is not None:
            latent = latent.masked_fill(unknown[:, None], 0.0)
        return self.decoder(latent.to(self.decoder.conv_in.weight.dtype))


def codes_from_bits(bits: Tensor) -> Tensor:
    """[n, bits, rows, columns] bool -> [n, rows, columns]: the first channel is the highest bit."""
    weights = 2 ** torch.arange(bits.shape[1] - 1, -1, -1, device=bits.device)
    return (bits * weights[:, None, None]).sum(1)


def bits_from_codes(codes: Tensor, bits: int) -> Tensor:
    """[n, rows, columns] -> [n, bits, rows, columns], fp32: -1 or 1, the highest bit first."""
    shifts = torch.arange(bits - 1, -1, -1, device=codes.device)[:, None, None]
    return ((codes[:, None] >> shifts) & 1).float() * 2 - 1


def pixels(pictures: Tensor) -> Tensor:
    """[n, 3, height, width] of about -1 to 1 -> [n, height, width, 3], uint8; fractions are cut off."""
    return ((pictures.float() + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1)


def from_pixels(pictures: Tensor) -> Tensor:
    """uint8 [n, height, width, 3] -> [n, 3, height, width], -1 to 1: what is encoded."""
    return pictures.permute(0, 3, 1, 2).float() / 127.5 - 1


def without_buffers(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A released checkpoint's weights without the quantiser's tables, which are computed here."""
    return {name: weight for name, weight in weights.items() if not name.startswith("quantize.")}


class Encoder(nn.Module):
    def __init__(self, config: MagvitConfig):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.encoder_multipliers]
        self.conv_in = _conv3(3, config.channels)
        self.down = nn.ModuleList()
        width, last = config.channels, len(widths) - 1
        for level, (wider, count) in enumerate(zip(widths, config.encoder_blocks, strict=True)):
            self.down.append(_Level(width, wider, count, config.norm_groups, downsample=level < last))
            width = wider
        self.mid = _Middle(width, config.norm_groups)
        self.norm_out = _norm(width, config.norm_groups)
        self.conv_out = _conv3(width, config.bits)
        self.quant_conv = nn.Conv2d(config.bits, config.bits, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.conv_in(hidden)
        for level in self.down:
            hidden = level(hidden)
        hidden = self.mid(hidden)
        return self.quant_conv(self.conv_out(functional.silu(self.norm_out(hidden))))


class Decoder(nn.Module):
    def __init__(self, config: MagvitConfig):
        super().__init__()
        widths = [config.channels * multiplier for multiplier in config.decoder_multipliers]
        width = widths[-1]
        self.post_quant_conv = nn.Conv2d(config.bits, config.bits, 1)
        self.conv_in = _conv3(config.bits, width)
        self.mid = _Middle(width, config.norm_groups)
        levels = []
        for level in reversed(range(len(widths))):
            levels.append(
                _Level(width, widths[level], config.decoder_blocks[level], config.norm_groups, upsample=level > 0)
            )
            width = widths[level]
        self.up = nn.ModuleList(reversed(levels))  # names count from full size; the smallest comes first
        self.norm_out = _norm(width, config.norm_groups)
        self.conv_out = _conv3(width, 3)

    def forward(self, latent: Tensor) -> Tensor:
        hidden = self.mid(self.conv_in(self.post_quant_conv(latent)))
        for level in reversed(self.up):
            hidden = level(hidden)
        return self.conv_out(functional.silu(self.norm_out(hidden)))


class _Level(nn.Module):
    """Residual blocks of one size, then half or twice that size."""

    def __init__(
        self, width: int, wider: int, count: int, groups: int, *, downsample: bool = False, upsample: bool = False
    ):
        super().__init__()
        self.block = nn.ModuleList(_Residual(width if not index else wider, wider, groups) for index in range(count))
        if downsample:
            self.downsample = _Downsample(wider)
        if upsample:
            self.upsample = _Upsample(wider)

    def forward(self, hidden: Tensor) -> Tensor:
        for module in (
            *self.block,
            *(getattr(self, name) for name in ("downsample", "upsample") if hasattr(self, name)),
        ):
            hidden = module(hidden)
        return hidden


class _Middle(nn.Module):
    def __init__(self, width: int, groups: int):
        super().__init__()
        self.block_1 = _Residual(width, width, groups)
        self.attn_1 = _Attention(width, groups)
        self.block_2 = _Residual(width, width, groups)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(hidden)))


class _Residual(nn.Module):
    def __init__(self, width: int, wider: int, groups: int):
        super().__init__()
        self.norm1, self.conv1 = _norm(width, groups), _conv3(width, wider)
        self.norm2, self.conv2 = _norm(wider, groups), _conv3(wider, wider)
        if width != wider:
            self.nin_shortcut = nn.Conv2d(width, wider, 1)

    def forward(self, hidden: Tensor) -> Tensor:
        inner = self.conv1(functional.silu(self.norm1(hidden)))
        inner = self.conv2(functional.silu(self.norm2(inner)))
        return inner + (self.nin_shortcut(hidden) if hasattr(self, "nin_shortcut") else hidden)


class _Attention(nn.Module):
    """One head over all places of the picture."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.norm = _norm(width, groups)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, hidden: Tensor) -> Tensor:
        normed = self.norm(hidden)
        query, key, value = (part(normed).flatten(2).mT for part in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
        return hidden + self.proj_out(mixed.mT.reshape(hidden.shape))


class _Downsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(functional.pad(hidden, (0, 1, 0, 1)))  # right and bottom only


class _Upsample(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.conv = _conv3(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(functional.interpolate(hidden, scale_factor=2, mode="nearest"))


def _conv3(width: int, wider: int) -> nn.Conv2d:
    return nn.Conv2d(width, wider, 3, padding=1)


def _norm(width: int, groups: int) -> nn.GroupNorm:
    return nn.GroupNorm(groups, width, eps=NORM_EPSILON)
