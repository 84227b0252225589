"""The engine on a pretended GPU: whole requests of every kind give the CPU's tokens, and a forward waits once.

What is replaced is what CUDA would run itself: the model, vLLM's attention metadata and the Triton kernels. All else is
the product's own code. It runs in a process of its own, in which this file is the script.
"""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_llada, write_sdar
from engines import running
from pretended_cuda import WAITED, Pretended, PretendedCuda, pretended_model

from vllm_infogain.request.params import SAMPLERS

pytestmark = pytest.mark.engine

PROMPTS = ["4*7+2=", "sudoku 1...|..2.|.3..|...4"]
LOOK = {"sampler": "info_gain", "bypass_threshold": 1.0, "num_candidates": 4}
BLOCKS = {**LOOK, "block_length": 5}
PLAIN = {"sampler": "entropy"}

# What LLaDA decodes: knobs and fields of SamplingParams.
FULL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "info_gain": ({**LOOK, "block_length": 0}, {}),
    "info_gain, bypassing": ({"sampler": "info_gain", "tokens_per_step": 2}, {}),
    "info_gain, pruning": ({**LOOK, "prune": True, "return_trajectory": True}, {}),
    "info_gain, prefix cache": ({**BLOCKS, "cache": "prefix"}, {}),
    "info_gain, dual cache": ({**BLOCKS, "cache": "dual", "cache_refresh": 2}, {}),
    "info_gain, sequence, sum": ({**BLOCKS, "uncertainty_scope": "sequence", "state_uncertainty": "sum"}, {}),
    "lookum": ({"sampler": "lookum"}, {}),
    "adaptive": ({"sampler": "adaptive", "bypass_threshold": 0.3}, {}),
    "beam": ({"sampler": "beam", "beam_width": 2, "num_candidates": 3}, {}),
    "beam, dual cache": ({"sampler": "beam", "beam_width": 2, "num_candidates": 3, "cache": "dual"}, {}),
    "best_of_n": ({"sampler": "best_of_n", "num_generations": 2}, {}),
    "entropy": (PLAIN, {}),
    "confidence": ({"sampler": "confidence", "schedule": "cosine", "steps": 6}, {}),
    "margin": ({"sampler": "margin"}, {}),
    "uniform": ({"sampler": "uniform"}, {}),
    "ar": ({"sampler": "ar"}, {}),
    "pc": ({"sampler": "pc"}, {}),
    "klass": ({"sampler": "klass"}, {}),
    "klass, dual cache": ({"sampler": "klass", "cache": "dual", "block_length": 5}, {}),
    "maskgit": ({"sampler": "maskgit"}, {}),
    "eb": ({"sampler": "eb"}, {}),
    "threshold": ({"sampler": "threshold"}, {}),
    "factor": ({"sampler": "factor"}, {}),
    "top_k, top_p and min_p": (LOOK, {"top_k": 5, "top_p": 0.9, "min_p": 0.01}),
    "top_p without look-ahead": (PLAIN, {"top_p": 0.8}),
    "logprobs": (LOOK, {"logprobs": 3}),
    "logprobs of drawn tokens": (PLAIN, {"logprobs": 3, "top_k": 4}),
    "logprob_token_ids": (PLAIN, {"logprob_token_ids": [5, 6]}),
    "logit_bias": (LOOK, {"logit_bias": {5: 2.0}}),
    "allowed_token_ids": (PLAIN, {"allowed_token_ids": list(range(4, 30))}),
    "min_tokens": (LOOK, {"min_tokens": 5, "ignore_eos": False}),
    "bad_words": (PLAIN, {"bad_words": ["12", "3"]}),
    "eos_penalty": ({**PLAIN, "eos_penalty": 1.0}, {}),
    "a grammar": (PLAIN, {"structured_outputs": "[1-4 ]{3,9}"}),
    "a grammar, looking ahead": (LOOK, {"structured_outputs": "[1-4 ]{3,9}"}),
}
# What SDAR decodes, block by block.
BLOCK_CAUSAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "SDAR, info_gain": (LOOK, {}),
    "SDAR, beam": ({"sampler": "beam", "beam_width": 2, "num_candidates": 3}, {}),
    "SDAR, threshold": ({"sampler": "threshold"}, {"logprobs": 2, "top_p": 0.9}),
    "SDAR, a grammar": (PLAIN, {"structured_outputs": "[1-4 ]{3,9}"}),
}
EVERYTHING = "all of LLaDA's in one batch"
READ_BACK = "a copy to the host, sampling/transfer.py"


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, Any]:
    """By case: what it gave on the CPU and on the device, how many turns its logits took, what the host waited for."""
    path = tmp_path_factory.mktemp("twin")
    child = subprocess.run([sys.executable, __file__, str(path)], capture_output=True, text=True, timeout=500)
    assert child.returncode == 0, (child.stdout + child.stderr)[-8000:]
    return json.loads((path / "found.json").read_text())


@pytest.mark.parametrize("case", [*FULL, EVERYTHING, *BLOCK_CAUSAL])
def test_a_request_on_the_device_gives_the_tokens_of_the_cpu_and_waits_once_per_forward(found, case):
    of_case = found[case]
    assert of_case["on the device"] == of_case["on the CPU"]
    assert of_case["turns"] > 0
    assert of_case["waits"] == {READ_BACK: of_case["turns"]}


def test_every_sampler_runs_on_the_device():
    assert {knobs["sampler"] for knobs, _ in FULL.values()} == set(SAMPLERS)


@contextlib.contextmanager
def pretended() -> Iterator[torch.Tensor]:
    """A tensor of the device, with nothing waited for yet."""
    WAITED.clear()
    with PretendedCuda():
        yield Pretended(torch.arange(4.0))


HOST = torch.arange(4)


@pytest.mark.parametrize(
    "wait",
    [
        lambda here: torch.tensor(-torch.inf, device=here.device),
        lambda here: torch.as_tensor([1, 2], device=here.device),
        lambda here: HOST.to(here.device),
        lambda here: HOST.to(here.device, non_blocking=True),  # not pinned
        lambda here: HOST.pin_memory().to(here.device),
        lambda here: here[HOST],
        lambda here: here[here > 1],
        lambda here: here.copy_(HOST),
        lambda here: here.cpu(),
        lambda here: here.tolist(),
        lambda here: here.sum().item(),
        lambda here: bool(here[0] > 1),
        lambda here: here.nonzero(),
    ],
)
def test_the_pretended_device_counts_what_a_host_would_wait_for(wait):
    with pretended() as here:
        wait(here)
    assert WAITED.total() == 1, WAITED


def test_the_pretended_device_counts_nothing_that_is_only_queued():
    with pretended() as here:
        index = HOST.pin_memory().to(here.device, non_blocking=True)
        here[index] = 2 * here[index] + torch.arange(4, device=here.device) - here.new_full((), 3.0)
    assert not WAITED
    assert here.held.tolist() == [-3.0, 0.0, 3.0, 6.0]


def test_the_pretended_device_refuses_tensors_of_the_host_among_its_own():
    with pretended() as here, pytest.raises(RuntimeError, match="of cuda:0 and of the CPU"):
        here + HOST


# From here on in the child.


def sampling_params(knobs: dict[str, Any], fields: dict[str, Any], temperature: float):
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    fields = {"ignore_eos": True} | fields
    if "structured_outputs" in fields:
        fields["structured_outputs"] = StructuredOutputsParams(regex=fields["structured_outputs"])
    return SamplingParams(max_tokens=10, temperature=temperature, seed=7, extra_args=knobs, **fields)


def answer(engine: Any, cases: list[tuple[dict, dict]]) -> list:
    """Tokens, log-probabilities and J of every case, prompt and temperature, in one batch."""
    import vllm_infogain

    asked = [(prompt, *case, temperature) for case in cases for temperature in (0.0, 0.8) for prompt in PROMPTS]
    params = [sampling_params(*rest) for _, *rest in asked]
    outputs = engine.llm.generate([prompt for prompt, *_ in asked], params, use_tqdm=False)
    return [
        [
            output.outputs[0].token_ids,
            [[[token, entry.logprob] for token, entry in place.items()] for place in output.outputs[0].logprobs or ()],
            vllm_infogain.report(output)["cumulative_entropy"],
        ]
        for output in outputs
    ]


def run_cases(checkpoint: Path, model: Any, cases: dict[str, list]) -> dict[str, dict]:
    with running(checkpoint, model, max_logprobs=20) as engine:
        found = {case: {"on the CPU": answer(engine, parts)} for case, parts in cases.items()}
        with pretended_model(engine.runner) as turns:
            for case, parts in cases.items():
                turns.clear()
                WAITED.clear()
                found[case] |= {"on the device": answer(engine, parts), "turns": len(turns), "waits": dict(WAITED)}
    return found


def main(path: Path) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR"}
    cases = {case: [parts] for case, parts in FULL.items()} | {EVERYTHING: list(FULL.values())}
    found = run_cases(path / "llada", write_llada(path / "llada"), cases)
    blocks = {case: [parts] for case, parts in BLOCK_CAUSAL.items()}
    found |= run_cases(path / "sdar", write_sdar(path / "sdar"), blocks)
    (path / "found.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
