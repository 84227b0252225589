"""The recipe of the embedded model runs from data to checkpoint; a few steps of it are enough to see it learn."""

import itertools
import json
import math
from types import SimpleNamespace

from vllm_infogain.embedded import tasks, train
from vllm_infogain.embedded.tokenizer import VOCAB
from vllm_infogain.reference.llada import LLaDA


def test_a_short_run_learns_and_leaves_a_whole_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "POOL", dict.fromkeys(tasks.TASKS, 200))
    monkeypatch.setattr(train, "TEST_PROBLEMS", 2)
    monkeypatch.setattr(train, "ROWS", dict.fromkeys(tasks.TASKS, 8))
    monkeypatch.setattr(train.torch, "compile", lambda function, **_: function)  # a minute of compiling shows nothing
    clock = itertools.count()  # a second passes from step to step, whatever they take
    monkeypatch.setattr(train, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path), "--minutes", "0.7", "--seed", "3"])
    train.main()
    (run,) = json.loads((tmp_path / "training.json").read_text())
    assert run["steps"] == 41
    assert max(run["losses"].values()) < 0.9 * math.log(len(VOCAB)), "better than guessing"
    assert LLaDA.from_checkpoint(tmp_path).shape == train.SHAPE
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architectures"] == ["LLaDAModelLM"]
    assert "auto_map" not in config
    card = (tmp_path / "README.md").read_text()
    assert "## Splits" in card
    assert "--seed 3" in card
