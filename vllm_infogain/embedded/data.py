"""Training batches of infogain-tiny: pools of encoded problems, canvas lengths and masks."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from random import Random

import torch
from torch import Tensor

from vllm_infogain.embedded import tasks
from vllm_infogain.embedded.tokenizer import EOS, MASK, MAX_LENGTH, VOCAB, encode, encode_prompt

EOS_FILL_WEIGHT = 0.1  # loss weight of the EOS tokens after the first: easy, and many
BLOCK_PATTERN = 0.25  # share of samples masked left to right in blocks
CANONICAL_CANVAS = 0.5  # share of batches with the task's own canvas length

GENERATORS: dict[str, Callable[[Random], tasks.Problem]] = {
    "sudoku": partial(tasks.sudoku, split="train"),
    "countdown": partial(tasks.countdown, split="train"),
    "multiplication": tasks.multiplication,
    "judgement": partial(tasks.judgement, split="train"),
}


@dataclass(frozen=True)
class Bucket:
    """Problems of one task whose prompts have one length, so that they batch without padding."""

    task: str
    prompt_length: int  # tokens, specials included
    tokens: Tensor  # [problems, MAX_LENGTH] uint8: prompt, answer, EOS to the end
    answer_end: Tensor  # [problems] int64: position of the first EOS


@dataclass(frozen=True)
class Batch:
    inputs: Tensor  # [rows, length] int64, masks drawn
    targets: Tensor  # [rows, length] int64
    weights: Tensor  # [rows, length] fp32: 0 where nothing is masked


def build_pool(task: str, size: int, seed: int, device: torch.device) -> list[Bucket]:
    """`size` training problems of the task, grouped by prompt length."""
    rng = Random(f"{task} {seed}")
    groups: dict[int, list[tuple[list[int], int]]] = defaultdict(list)
    for _ in range(size):
        problem = GENERATORS[task](rng)
        prompt, answer = encode_prompt(problem.prompt), encode(problem.answer)
        ids = prompt + answer
        groups[len(prompt)].append((ids + [VOCAB[EOS]] * (MAX_LENGTH - len(ids)), len(ids)))
    return [
        Bucket(
            task,
            length,
            torch.tensor([ids for ids, _ in group], dtype=torch.uint8, device=device),
            torch.tensor([end for _, end in group], device=device),
        )
        for length, group in sorted(groups.items())
    ]


def _masked(rows: int, canvas: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Which canvas tokens are hidden, [rows, canvas] bool; at least one per row.

    Each token is hidden with the row's own ratio t, t uniform in (0, 1]. Rows with a block pattern keep a clean
    prefix, hide the whole suffix, and use t in between: what block-by-block decoding meets.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    ratio = (torch.arange(rows, device=device)[:, None] + 1 - uniform(rows, 1)) / rows  # stratified over the rows
    position = torch.arange(canvas, device=device)
    hidden = uniform(rows, canvas) < ratio
    start, end = (uniform(rows, 2) * (canvas + 1)).long().sort(-1).values.split(1, -1)
    blocks = (hidden & (position >= start)) | (position >= end)
    hidden = torch.where(uniform(rows, 1) < BLOCK_PATTERN, blocks, hidden)
    one = (uniform(rows, 1) * canvas).long() == position
    return torch.where(hidden.any(-1, keepdim=True), hidden, one)


def draw_batch(pool: list[Bucket], rows: int, rng: Random, generator: torch.Generator) -> Batch:
    """Rows of one prompt length and one canvas length, masked, ready for a training step."""
    bucket = rng.choices(pool, weights=[len(b.tokens) for b in pool])[0]
    device = bucket.tokens.device
    chosen = torch.randint(len(bucket.tokens), (rows,), generator=generator, device=device)
    answer_end = bucket.answer_end[chosen]
    shortest = int(answer_end.max()) + 1 - bucket.prompt_length  # device sync; room for the answer and one EOS
    canonical = rng.random() < CANONICAL_CANVAS
    longest = MAX_LENGTH - bucket.prompt_length
    canvas = tasks.CANVAS[bucket.task] if canonical else rng.randint(shortest, longest)

    length = bucket.prompt_length + canvas
    targets = bucket.tokens[chosen, :length].long()
    hidden = torch.zeros(rows, length, dtype=torch.bool, device=device)
    hidden[:, bucket.prompt_length :] = _masked(rows, canvas, generator, device)
    fill = torch.arange(length, device=device) > answer_end[:, None]
    weights = hidden.float() * torch.where(fill, EOS_FILL_WEIGHT, 1.0)
    return Batch(targets.masked_fill(hidden, VOCAB[MASK]), targets, weights)
