"""Held-out prompts, pictures of codes, and whether they are right by GenEval's rules. No vLLM."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from vllm_infogain.embedded.pictures.scenes import Requirement, detect, requirements
from vllm_infogain.embedded.pictures.words import SIDE_CODES
from vllm_infogain.images.geneval import CATEGORIES, faults
from vllm_infogain.images.magvit import Magvit, pixels

HELD_OUT_SEED = 20260218


def held_out(per_category: int) -> list[Requirement]:
    """So many prompts of each of the six categories that training never saw, the same ones at every call.

    A category with fewer prompts repeats them: each has a seed of its own, so no two pictures are the same.
    """
    chosen = []
    for category in CATEGORIES:
        lines = list(requirements("test")[category])
        random.Random(HELD_OUT_SEED).shuffle(lines)
        chosen += [lines[index % len(lines)] for index in range(per_category)]
    return chosen


@torch.no_grad()
def pictures(tokenizer: Magvit, codes: Sequence[Sequence[int]]) -> np.ndarray:
    """Codes [n, CODES] -> pixels [n, SIDE, SIDE, 3], uint8."""
    parts = torch.tensor(codes).view(-1, SIDE_CODES, SIDE_CODES).split(256)
    return torch.cat([pixels(tokenizer.decode(part)) for part in parts]).numpy()


def are_right(shown: np.ndarray, wanted: Sequence[Requirement]) -> list[bool]:
    """Whether each picture holds what its prompt asks for."""
    return [not faults(detect(picture), requirement) for picture, requirement in zip(shown, wanted, strict=True)]


def shares(right: Sequence[bool], wanted: Sequence[Requirement]) -> dict[str, float]:
    """Share of right pictures by category; there is one at least of each."""
    counts = dict.fromkeys(CATEGORIES, 0)
    for ok, requirement in zip(right, wanted, strict=True):
        counts[requirement["tag"]] += ok
    return {name: count / sum(one["tag"] == name for one in wanted) for name, count in counts.items()}


def picture_tokenizer(model: Path) -> Magvit:
    """The tokenizer of pictures in a checkpoint's directory."""
    return Magvit.from_checkpoint(model / "image_tokenizer")
