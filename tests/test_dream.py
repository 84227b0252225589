"""Dream: its config loads without remote code, vLLM finds the executor, position p is read off row p - 1."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_dream
from engines import MASK_ID
from plain_dream import PlainDream
from transformers import AutoConfig
from vllm import ModelRegistry
from vllm_infogain.model_executors import CONFIGS

from vllm_infogain import plugin
from vllm_infogain.request.params import DecodingParams
from vllm_infogain.sampling.canvas_state import CanvasState


@pytest.fixture(scope="module", autouse=True)
def registered():
    plugin.register()


# The config and the executor.


def test_a_released_config_loads_without_remote_code(tmp_path: Path):
    write_dream(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config).__name__ == "DreamConfig"
    assert (config.mask_token_id, config.num_key_value_heads) == (MASK_ID, 2)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1000000.0}


def test_a_config_may_lack_the_mask(tmp_path: Path):
    write_dream(tmp_path, omit=("mask_token_id",))
    assert AutoConfig.from_pretrained(tmp_path).mask_token_id == 151666


@pytest.mark.parametrize("model_type", CONFIGS)
def test_only_dream_predicts_the_next_position_and_no_config_holds_what_a_family_predicts(model_type: str):
    config = AutoConfig.for_model(model_type)
    assert getattr(config, "predicts", "same") == ("next" if model_type == "Dream" else "same")
    assert "predicts" not in config.to_dict()


def test_vllm_resolves_the_architecture_to_our_executor():
    executor = ModelRegistry._try_load_model_cls("DreamModel")
    assert executor is not None
    assert executor.__module__ == "vllm_infogain.model_executors.dream"


# The window of the cached modes.


@pytest.mark.parametrize(("cache", "window"), [("none", (0, 15)), ("prefix", (2, 15)), ("dual", (2, 7))])
def test_the_window_begins_with_the_row_that_the_blocks_first_position_is_read_off(cache: str, window: tuple):
    params = DecodingParams(cache=cache, block_length=4, canvas_length=12, shift=1)
    canvas = CanvasState([10, 11, 12], params, MASK_ID)
    forward = canvas.forward_window()
    assert (forward.own.start, forward.own.stop) == window
    assert len(forward.own) <= params.window(prompt_length=3)
    assert canvas.masked(canvas.state[None]).tolist() == [[3, 4, 5, 6]], "which positions are masked does not shift"


# The plain model that the engine is compared with.


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> PlainDream:
    return write_dream(tmp_path_factory.mktemp("dream"))


def test_the_plain_model_sees_everything_and_reads_a_position_off_the_row_before_it(plain: PlainDream):
    ids = torch.arange(10, 22).unsqueeze(0)
    logits = plain(ids)
    rows = plain.model(ids, attention_mask=torch.zeros(1, 1, 12, 12)).logits
    torch.testing.assert_close(logits[:, 1:], rows[:, :-1])
    torch.testing.assert_close(logits[:, 0], rows[:, 0])
    for position in range(12):
        other = ids.clone()
        other[0, position] = 50
        assert ((plain(other) - logits).abs().amax(-1) > 1e-4).all(), "attention in both directions"


@pytest.mark.parametrize("rows", [range(3), range(1, 4), range(6, 10), range(5, 12), range(12)])
def test_a_window_over_fresh_keys_and_values_is_exact(plain: PlainDream, rows: range):
    ids = torch.arange(10, 22).unsqueeze(0)
    window = plain.window(ids, rows, plain.cache(ids))
    torch.testing.assert_close(window, plain(ids)[:, rows.start : rows.stop], atol=1e-5, rtol=0)


def test_a_window_computes_the_row_before_it_anew_and_no_other(plain: PlainDream):
    ids = torch.arange(10, 22).unsqueeze(0)
    cached = plain.cache(ids)
    before, outside = ids.clone(), ids.clone()
    before[0, 4], outside[0, [3, 9]] = 50, 50
    fresh = plain.window(ids, range(5, 9), cached)
    torch.testing.assert_close(plain.window(outside, range(5, 9), cached), fresh)
    assert ((plain.window(before, range(5, 9), cached) - fresh).abs().amax(-1) > 1e-4).all()


def test_the_plain_models_entropies_differ_from_row_to_row(plain: PlainDream):
    logits = plain(torch.tensor([[10, 11, *[MASK_ID] * 10]]))
    entropy = torch.distributions.Categorical(logits=logits[0, 2:]).entropy()
    assert entropy.unique().numel() == entropy.numel()
    assert entropy.max() - entropy.min() > 0.3
