"""Share of right pictures while infogain-tiny-image is trained, without vLLM: the likeliest drawn codes first."""

import math
from collections import defaultdict

import torch
from torch import Tensor

from vllm_infogain.embedded.pictures.judging import are_right, held_out, pictures, shares
from vllm_infogain.embedded.pictures.scenes import Requirement
from vllm_infogain.embedded.pictures.words import BITS, CODES, EOI, FIRST_CODE, MASK, encode, text_to_image
from vllm_infogain.images.magvit import Magvit
from vllm_infogain.reference.llada import LLaDA

GUIDANCE = 1.0
TEMPERATURE = 0.4  # of tokens, and of positions


@torch.no_grad()
def decode(model: LLaDA, prompts: Tensor, steps: int, generator: torch.Generator) -> Tensor:
    """Prompts [n, length] int64 -> codes [n, CODES] int64, by confidence, as many as a cosine leaves in every step."""
    count, start = prompts.shape
    codes = torch.full((count, CODES), MASK)
    behind = torch.full((count, 1), EOI)
    guide = torch.tensor([text_to_image([])]).expand(count, -1)
    for step in range(1, steps + 1):
        with torch.autocast("cpu", torch.bfloat16):
            own = model(torch.cat([prompts, codes, behind], 1))[:, start:-1, FIRST_CODE : FIRST_CODE + 2**BITS]
            other = model(torch.cat([guide, codes, behind], 1))[:, guide.shape[1] : -1]
        own, other = own.float(), other[..., FIRST_CODE : FIRST_CODE + 2**BITS].float()
        logits = own + GUIDANCE * (own - other)
        noise = -torch.empty_like(logits).exponential_(generator=generator).log()
        drawn = (logits / TEMPERATURE + noise).argmax(-1)
        # Without noise the plain ground would be written first, until no room is left for what was asked.
        sure = logits.softmax(-1).gather(-1, drawn[..., None])[..., 0] / TEMPERATURE
        sure = sure - torch.empty_like(sure).exponential_(generator=generator).log()
        sure = sure.masked_fill(codes != MASK, -torch.inf)
        left = min(math.floor(CODES * math.cos(math.pi / 2 * step / steps)), CODES - step) if step < steps else 0
        written = sure.topk(int((codes[0] == MASK).sum()) - max(0, left)).indices
        codes.scatter_(1, written, drawn.gather(1, written) + FIRST_CODE)
    return codes - FIRST_CODE


def decoded_right(model: LLaDA, tokenizer: Magvit, per_category: int, steps: int, seed: int = 0) -> dict[str, float]:
    """Share of held-out prompts whose picture is right, by category."""
    generator = torch.Generator().manual_seed(seed)
    wanted = held_out(per_category)
    groups = defaultdict(list)
    for requirement in wanted:
        prompt = text_to_image(encode(requirement["prompt"]))
        groups[len(prompt)].append((prompt, requirement))
    right: list[bool] = []
    asked: list[Requirement] = []
    for group in groups.values():
        theirs = [requirement for _, requirement in group]
        codes = decode(model, torch.tensor([prompt for prompt, _ in group]), steps, generator)
        right += are_right(pictures(tokenizer, codes.tolist()), theirs)
        asked += theirs
    return shares(right, asked)
