"""Dense checkpoints of every kind and family, loaded by vLLM: logits to 1e-4 of the plain model's, in fp32."""

from collections.abc import Callable

import pytest
import torch
from checkpoints import write_dream, write_llada, write_sdar
from engines import MASK_ID, Engine, Job, assert_matches_oracle, running

from vllm_infogain.reference.cached import CachingLLaDA

pytestmark = pytest.mark.engine

KINDS: dict[str, tuple[Callable, dict]] = {
    "LLaDA, untied, as many heads of keys as of queries": (write_llada, {}),
    "LLaDA, tied, a table larger than the vocabulary": (write_llada, {"weight_tying": True, "embedding_size": 160}),
    "LLaDA, untied, a table larger than the vocabulary, grouped queries": (
        write_llada,
        {"embedding_size": 160, "n_kv_heads": 1},
    ),
    "Dream, untied, grouped queries": (write_dream, {}),
    "Dream, tied": (write_dream, {"tie_word_embeddings": True}),
    "Dream, a table larger than the tokenizer's vocabulary": (write_dream, {"vocab_size": 160}),
    "Dream, as many heads of keys as of queries": (write_dream, {"num_key_value_heads": 4}),
    "SDAR, untied, grouped queries": (write_sdar, {}),
    "SDAR, tied, a table larger than the tokenizer's vocabulary": (
        write_sdar,
        {"tie_word_embeddings": True, "vocab_size": 160},
    ),
    "SDAR, blocks of 16, as many heads of keys as of queries": (
        write_sdar,
        {"block_size": 16, "num_key_value_heads": 4},
    ),
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def engine(request, tmp_path_factory):
    write, fields = request.param
    path = tmp_path_factory.mktemp("checkpoint")
    model = write(path, **fields)
    with running(path, CachingLLaDA(model) if write is write_llada else model) as engine:
        yield engine


def is_block_causal(engine: Engine) -> bool:
    return engine.llm.llm_engine.vllm_config.model_config.hf_config.attention_kind == "block_causal"


@pytest.mark.parametrize(("prompt", "canvas"), [([29], 1), ("twelve chars", 7), ("x" * 40, 30)])
def test_logits_of_masks_equal_the_plain_models(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, prompt: str | list[int], canvas: int
):
    seen: list[torch.Tensor] = []
    compute = engine.runner._logits
    monkeypatch.setattr(engine.runner, "_logits", lambda *args: seen.append(compute(*args)) or seen[-1].clone())
    job = Job(prompt, {"sampler": "entropy"} | ({} if is_block_causal(engine) else {"block_length": 0}), canvas)
    engine.run([job])
    ids = torch.tensor([[*engine.prompt_ids(job), *[MASK_ID] * canvas]])
    first = ids.shape[1] - canvas
    # Of the first forward: the whole canvas, or the masks of the block in which the prompt ends.
    plain = engine.model(ids)[0, first : first + len(seen[0])]
    assert is_block_causal(engine) or len(plain) == canvas
    torch.testing.assert_close(seen[0], plain, atol=1e-4, rtol=0)


def test_look_ahead_equals_the_oracle(engine: Engine):
    cached = [] if is_block_causal(engine) else [{"block_length": 8, "cache": cache} for cache in ("none", "dual")]
    for knobs in [{}, *cached]:
        job = Job("a prompt", {"bypass_threshold": 1.0, **knobs}, 20)
        assert_matches_oracle(engine, job, engine.run([job])[0])
