"""The tokenizer of pictures equals a plain one, loads released names and shows what is not known yet."""

import pytest
import torch
from plain_magvit import GROUPS, decode, encode

from vllm_infogain.images.magvit import (
    Magvit,
    MagvitConfig,
    bits_from_codes,
    codes_from_bits,
    pixels,
    without_buffers,
)

SMALL = MagvitConfig(
    channels=32, encoder_multipliers=(1, 2, 2), encoder_blocks=(2, 1, 2), decoder_multipliers=(1, 1, 2),
    decoder_blocks=(1, 2, 1), bits=6, norm_groups=GROUPS,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer():
    torch.manual_seed(0)
    model = Magvit(SMALL).eval()
    for name, weight in model.state_dict().items():
        if "norm" in name:  # ones and zeros would hide a norm that forgot them
            weight.add_(torch.randn_like(weight) * 0.3)
    return model


@torch.no_grad()
@pytest.mark.parametrize("size", [(16, 16), (24, 32)])
def test_codes_equal_those_of_a_plain_tokenizer(tokenizer, size):
    pictures = torch.rand(3, 3, *size) * 2 - 1
    codes = tokenizer.encode(pictures)
    assert codes.shape == (3, size[0] // 4, size[1] // 4)
    assert codes.unique().numel() > 4  # of 64: a network that sees nothing gives one
    assert torch.equal(codes, encode(tokenizer.state_dict(), pictures))


@torch.no_grad()
@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_pixels_equal_those_of_a_plain_tokenizer(tokenizer, size):
    codes = torch.randint(0, 64, (2, *size))
    expected = decode(tokenizer.state_dict(), codes, 6)
    torch.testing.assert_close(tokenizer.decode(codes), expected, atol=1e-5, rtol=0)
    assert not torch.allclose(expected, tokenizer.decode((codes + 1) % 64), atol=1e-2)


def test_the_first_bit_of_a_code_is_its_highest():
    codes = torch.arange(64).reshape(1, 8, 8)
    assert bits_from_codes(codes, 6)[0, :, 4, 1].tolist() == [1, -1, -1, -1, -1, 1]  # 33
    assert torch.equal(codes_from_bits(bits_from_codes(codes, 6) > 0), codes)


@torch.no_grad()
def test_codes_not_known_yet_are_neither_bit(tokenizer):
    codes, unknown = torch.randint(0, 64, (1, 4, 4)), torch.zeros(1, 4, 4, dtype=torch.bool)
    unknown[0, 1:3, 1:3] = True
    shown = tokenizer.decode(codes, unknown)
    assert torch.equal(shown, tokenizer.decode(torch.where(unknown, (codes + 7) % 64, codes), unknown))
    assert not torch.equal(shown, tokenizer.decode(codes))


def test_pixels_are_cut_off_not_rounded():
    values = torch.tensor([-3.0, -1.0, -1 + 2 * 7.9 / 255, 1.0, 5.0]).reshape(1, 1, 1, 5).expand(1, 3, 1, 5)
    assert pixels(values)[0, 0, :, 0].tolist() == [0, 0, 7, 255, 255]


def test_a_released_checkpoint_has_the_names_and_the_size_of_ours():
    with torch.device("meta"):
        released = Magvit()
    weights = released.state_dict()
    assert {module.num_groups for module in released.modules() if isinstance(module, torch.nn.GroupNorm)} == {32}
    assert len(weights) == 380  # of 382: the quantiser's two tables are computed
    assert sum(weight.numel() for weight in weights.values()) == pytest.approx(95.4e6, rel=1e-3)
    for name in ("encoder.down.1.block.0.nin_shortcut.weight", "encoder.down.3.downsample.conv.bias",
                 "decoder.up.4.upsample.conv.weight", "decoder.mid.attn_1.proj_out.weight"):  # fmt: skip
        assert name in weights
    assert "encoder.down.4.downsample.conv.weight" not in weights
    assert "decoder.up.0.upsample.conv.weight" not in weights


def test_tables_of_the_quantiser_in_a_checkpoint_are_left_out(tokenizer):
    tables = {"quantize.embedding": torch.ones(64, 6), "quantize.power_vals": torch.ones(6)}
    Magvit(SMALL).load_state_dict(without_buffers(tokenizer.state_dict() | tables))  # strict: every name is used


def test_a_pickled_checkpoint_is_read_too(tokenizer, tmp_path):
    tokenizer.save_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(tokenizer.state_dict(), tmp_path / "pytorch_model.bin")
    again = Magvit.from_checkpoint(tmp_path).state_dict()
    assert all(torch.equal(again[name], weight) for name, weight in tokenizer.state_dict().items())


@torch.no_grad()
def test_a_checkpoint_of_another_shape_is_read_as_it_was_written(tokenizer, tmp_path):
    tokenizer.save_checkpoint(tmp_path)
    again, pictures = Magvit.from_checkpoint(tmp_path), torch.rand(1, 3, 16, 16) * 2 - 1
    assert again.config == SMALL
    torch.testing.assert_close(again.encoder(pictures), tokenizer.encoder(pictures), atol=0.05, rtol=0.05)  # fp16
    torch.testing.assert_close(
        again.decode(again.encode(pictures)), tokenizer.decode(again.encode(pictures)), atol=0.05, rtol=0.05
    )
