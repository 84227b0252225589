"""SDAR and TraDo: their configs load without remote code, vLLM finds the executor, the plain model is block-causal."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_sdar
from engines import MASK_ID
from transformers import AutoConfig, Qwen3Config
from vllm import ModelRegistry
from vllm_infogain.model_executors import CONFIGS

from vllm_infogain import plugin


@pytest.fixture(scope="module", autouse=True)
def registered():
    plugin.register()


# The config.


def test_a_released_config_loads_without_remote_code(tmp_path: Path):
    write_sdar(tmp_path, block_size=8)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config).__name__ == "SDARConfig"
    assert (config.mask_token_id, config.block_size, config.head_dim) == (MASK_ID, 8, 32)
    assert config.rope_parameters == {"rope_type": "default", "rope_theta": 1000000}


def test_a_released_config_may_lack_the_mask_and_the_block_size(tmp_path: Path):
    write_sdar(tmp_path, omit=("mask_token_id", "block_size"))
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.mask_token_id, config.block_size) == (151669, 4)


@pytest.mark.parametrize("model_type", CONFIGS)
def test_every_family_states_how_it_attends_and_writes_it_into_no_config(model_type: str):
    config = AutoConfig.for_model(model_type)
    assert config.attention_kind == ("full" if model_type in ("llada", "Dream", "mmada") else "block_causal")
    assert "attention_kind" not in config.to_dict()


def test_genuine_qwen3_configs_stay_qwen3():
    assert type(AutoConfig.for_model("qwen3")) is Qwen3Config
    assert not hasattr(Qwen3Config, "attention_kind")


# The executor.


def test_vllm_resolves_the_architecture_to_our_executor():
    executor = ModelRegistry._try_load_model_cls("SDARForCausalLM")
    assert executor is not None
    assert executor.__module__ == "vllm_infogain.model_executors.sdar"


# The plain model that the engine is compared with.


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    return write_sdar(tmp_path_factory.mktemp("sdar"))


def test_the_reference_sees_its_own_block_and_those_before(reference):
    ids = torch.arange(10, 24).unsqueeze(0)  # the last block, of positions 12 and 13, is not full
    plain = reference(ids)

    def changed_rows(position: int) -> list[int]:
        other = ids.clone()
        other[0, position] = 50
        difference = (reference(other) - plain).abs().amax(-1)[0]
        return torch.nonzero(difference > 1e-4).flatten().tolist()

    assert changed_rows(0) == list(range(14))
    assert changed_rows(7) == list(range(4, 14))
    assert changed_rows(13) == [12, 13]


def test_the_references_entropies_differ_from_row_to_row(reference):
    logits = reference(torch.tensor([[10, 11, *[MASK_ID] * 10]]))
    assert logits.dtype == torch.float32
    entropy = torch.distributions.Categorical(logits=logits[0]).entropy()
    assert entropy.unique().numel() == entropy.numel()
    assert entropy.max() - entropy.min() > 0.3
