"""Number formats on the CPU: dtypes, and quantised checkpoints that vLLM's layers load without our doing."""

from pathlib import Path

import pytest
import torch
from checkpoints import write_llada
from engines import MASK_ID, Engine, Job, running
from quantised import FORMS, quantise

from vllm_infogain.reference import oracle
from vllm_infogain.reference.llada import LLaDA

pytestmark = pytest.mark.engine


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> tuple[Path, LLaDA]:
    path = tmp_path_factory.mktemp("llada")
    return path, write_llada(path)


def first_logits(engine: Engine, model: oracle.Model) -> tuple[torch.Tensor, torch.Tensor]:
    """[masks, vocab] that the engine reads at its first forward, and those of a plain model."""
    seen: list[torch.Tensor] = []
    read = engine.runner._read
    engine.runner._read = lambda logits, asked: seen.append(logits.clone()) or read(logits, asked)
    (output,) = engine.run([Job("a prompt", {"sampler": "entropy"}, 16)])
    ids = torch.tensor([[*output.prompt_token_ids, *[MASK_ID] * 16]])
    with torch.inference_mode():
        return seen[0], model(ids)[0, -16:]


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-4), ("float16", 0.03), ("bfloat16", 0.3)])
def test_every_dtype_serves_the_model_as_exactly_as_it_can(original, dtype: str, error: float):
    path, model = original
    with running(path, model, dtype=dtype) as engine:
        ours, plain = first_logits(engine, model)
    torch.testing.assert_close(ours, plain, atol=error, rtol=0)


# Integer weights are exact but for the dtype; where activations are rounded too, so are the logits.
ERRORS = {form: 1.0 if "activations" in form else 0.03 for form in FORMS}


@pytest.mark.parametrize("form", FORMS)
def test_a_quantised_checkpoint_serves_the_numbers_it_holds(original, tmp_path, form: str):
    path, model = original
    quantised = LLaDA.from_checkpoint(quantise(path, tmp_path, form))
    with running(tmp_path, quantised, dtype="float16") as engine:
        ours, plain = first_logits(engine, quantised)
        _, unquantised = first_logits(engine, model)
    torch.testing.assert_close(ours, plain, atol=ERRORS[form], rtol=0)
    assert (ours - plain).abs().mean() < (ours - unquantised).abs().mean(), "not the quantised numbers"


def test_four_bit_weights_need_a_dtype_of_sixteen(original, tmp_path):
    quantise(original[0], tmp_path, "gptq int4")
    with (
        pytest.raises(ValueError, match="float32 is not supported"),
        running(tmp_path, original[1], dtype="float32"),
    ):
        pass
