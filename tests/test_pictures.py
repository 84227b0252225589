"""The worker's tokenizer of pictures: loaded once, of the model's codes, and equal to the tokenizer itself."""

from types import SimpleNamespace

import pytest
import torch

from vllm_infogain.engine import pictures as module
from vllm_infogain.engine.pictures import IN_THE_MODEL, Pictures, load_pictures
from vllm_infogain.images.canvas import UNKNOWN
from vllm_infogain.images.magvit import Magvit, MagvitConfig, pixels
from vllm_infogain.request.fields import ParameterError

SIDE, CPU = 16, torch.device("cpu")
SMALL = MagvitConfig(
    channels=8, encoder_multipliers=(1, 2, 2), encoder_blocks=(1, 1, 1), decoder_multipliers=(1, 1, 2),
    decoder_blocks=(1, 1, 1), bits=4, norm_groups=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer() -> Magvit:
    torch.manual_seed(0)
    return Magvit(SMALL).eval()


@torch.no_grad()
def test_several_pictures_are_decoded_as_each_alone(tokenizer):
    pictures = Pictures(tokenizer, 4, CPU)
    codes = torch.randint(0, 16, (2, 16))
    codes[1, 3:9] = UNKNOWN
    expected = [
        pixels(tokenizer.decode(one.reshape(1, 4, 4).clamp(min=0), (one == UNKNOWN).reshape(1, 4, 4))) for one in codes
    ]
    assert pictures.decode(codes.tolist()) == b"".join(one.numpy().tobytes() for one in expected)
    assert pictures.side == SIDE


@torch.no_grad()
def test_pixels_are_encoded_as_the_tokenizer_does(tokenizer):
    raw = torch.randint(0, 256, (1, SIDE, SIDE, 3), dtype=torch.uint8)
    expected = tokenizer.encode(raw.permute(0, 3, 1, 2) / 255 * 2 - 1).flatten().tolist()
    assert Pictures(tokenizer, 4, CPU).encode(raw.numpy().tobytes()) == expected
    assert len(set(expected)) > 1


def test_codes_that_make_no_square_picture_are_refused(tokenizer):
    with pytest.raises(ValueError, match="16 codes"):
        Pictures(tokenizer, 4, CPU).decode([[0] * 16, [0] * 15])


# Which tokenizer it is.


def config(model, settings=None, codebook_size=16):
    hf_config = SimpleNamespace(codebook_size=codebook_size, image_codes_per_side=4)

    class Config:  # one that settings can be remembered by
        model_config = SimpleNamespace(model=str(model), hf_config=hf_config)
        additional_config = {"infogain": settings or {}}

    return Config()


def test_a_models_own_tokenizer_is_taken_where_none_is_named(tokenizer, tmp_path):
    assert load_pictures(config(tmp_path), CPU) is None
    tokenizer.save_checkpoint(tmp_path / IN_THE_MODEL)
    assert load_pictures(config(tmp_path), CPU).tokenizer.config == SMALL


def test_a_tokenizer_that_the_server_names_is_taken_from_its_folder_or_the_hub(tokenizer, tmp_path, monkeypatch):
    folder, asked = tmp_path / "other", []
    tokenizer.save_checkpoint(folder)
    assert load_pictures(config(tmp_path, {"image_tokenizer": str(folder)}), CPU) is not None
    monkeypatch.setattr(module, "snapshot_download", lambda name, **_: asked.append(name) or str(folder))
    assert load_pictures(config(tmp_path, {"image_tokenizer": "showlab/magvitv2"}), CPU) is not None
    assert asked == ["showlab/magvitv2"]


def test_a_tokenizer_that_is_not_this_models_is_refused(tokenizer, tmp_path, monkeypatch):
    tokenizer.save_checkpoint(tmp_path)
    named = {"image_tokenizer": str(tmp_path)}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for given, said in (
        (config(tmp_path, named, codebook_size=8192), "16 codes and the model 8192"),
        (config(tmp_path, named, codebook_size=None), "no codes of pictures"),
        (config(tmp_path, {"image_tokenizer": str(tmp_path / "nothing")}), "no folder"),
    ):
        with pytest.raises(ParameterError, match=said) as refusal:
            load_pictures(given, CPU)
        assert refusal.value.parameter == "image_tokenizer"
