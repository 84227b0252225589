"""The families' published procedures over ten seeds of random weights, every block and step count: ours write the same.

A procedure is a plain generator, written from what the family's released generation code does: it yields the state
whose probabilities it needs, and is sent those of the plain model, over the whole row, in float64. All of one model's
run in step, one forward for those of equal length. Nothing of ours is in them. Ours then run on the engine, in one
batch; its weights change from seed to seed.

Two things differ from the released code: the mask token and padding of the table are never written, without which
random weights would leave masks behind, and the canvas ends with a block, since SDAR and LLaDA2 decode their last block
whole and cut the answer.
"""

import itertools
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_dream, write_llada, write_sdar
from checkpoints_moe import write_llada2, write_llada_moe
from engines import MASK_ID, Engine, Job, running
from torch import Tensor
from vllm.config import set_current_vllm_config

from vllm_infogain.embedded.tokenizer import EOS, VOCAB

pytestmark = pytest.mark.engine

SEEDS = range(10)
LENGTH = 32
TIE = 2e-6  # of scores; of positions nearer than this, another order of summation may write the other
ENDS = tuple(range(40, 90))  # tokens that end the text, where that matters

Model = Callable[[Tensor], Tensor]  # ids [n, length] -> logits [n, length, columns] of the positions
Procedure = Generator[list[int], Tensor, list[int]]  # yields states, is sent p [length, columns], returns the canvas
Case = tuple[Procedure, dict[str, Any], list[int]]  # how it is published; our parameters and the prompt


class TieError(Exception):
    pass


def run(model: Model, procedures: list[Procedure]) -> list[list[int] | None]:
    """The canvases, by one forward for all states of one length; None where it came to a tie."""
    canvases: dict[int, list[int] | None] = {}
    states = {index: next(procedure) for index, procedure in enumerate(procedures)}
    while states:
        length = min(map(len, states.values()))
        group = [index for index, state in states.items() if len(state) == length]
        p = model(torch.tensor([states[index] for index in group])).double().softmax(-1)
        for index, own in zip(group, p, strict=True):
            try:
                states[index] = procedures[index].send(own)
            except StopIteration as end:
                canvases[index] = end.value
                del states[index]
            except TieError:
                canvases[index] = None
                del states[index]
    return [canvases[index] for index in range(len(procedures))]


def best_tokens(p: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row: the confidence and the id of the most likely token that may be written."""
    p = p.clone()
    p[:, MASK_ID] = -1.0
    p[:, len(VOCAB) :] = -1.0
    return tuple(p.max(-1))


def is_masked(state: list[int]) -> Tensor:
    return torch.tensor(state) == MASK_ID


def split_evenly(count: int, steps: int) -> list[int]:
    """The first steps take the remainder."""
    return [count // steps + (step < count % steps) for step in range(steps)]


def write(state: list[int], scores: Tensor, tokens: Tensor, count: int, tie: float = TIE) -> None:
    """At the `count` masked positions of the best scores [length], of equals the first.

    Raises:
        TieError: which ones they are is for the rounding of the model's fp32 to decide.
    """
    values, order = scores.masked_fill(~is_masked(state), -1e9).sort(descending=True, stable=True)
    if count < len(state) and 0 < values[count - 1] - values[count] < tie:
        raise TieError
    for position in order[:count].tolist():
        assert state[position] == MASK_ID
        state[position] = int(tokens[position])


# LLaDA and LLaDA-MoE: blocks left to right, low-confidence remasking.


def llada(prompt: list[int], steps: int, block: int, ends: tuple[int, ...] = ()) -> Procedure:
    """`ends`: tokens whose confidence is -inf as long as the block has others."""
    state = prompt + [MASK_ID] * LENGTH
    for end in range(len(prompt) + block, len(state) + 1, block):
        for count in split_evenly(block, steps * block // LENGTH):
            confidence, tokens = best_tokens((yield list(state)))
            confidence[end:] = -2.0
            waits = torch.isin(tokens, torch.tensor(ends, dtype=torch.int64))
            masked = is_masked(state)
            masked[end:] = False
            if not waits[masked].all():
                confidence[waits & masked] = -1.0
            write(state, confidence, tokens, count)
    return state[len(prompt) :]


def llada_cases(seed: int) -> Iterator[Case]:
    prompt = list(range(10, 19))
    for block in (8, 16, 32):
        for steps in range(LENGTH // block, LENGTH + 1, LENGTH // block):  # all that the blocks share evenly
            knobs = {"sampler": "confidence", "schedule": "linear", "steps": steps, "block_length": block}
            yield llada(prompt, steps, block), knobs, prompt


def llada_cfg(prompt: list[int], steps: int, block: int, scale: float) -> Procedure:
    """With `cfg_scale`: beside each state one whose prompt is masked. Logarithms of probabilities are logits but for a
    constant of each row, which a softmax does not see."""
    state = prompt + [MASK_ID] * LENGTH
    for end in range(len(prompt) + block, len(state) + 1, block):
        for count in split_evenly(block, steps * block // LENGTH):
            logits = (yield list(state)).log()
            without = (yield [MASK_ID] * len(prompt) + state[len(prompt) :]).log()
            confidence, tokens = best_tokens((without + (scale + 1) * (logits - without)).softmax(-1))
            confidence[end:] = -2.0
            write(state, confidence, tokens, count, tie=(1 + 2 * scale) * TIE)
    return state[len(prompt) :]


def llada_cfg_cases(seed: int) -> Iterator[Case]:
    prompt = list(range(10, 19 + seed))
    for scale in (0.5, 2.0):
        for block, steps in ((32, 32), (32, 13), (16, 16), (8, 32)):
            knobs = {"sampler": "confidence", "schedule": "linear", "steps": steps, "block_length": block}
            yield llada_cfg(prompt, steps, block, scale), knobs | {"guidance_scale": scale}, prompt


def llada_eos_cases(seed: int) -> Iterator[Case]:
    """Many tokens end the text, so that ends and others come mixed."""
    prompt = list(range(20, 25))
    for block, steps in ((32, 32), (32, 16), (32, 11), (16, 32), (8, 16)):
        knobs = {"sampler": "confidence", "schedule": "linear", "steps": steps, "block_length": block, "eos_last": True}
        yield llada(prompt, steps, block, (VOCAB[EOS], *ENDS)), knobs, prompt


# Dream: a global canvas, whose times fall from 1 to 1e-3.


def dream(prompt: list[int], steps: int, algorithm: str) -> Procedure:
    state = prompt + [MASK_ID] * LENGTH
    times = torch.linspace(1, 1e-3, steps + 1)
    for step in range(steps):
        masked = is_masked(state).sum() / 1  # fp32
        count = int(masked * (1 - times[step + 1] / times[step])) if step < steps - 1 else int(masked)
        p = yield list(state)
        confidence, tokens = best_tokens(p)
        if algorithm == "topk_margin":
            first, second = p.topk(2).values.unbind(-1)
            confidence = first - second
        elif algorithm == "entropy":
            confidence = (p * (p + 1e-10).log()).sum(-1)
        write(state, confidence, tokens, count)
    return state[len(prompt) :]


def dream_cases(seed: int) -> Iterator[Case]:
    prompt = list(range(10, 19))
    for algorithm, sampler in {"entropy": "entropy", "maskgit_plus": "confidence", "topk_margin": "margin"}.items():
        for steps in (LENGTH, 48, *range(1 + seed, LENGTH, len(SEEDS))):  # every count, spread over the seeds
            knobs = {"sampler": sampler, "schedule": "dream", "steps": steps, "block_length": 0}
            yield dream(prompt, steps, algorithm), knobs, prompt


# SDAR and LLaDA2: blocks at absolute positions, the rest of the prompt fixed in the first one.


def block_causal(prompt: list[int], length: int, block: int, steps: int, threshold: float | None) -> Procedure:
    """`steps` per block, which share its length, whatever of it is prompt. With a threshold: all that are surer, if
    they are as many as the step's share, else the best ones. Without: the best ones."""
    state = prompt + [MASK_ID] * length
    assert len(state) % block == 0
    for end in range(len(prompt) // block * block + block, len(state) + 1, block):
        seen = state[:end]
        for count in split_evenly(block, steps):
            masked = is_masked(seen)
            if not masked.any():
                break
            confidence, tokens = best_tokens((yield list(seen)))
            sure = 0 if threshold is None else int((confidence[masked] > threshold).sum())
            write(seen, confidence, tokens, max(sure, min(count, int(masked.sum()))))
        state[:end] = seen
    return state[len(prompt) :]


def block_causal_cases(blocks: dict[int, list[int]], thresholds: list[float]) -> Iterator[Case]:
    """`blocks`: by block length, the steps per block."""
    for prompt_length, length in ((8, 24), (13, 19), (37, 27)):
        prompt = [10 + index % 7 for index in range(prompt_length)]
        for block, step_counts in blocks.items():
            for steps, threshold in itertools.product(step_counts, [None, *thresholds]):
                knobs = {"sampler": "confidence"} if threshold is None else {"sampler": "threshold"}
                knobs |= {} if threshold is None else {"threshold": threshold}
                knobs |= {"schedule": "per_block", "steps": steps, "block_length": block}
                yield block_causal(prompt, length, block, steps, threshold), knobs, prompt


def sdar_cases(seed: int) -> Iterator[Case]:
    return block_causal_cases({4: [1, 2, 3, 4], 16: [1, 3, 5, 8, 16]}, [0.9, 0.3])


def llada2_cases(seed: int) -> Iterator[Case]:
    """Of block 32 every step count, spread over the seeds, and two in all of them."""
    return block_causal_cases({16: [6], 32: [8, 32, *range(1 + seed, 32, len(SEEDS))]}, [0.95, 0.3])


# Ours.

FAMILIES: dict[str, tuple[Callable[..., Model], list[Callable[[int], Iterator[Case]]]]] = {
    "LLaDA, its table larger than its vocabulary": (
        partial(write_llada, embedding_size=160),
        [llada_cases, llada_eos_cases, llada_cfg_cases],
    ),
    "LLaDA-MoE": (write_llada_moe, [llada_cases]),
    "Dream": (write_dream, [dream_cases]),
    "SDAR": (write_sdar, [sdar_cases]),
    "LLaDA2": (write_llada2, [llada2_cases]),
}


def load_weights(engine: Engine, checkpoint: Path) -> None:
    """Load another checkpoint of the same shape into the running engine.

    The model is built anew over the same KV tensors: vLLM's reloading in place knows no experts that its CPU kernels
    have repacked.
    """
    config, runner = engine.llm.llm_engine.vllm_config, engine.runner
    layers = config.compilation_config.static_forward_context
    before = dict(layers)
    layers.clear()
    config.model_config.model = str(checkpoint)
    with set_current_vllm_config(config):
        runner.load_model()
    for name, layer in before.items():
        if hasattr(layer, "kv_cache"):
            # With what vLLM tells an attention layer once its KV tensors are there.
            told = {key: value for key, value in vars(layer).items() if key not in vars(layers[name])}
            vars(layers[name]).update(told, kv_cache=layer.kv_cache)
    runner.graphs.model = runner.model
    engine.scheduler.reset_prefix_cache()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_token_is_that_of_the_published_procedure(family: str, tmp_path: Path):
    write_checkpoint, kinds = FAMILIES[family]
    models = [write_checkpoint(tmp_path / str(seed), seed=seed) for seed in SEEDS]
    with running(tmp_path / "0", models[0]) as engine:
        for seed in SEEDS:
            load_weights(engine, tmp_path / str(seed))
            cases = [case for kind in kinds for case in kind(seed)]
            expected = published(partial(write_checkpoint, tmp_path / "plain", seed=seed), cases)
            told = [(case, canvas) for case, canvas in zip(cases, expected, strict=True) if canvas is not None]
            assert len(told) >= 0.9 * len(cases), "ties are rare"
            jobs = []
            for (_, knobs, prompt), canvas in told:
                fields = {"stop_token_ids": list(ENDS)} if "eos_last" in knobs else {}
                jobs.append(Job(prompt, knobs, len(canvas), fields=fields))
            for job, output, (_, canvas) in zip(jobs, engine.run(jobs), told, strict=True):
                # A stop token ends an answer; what the procedure writes behind it is not told.
                stop = next((place for place, token in enumerate(canvas) if job.fields and token in ENDS), len(canvas))
                assert list(output.outputs[0].token_ids) == canvas[: stop + 1], (seed, job)


def published(write_model: Callable[..., Model], cases: list[Case]) -> list[list[int] | None]:
    """The canvases of all cases. A block-causal model attends by one block length: one model for each."""
    canvases: dict[int, list[int] | None] = {}
    by_schedule = [knobs["block_length"] if knobs["schedule"] == "per_block" else 0 for _, knobs, _ in cases]
    for block in sorted({*by_schedule}):
        own = [index for index, its in enumerate(by_schedule) if its == block]
        model = write_model(**({"block_size": block} if block else {}))
        canvases |= zip(own, run(model, [cases[index][0] for index in own]), strict=True)
    return [canvases[index] for index in range(len(cases))]
