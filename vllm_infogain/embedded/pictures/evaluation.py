"""Pictures of held-out prompts through `LLM.generate`, judged by GenEval's rules."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import vllm_infogain
from vllm_infogain.embedded.pictures.scenes import Requirement, detect, requirements
from vllm_infogain.embedded.pictures.words import CODES, FIRST_CODE, SIDE_CODES, encode, text_to_image
from vllm_infogain.images.geneval import CATEGORIES, faults
from vllm_infogain.images.magvit import Magvit, pixels

HELD_OUT_SEED = 20260218


@dataclass(frozen=True)
class Drawn:
    """One picture."""

    requirement: Requirement
    codes: list[int]  # [CODES], 0 to 255, row by row
    report: dict[str, Any]  # as `vllm_infogain.report` gives it


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


def draw_all(
    llm: Any,
    wanted: Sequence[Requirement],
    knobs: Mapping[str, Any],
    *,
    temperature: float = 0.4,
    seed: int = 0,
    use_tqdm: bool = False,
) -> list[Drawn]:
    """Every prompt's picture, all in one batch, each with a seed of its own: `seed` + its index."""
    from vllm import SamplingParams

    params = [
        SamplingParams(
            max_tokens=CODES, temperature=temperature, seed=seed + index, detokenize=False,
            extra_args={"image": True, **knobs},
        )
        for index in range(len(wanted))
    ]  # fmt: skip
    prompts = [{"prompt_token_ids": text_to_image(encode(requirement["prompt"]))} for requirement in wanted]
    outputs = llm.generate(prompts, params, use_tqdm=use_tqdm)
    return [
        Drawn(requirement, [token - FIRST_CODE for token in output.outputs[0].token_ids], vllm_infogain.report(output))
        for requirement, output in zip(wanted, outputs, strict=True)
    ]


@torch.no_grad()
def pictures(tokenizer: Magvit, codes: Sequence[Sequence[int]]) -> np.ndarray:
    """Codes [n, CODES] -> pixels [n, SIDE, SIDE, 3], uint8."""
    parts = torch.tensor(codes).view(-1, SIDE_CODES, SIDE_CODES).split(256)
    return torch.cat([pixels(tokenizer.decode(part)) for part in parts]).numpy()


def are_right(shown: np.ndarray, wanted: Sequence[Requirement]) -> list[bool]:
    """Whether each picture holds what its prompt asks for."""
    return [not faults(detect(picture), requirement) for picture, requirement in zip(shown, wanted, strict=True)]


def picture_tokenizer(model: Path) -> Magvit:
    """The tokenizer of pictures in a checkpoint's directory."""
    return Magvit.from_checkpoint(model / "image_tokenizer")
