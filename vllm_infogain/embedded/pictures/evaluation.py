"""Pictures of held-out prompts through `LLM.generate`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import vllm_infogain
from vllm_infogain.embedded.pictures.scenes import Requirement
from vllm_infogain.embedded.pictures.words import CODES, FIRST_CODE, encode, text_to_image


@dataclass(frozen=True)
class Drawn:
    """One picture."""

    requirement: Requirement
    codes: list[int]  # [CODES], 0 to 255, row by row
    report: dict[str, Any]  # as `vllm_infogain.report` gives it


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
