"""The recipe of infogain-tiny-image runs from drawings to a whole checkpoint; what its pictures are judged by."""

import itertools
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import images
from vllm_infogain.embedded.pictures import classifier, scenes, train, train_tokenizer, words
from vllm_infogain.embedded.pictures.judging import are_right, held_out, picture_tokenizer, pictures
from vllm_infogain.images.geneval import CATEGORIES
from vllm_infogain.reference.llada import LLaDA


def clock():
    """A second of CPU time passes from step to step, whatever they take."""
    ticks = itertools.count()
    return SimpleNamespace(process_time=lambda: next(ticks))


def test_a_short_run_of_both_recipes_learns_and_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(train_tokenizer, "POOL", 64)
    monkeypatch.setattr(train_tokenizer, "ROWS", 8)
    monkeypatch.setattr(train_tokenizer, "TEST_SCENES", 2)
    monkeypatch.setattr(train_tokenizer, "time", clock())
    monkeypatch.setattr("sys.argv", ["train_tokenizer", "--out", str(tmp_path / "tokenizer"), "--minutes", "0.2"])
    train_tokenizer.main()
    monkeypatch.setattr(train, "PICTURES", 60)
    monkeypatch.setattr(train, "TEST_PROMPTS", 1)
    monkeypatch.setattr(train, "ROWS", 6)
    monkeypatch.setattr(train, "UNPROMPTED_ROWS", 2)
    monkeypatch.setattr(train, "time", clock())
    out = tmp_path / "model"
    arguments = ["--tokenizer", str(tmp_path / "tokenizer"), "--out", str(out), "--minutes", "0.4", "--seed", "3"]
    monkeypatch.setattr("sys.argv", ["train", *arguments])
    train.main()
    run = json.loads((out / "training.json").read_text())
    assert run["steps"] == 23
    assert run["loss"] < 0.95 * math.log(train.SHAPE.vocab_size), "better than guessing"
    assert LLaDA.from_checkpoint(out).shape == train.SHAPE
    assert picture_tokenizer(out).config == train_tokenizer.SHAPE
    config = json.loads((out / "config.json").read_text())
    assert config["architectures"] == ["MMadaModelLM"]
    assert config["image_token_offset"] + config["codebook_size"] == config["vocab_size"]
    card = (out / "README.md").read_text()
    assert "--seed 3" in card
    assert "| color_attr |" in card


def test_no_held_out_prompt_is_in_training_and_every_word_is_known():
    train_prompts, test_prompts = (
        {line["prompt"] for lines in scenes.requirements(split).values() for line in lines}
        for split in ("train", "test")
    )
    assert not train_prompts & test_prompts
    assert {requirement["prompt"] for requirement in held_out(30)} <= test_prompts
    assert words.UNK not in {word for prompt in train_prompts | test_prompts for word in words.encode(prompt)}


def test_a_code_is_hidden_at_least_and_all_of_them_can_be():
    hidden = train.hide(torch.zeros(4000, words.CODES), torch.Generator().manual_seed(0)).sum(1)
    assert hidden.min() == 1
    assert hidden.max() == words.CODES
    assert hidden.float().mean() / words.CODES == pytest.approx(2 / math.pi, abs=0.02), "the mean of cos(pi u / 2)"


def test_frechet_distance_and_inception_score_of_what_is_known():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(200_000, 3))
    assert classifier.frechet_distance(one, one) == pytest.approx(0, abs=1e-6)
    # Of Gaussians N(0, 1) and N(2, 3^2) in each of three dimensions: 3 x (2^2 + (3 - 1)^2).
    assert classifier.frechet_distance(one, 3 * rng.normal(size=one.shape) + 2) == pytest.approx(24, rel=0.02)
    assert classifier.inception_score(np.eye(5)) == pytest.approx(5)
    assert classifier.inception_score(np.full((7, 5), 0.2)) == pytest.approx(1)


def test_a_table_of_true_and_false_pictures_has_their_shares_and_its_error():
    wanted = held_out(4)
    right = are_right(scenes.drawings(wanted, seed=0), wanted)
    assert all(right)
    assert not any(are_right(np.full((len(wanted), scenes.SIDE, scenes.SIDE, 3), 238, np.uint8), wanted))
    right = [index % 4 != 0 for index in range(len(wanted))]
    shares = images.shares(right, wanted)
    assert [shares[category] for category in CATEGORIES] == [0.75] * 6
    assert shares["mean"] == 0.75
    assert shares["standard_error"] == pytest.approx((0.75 * 0.25 / 24) ** 0.5)


def test_codes_become_pictures_row_by_row():
    tokenizer = train_tokenizer.Magvit(train_tokenizer.SHAPE).eval()
    codes = torch.randint(2**words.BITS, (3, words.CODES), generator=torch.Generator().manual_seed(0))
    shown = pictures(tokenizer, codes.tolist())
    assert shown.shape == (3, scenes.SIDE, scenes.SIDE, 3)
    with torch.no_grad():
        alone = tokenizer.decode(codes[1].view(1, words.SIDE_CODES, words.SIDE_CODES))
    assert np.abs(shown[1].astype(int) - train_tokenizer.pixels(alone)[0].numpy().astype(int)).max() <= 1
