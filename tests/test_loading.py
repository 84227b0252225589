"""What does not fit fails the start, and says what: weights, architectures, mask ids."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import write_dream, write_llada, write_sdar
from checkpoints_moe import write_llada2, write_llada_moe, write_sdar_moe
from engines import running
from safetensors.torch import load_file, save_file
from vllm.distributed import cleanup_dist_env_and_memory

from vllm_infogain.embedded.tokenizer import VOCAB

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def _clean_after_a_start_that_failed():
    yield
    cleanup_dist_env_and_memory()


def edit_weights(path: Path, change: Callable[[dict], None]) -> None:
    weights = load_file(path / "model.safetensors")
    change(weights)
    save_file(weights, path / "model.safetensors", metadata={"format": "pt"})


def edit_config(path: Path, **fields) -> None:
    config = json.loads((path / "config.json").read_text()) | fields
    (path / "config.json").write_text(json.dumps(config))


def start(path: Path, **engine_args) -> None:
    with running(path, lambda ids: ids, **engine_args):
        pass


# Weights.


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_llada, "model.transformer.blocks.0.k_proj.weight"),  # one of three in a merged layer
        (write_llada, "model.transformer.blocks.1.attn_out.weight"),
        (write_llada, "model.transformer.blocks.0.attn_norm.weight"),
        (write_llada, "model.transformer.wte.weight"),
        (write_llada, "model.transformer.ff_out.weight"),  # the head
        (write_dream, "model.layers.1.self_attn.q_proj.bias"),
        (write_sdar, "model.layers.1.self_attn.q_norm.weight"),
        (write_sdar, "model.layers.0.mlp.up_proj.weight"),
        (write_sdar_moe, "model.layers.1.mlp.experts.3.up_proj.weight"),
        (write_sdar_moe, "model.layers.0.mlp.gate.weight"),
        (write_llada_moe, "model.layers.1.mlp.experts.0.down_proj.weight"),
        (write_llada2, "model.layers.1.mlp.gate.expert_bias"),
        (write_llada2, "model.layers.0.mlp.gate_proj.weight"),
    ],
)
def test_a_weight_left_out_fails_the_start_by_its_name(tmp_path: Path, write: Callable, name: str):
    write(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.pop(name))
    with pytest.raises(
        ValueError, match=f"the checkpoint has no numbers, or NaN, for {name}; check that it is complete"
    ):
        start(tmp_path)


def test_a_hole_in_a_weight_fails_the_start(tmp_path: Path):
    write_llada(tmp_path)
    name = "model.transformer.blocks.1.q_proj.weight"
    edit_weights(tmp_path, lambda weights: weights[name][3].fill_(torch.nan))
    with pytest.raises(ValueError, match=r"or NaN, for transformer\.blocks\.1\.qkv_proj\.weight"):
        start(tmp_path)


def test_many_weights_left_out_are_counted(tmp_path: Path):
    write_sdar(tmp_path)
    edit_config(tmp_path, num_hidden_layers=4, max_window_layers=4)
    with pytest.raises(ValueError, match=r"for model\.layers\.2\.self_attn\.q_proj\.weight, .* and 14 more"):
        start(tmp_path)


def test_a_weight_the_model_has_no_place_for_fails_the_start(tmp_path: Path):
    write_llada(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({"model.transformer.blocks.0.extra.weight": torch.ones(2)}))
    with pytest.raises(ValueError, match=r"no module or parameter named 'transformer\.blocks\.0\.extra'"):
        start(tmp_path)


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (write_llada, "model.transformer.blocks.0.q_proj.bias"),  # vLLM's loader passes over any bias it cannot place
        (write_dream, "model.layers.1.self_attn.o_proj.bias"),
        (write_sdar, "model.layers.0.mlp.up_proj.bias"),
        (write_sdar_moe, "model.layers.1.mlp.experts.3.up_proj.bias"),
        (write_llada_moe, "model.layers.0.mlp.gate.bias"),
        (write_llada2, "model.layers.1.attention.dense.bias"),
    ],
)
def test_a_weight_that_would_be_passed_over_fails_the_start_by_its_name(tmp_path: Path, write: Callable, name: str):
    write(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({name: torch.ones(64)}))
    with pytest.raises(ValueError, match=f"the model has no place for {name} of the checkpoint|no module or parameter"):
        start(tmp_path)


def test_a_head_of_its_own_fails_the_start_of_a_tied_llada(tmp_path: Path):
    # Where the head is called lm_head, vLLM uses it, and says so.
    write_llada(tmp_path, weight_tying=True)
    table, head = "model.transformer.wte.weight", "model.transformer.ff_out.weight"
    edit_weights(tmp_path, lambda weights: weights.update({head: weights[table] + 1}))
    with pytest.raises(ValueError, match=f"the model has no place for {head} of the checkpoint.*weight_tying"):
        start(tmp_path)


def test_tied_weights_are_not_missed_nor_repeated_ones_refused(tmp_path: Path):
    write_llada(tmp_path, weight_tying=True)
    table, head = "model.transformer.wte.weight", "model.transformer.ff_out.weight"
    assert head not in load_file(tmp_path / "model.safetensors")
    start(tmp_path)
    edit_weights(tmp_path, lambda weights: weights.update({head: weights[table].clone()}))
    start(tmp_path)


# Architectures.


def test_weights_of_another_family_fail_the_start(tmp_path: Path):
    write_sdar(tmp_path / "sdar")
    write_llada(tmp_path / "llada")
    (tmp_path / "llada" / "model.safetensors").write_bytes((tmp_path / "sdar" / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match="no module or parameter named 'model'"):
        start(tmp_path / "llada")


def test_a_model_that_only_looks_back_is_refused(tmp_path: Path):
    write_sdar(tmp_path)
    edit_config(tmp_path, architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    with pytest.raises(ValueError, match=r"Qwen3ForCausalLM is no masked diffusion model we know; give one of .*SDAR"):
        start(tmp_path)


def test_a_part_of_llada_moe_that_no_checkpoint_uses_is_refused(tmp_path: Path):
    write_llada_moe(tmp_path, shared_expert_intermediate_size=64)
    with pytest.raises(ValueError, match="shared_expert_intermediate_size=64: only 0 is supported for LLaDA-MoE"):
        start(tmp_path)


# Mask ids.


@pytest.mark.parametrize("mask_id", [len(VOCAB), -1, None])
def test_an_unknown_mask_id_fails_the_start(tmp_path: Path, mask_id: int | None):
    write_llada(tmp_path)
    edit_config(tmp_path, mask_token_id=mask_id)
    with pytest.raises(
        ValueError, match=f"mask_token_id={mask_id}: no token of this model, whose ids go from 0 to 100"
    ):
        start(tmp_path)


def test_a_mask_id_can_be_given_by_flag(tmp_path: Path):
    write_llada(tmp_path)
    edit_config(tmp_path, mask_token_id=None)
    with running(tmp_path, lambda ids: ids, hf_overrides={"mask_token_id": 7}) as engine:
        assert engine.runner.mask_id == 7
