"""Train infogain-tiny-image on a tokenizer of `train_tokenizer`: `python -m vllm_infogain.embedded.pictures.train`."""

import argparse
import json
import math
import shutil
import time
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from vllm_infogain.embedded.pictures.card import model_card
from vllm_infogain.embedded.pictures.scenes import scenes, to_network
from vllm_infogain.embedded.pictures.train_tokenizer import reconstructed_right
from vllm_infogain.embedded.pictures.validation import decoded_right
from vllm_infogain.embedded.pictures.words import (
    BITS,
    CODES,
    EOI,
    EOS,
    FIRST_CODE,
    MASK,
    MAX_LENGTH,
    TOKENS,
    encode,
    save_words,
    text_to_image,
)
from vllm_infogain.embedded.train import Muon, initialise
from vllm_infogain.images.magvit import Magvit
from vllm_infogain.reference.llada import LLaDA, LLaDAShape

SHAPE = LLaDAShape(
    d_model=128, n_heads=4, n_kv_heads=4, n_layers=5, mlp_hidden_size=384,
    vocab_size=FIRST_CODE + 2**BITS, embedding_size=FIRST_CODE + 2**BITS,
    mask_token_id=MASK, eos_token_id=EOS, max_sequence_length=MAX_LENGTH, rope_theta=1000.0,
)  # fmt: skip
PICTURES = 60_000  # drawn and encoded once
ROWS = 24  # of each part of a step; the parts differ in their prompts' length
TEST_PROMPTS = 25  # of each category, for the card
PARTS = 4  # of a step; one more has no prompt, for guidance
UNPROMPTED_ROWS = 10
MATRIX_RATE, OTHER_RATE = 0.02, 0.004
WARM_UP = 0.02  # share of the run

Pool = dict[int, tuple[Tensor, Tensor]]  # by prompt length: prompts [n, length] and codes [n, CODES], int64 ids


def build_pool(tokenizer: Magvit, count: int, seed: int) -> Pool:
    """Training scenes: prompts as the model reads them, and the ids of their pictures' codes."""
    groups: dict[int, list[tuple[list[int], Tensor]]] = defaultdict(list)
    pairs = list(scenes("train", count, seed))
    for first in range(0, count, 500):
        part = pairs[first : first + 500]
        with torch.no_grad():
            codes = tokenizer.encode(to_network([picture for _, picture in part])).flatten(1) + FIRST_CODE
        for (requirement, _), ids in zip(part, codes, strict=True):
            prompt = text_to_image(encode(requirement["prompt"]))
            groups[len(prompt)].append((prompt, ids))
    return {
        length: (torch.tensor([prompt for prompt, _ in group]), torch.stack([codes for _, codes in group]))
        for length, group in sorted(groups.items())
    }


def hide(codes: Tensor, generator: torch.Generator) -> Tensor:
    """[n, CODES] bool: each picture's own share cos(pi u / 2), u ~ U(0, 1), is hidden; one code at least."""
    share = torch.cos(torch.rand(len(codes), 1, generator=generator) * math.pi / 2)
    order = torch.rand(codes.shape, generator=generator).argsort(-1).argsort(-1)
    return order < (share * CODES).ceil().clamp_min(1)


def loss_of(model: LLaDA, prompts: Tensor, codes: Tensor, hidden: Tensor) -> Tensor:
    """Mean cross-entropy over the hidden codes, nats."""
    inputs = torch.cat([prompts, codes.masked_fill(hidden, MASK), torch.full((len(codes), 1), EOI)], 1)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(inputs)
    of_codes = logits[:, prompts.shape[1] : -1][hidden].float()
    return F.cross_entropy(of_codes, codes[hidden])


def train(model: LLaDA, pool: Pool, out: Path, minutes: float, seed: int) -> dict:
    """Train in place for so many minutes of the CPU; returns what the card says of the run.

    The rates rise, then decay to 0. The weights go to `out` every 250 steps, so that an interrupted run leaves a model.
    """
    rng, generator = Random(seed), torch.Generator().manual_seed(seed)
    model.train()
    matrices = [p for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not (".blocks." in name and p.ndim == 2)]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    lengths, sizes = list(pool), [len(codes) for _, codes in pool.values()]
    started, step, smooth = time.process_time(), 0, 0.0
    while (progress := (time.process_time() - started) / (60 * minutes)) < 1:
        total = 0.0
        for part in range(PARTS + 1):
            length = rng.choices(lengths, sizes)[0]
            prompts, codes = pool[length]
            rows = ROWS if part else UNPROMPTED_ROWS
            chosen = torch.randint(len(codes), (rows,), generator=generator)
            read = prompts[chosen] if part else torch.tensor([text_to_image([])]).expand(rows, -1)
            share = rows / (PARTS * ROWS + UNPROMPTED_ROWS)
            loss = loss_of(model, read, codes[chosen], hide(codes[chosen], generator)) * share
            loss.backward()
            total += loss.item()
        factor = min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))
        adam.param_groups[0]["lr"] = factor * OTHER_RATE
        muon.step(factor * MATRIX_RATE)
        adam.step()
        model.zero_grad()
        step += 1
        smooth = 0.98 * smooth + 0.02 * total
        if step % 50 == 0:
            seconds = 60 * minutes * progress
            print(f"{seconds:6.0f} s  step {step}  loss {smooth / (1 - 0.98**step):.4f}", flush=True)
        if step % 250 == 0:
            save(model, out)
    model.eval()
    return {"minutes": minutes, "seed": seed, "steps": step, "loss": smooth / (1 - 0.98**step)}


def save(model: LLaDA, out: Path) -> None:
    """The checkpoint of the masked model in MMaDA's form: names and config as released, weights in fp16."""
    model.save_checkpoint(out)
    config = json.loads((out / "config.json").read_text()) | {
        "architectures": ["MMadaModelLM"],
        "model_type": "mmada",
        "torch_dtype": "float16",
        **asdict(TOKENS),
        "mmu_token_id": None,  # it was trained to write pictures, not to read them
    }
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    weights = load_file(out / "model.safetensors")
    halves = {name: weight.half() for name, weight in weights.items()}
    save_file(halves, out / "model.safetensors", metadata={"format": "pt"})


def write_checkpoint(model: LLaDA, tokenizer: Path, run: dict, out: Path) -> None:
    """Everything the model's directory holds, the card with freshly measured shares included."""
    save(model, out)
    save_words(out)
    shutil.copytree(tokenizer, out / "image_tokenizer", dirs_exist_ok=True)
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": EOS}, indent=2) + "\n")
    (out / "training.json").write_text(json.dumps(run, indent=2) + "\n")
    magvit = Magvit.from_checkpoint(tokenizer)
    many, few = (decoded_right(model, magvit, TEST_PROMPTS, steps) for steps in (64, 16))
    card = model_card(model, magvit, run, reconstructed_right(magvit), many, few, TEST_PROMPTS)
    (out / "README.md").write_text(card)
    for category, share in many.items():
        print(f"{category:16} {share:6.1%} {few[category]:6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory that train_tokenizer wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--minutes", type=float, default=32.0, help="training time, of the CPU")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = LLaDA(SHAPE)
    initialise(model)
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    pool = build_pool(Magvit.from_checkpoint(args.tokenizer), PICTURES, args.seed)
    print(f"{sum(len(codes) for _, codes in pool.values())} pictures encoded", flush=True)
    run = train(model, pool, args.out, args.minutes, args.seed)
    write_checkpoint(model, args.tokenizer, run, args.out)


if __name__ == "__main__":
    main()
