"""Accuracy on held-out problems while infogain-tiny is trained, without vLLM: the surest position first, one a step."""

from functools import partial
from random import Random

import torch
from torch import Tensor

from vllm_infogain.embedded import tasks
from vllm_infogain.embedded.tokenizer import MASK, VOCAB, decode_answer, encode_prompt
from vllm_infogain.reference.llada import LLaDA


@torch.no_grad()
def decode(model: LLaDA, prompts: Tensor, canvas: int, per_step: int = 1) -> Tensor:
    """Greedy decoding by entropy at temperature 0: prompts [B, P] int64 -> canvas tokens [B, canvas] int64."""
    batch, start = prompts.shape
    mask = VOCAB[MASK]
    ids = torch.cat([prompts, prompts.new_full((batch, canvas), mask)], 1)
    row = torch.arange(batch, device=ids.device)[:, None]
    for done in range(0, canvas, per_step):
        logits = model(ids)[:, start:]
        log_p = logits.log_softmax(-1)
        entropy = -(log_p.exp() * log_p.clamp_min(-1e9)).sum(-1)  # [B, canvas] nats
        entropy = entropy.masked_fill(ids[:, start:] != mask, torch.inf)
        surest = entropy.topk(min(per_step, canvas - done), largest=False).indices
        logits[..., mask] = -torch.inf  # the mask token is never an answer
        ids[row, start + surest] = logits.argmax(-1).gather(1, surest)
    return ids[:, start:]


def are_solved(model: LLaDA, problems: list[tasks.Problem], per_step: int = 1) -> list[bool]:
    """Whether each problem is solved, on its task's canvas."""
    device = next(model.parameters()).device
    encoded = [encode_prompt(problem.prompt) for problem in problems]
    solved = [False] * len(problems)
    for task, length in sorted({(p.task, len(ids)) for p, ids in zip(problems, encoded, strict=True)}):
        group = [i for i, p in enumerate(problems) if (p.task, len(encoded[i])) == (task, length)]
        prompts = torch.tensor([encoded[i] for i in group], device=device)
        answers = decode(model, prompts, tasks.CANVAS[task], per_step).tolist()
        for i, answer in zip(group, answers, strict=True):
            solved[i] = tasks.check(problems[i], decode_answer(answer))
    return solved


def validation_problems(count: int, seed: int = 1) -> dict[str, list[tasks.Problem]]:
    """`count` problems per task, held out where the task has a split."""
    rng = Random(seed)
    makers = {f"sudoku, {n} givens": partial(tasks.sudoku, rng, "test", n) for n in (0, 2, 4, 6, 8)}
    makers |= {
        "countdown": partial(tasks.countdown, rng, "test"),
        "judgement": partial(tasks.judgement, rng, "test"),
        "multiplication, given factors": partial(tasks.multiplication, rng, False),
        "multiplication, free": partial(tasks.multiplication, rng, True),
    }
    return {name: [make() for _ in range(count)] for name, make in makers.items()}


def accuracies(model: LLaDA, count: int = 300, per_step: int = 1) -> dict[str, float]:
    """Share of problems solved, per task."""
    problems = validation_problems(count)
    return {name: sum(are_solved(model, group, per_step)) / count for name, group in problems.items()}
