"""Dream checkpoints of every kind, loaded by vLLM: logits to 1e-4 of the plain model's, in fp32."""

import pytest
import torch
from checkpoints import write_dream
from engines import MASK_ID, Engine, Job, assert_matches_oracle, running

pytestmark = pytest.mark.engine

KINDS = {
    "untied": {},
    "tied": {"tie_word_embeddings": True},
    "a table larger than the tokenizer's vocabulary": {"vocab_size": 160},
    "a head for every key": {"num_key_value_heads": 4},
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def engine(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("dream")
    with running(path, write_dream(path, **request.param)) as engine:
        yield engine


@pytest.mark.parametrize(("prompt", "canvas"), [([29], 1), ("twelve chars", 7), ("x" * 40, 30)])
def test_logits_of_masks_equal_the_plain_models(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, prompt: str | list[int], canvas: int
):
    seen: list[torch.Tensor] = []
    compute = engine.runner._logits
    monkeypatch.setattr(engine.runner, "_logits", lambda *args: seen.append(compute(*args)) or seen[-1].clone())
    job = Job(prompt, {"sampler": "entropy", "block_length": 0}, canvas)
    engine.run([job])
    ids = torch.tensor([[*engine.prompt_ids(job), *[MASK_ID] * canvas]])
    torch.testing.assert_close(seen[0], engine.model(ids)[0, -canvas:], atol=1e-4, rtol=0)


@pytest.mark.parametrize("cache", ["none", "dual"])
def test_look_ahead_equals_the_oracle(engine: Engine, cache: str):
    job = Job("a prompt", {"cache": cache, "block_length": 8, "bypass_threshold": 1.0}, 20)
    assert_matches_oracle(engine, job, engine.run([job])[0])
