"""The mixture-of-experts families on the engine: logits of every forward, tokens and J equal the plain models'."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints_moe import write_llada2, write_llada_moe, write_sdar_moe
from engines import MASK_ID, Engine, Job, assert_matches_oracle, running
from knobs import fitting
from transformers import AutoConfig

import vllm_infogain
from vllm_infogain import plugin
from vllm_infogain.request.params import SAMPLERS

pytestmark = pytest.mark.engine

KINDS: dict[str, tuple[Callable, dict]] = {
    "SDAR-MoE": (write_sdar_moe, {}),
    "SDAR-MoE, tied, with a dense layer, shares that do not sum to 1": (
        write_sdar_moe,
        {"tie_word_embeddings": True, "mlp_only_layers": [0], "norm_topk_prob": False, "block_size": 16},
    ),
    "LLaDA-MoE": (write_llada_moe, {}),
    "LLaDA-MoE, its other name, grouped queries, with a dense layer": (
        write_llada_moe,
        {"architectures": ["LLaDAMoEModel"], "num_key_value_heads": 2, "moe_layer_freq": [0, 1], "vocab_size": 160},
    ),
    "LLaDA2": (write_llada2, {}),
    "LLaDA2, its own block size, a wide head, two shared experts": (
        write_llada2,
        {"block_size": 32, "head_dim": 64, "num_shared_experts": 2, "topk_group": 3, "vocab_size": 160},
    ),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def engine(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("moe")
    write, fields = request.param
    with running(path, write(path, **fields)) as engine:
        yield engine


@pytest.mark.parametrize(("length", "canvas"), [(1, 3), (6, 11), (40, 30)])
def test_logits_of_every_forward_equal_the_plain_models(engine: Engine, monkeypatch, length: int, canvas: int):
    seen: list[torch.Tensor] = []
    read = engine.runner._read
    monkeypatch.setattr(
        engine.runner, "_read", lambda logits, asked: seen.append(logits.clone()) or read(logits, asked)
    )
    (output,) = engine.run([Job("x" * length, {"sampler": "entropy"}, canvas)])
    steps = vllm_infogain.report(output)["trajectory"]
    prompt = list(output.prompt_token_ids)
    ids = torch.tensor([prompt + [MASK_ID] * canvas])
    assert len(seen) == len(steps) == canvas
    for logits, step in zip(seen, steps, strict=True):
        masked = (ids[0] == MASK_ID).nonzero().flatten()[: len(logits)]  # those of the block come first
        torch.testing.assert_close(logits, engine.model(ids)[0, masked], atol=1e-4, rtol=0)
        ids[0, len(prompt) + torch.tensor(step["positions"])] = torch.tensor(step["tokens"])


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_every_sampler_equals_the_oracle(engine: Engine, sampler: str):
    jobs = [
        Job("x" * length, fitting({"sampler": sampler, "tokens_per_step": tokens, "num_candidates": 4}), max_tokens=13)
        for length, tokens in ((1, 1), (6, 3), (33, 1))
    ]
    for job, output in zip(jobs, engine.run(jobs), strict=True):
        assert_matches_oracle(engine, job, output)


# The configs.


@pytest.mark.parametrize(
    ("write", "mask_id"), [(write_sdar_moe, 151669), (write_llada_moe, 156895), (write_llada2, 156895)]
)
def test_a_released_config_may_lack_the_mask_and_the_block_size(tmp_path: Path, write: Callable, mask_id: int):
    plugin.register()
    write(tmp_path, omit=("mask_token_id", "block_size"))
    config = AutoConfig.from_pretrained(tmp_path)
    assert config.mask_token_id == mask_id
    assert getattr(config, "block_size", 0) == {write_sdar_moe: 4, write_llada2: 32}.get(write, 0)


def test_llada_moe_is_told_from_llada_by_its_architecture(tmp_path: Path):
    plugin.register()
    write_llada_moe(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert (config.model_type, config.attention_kind) == ("llada", "full")
    assert (config.num_experts, config.moe_intermediate_size, config.norm_topk_prob) == (8, 48, False)
    assert type(AutoConfig.for_model("llada")).__name__ == "LLaDAConfig"
