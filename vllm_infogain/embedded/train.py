"""Train infogain-tiny from nothing: `python -m vllm_infogain.embedded.train --out DIR --minutes 40`."""

import argparse
import json
import time
from collections import defaultdict
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vllm_infogain.embedded.card import model_card
from vllm_infogain.embedded.data import Batch, build_pool, draw_batch
from vllm_infogain.embedded.tokenizer import EOS, MASK, MAX_LENGTH, VOCAB, save_tokenizer
from vllm_infogain.embedded.validation import accuracies
from vllm_infogain.reference.llada import LLaDA, LLaDAShape

SHAPE = LLaDAShape(
    d_model=128,
    n_heads=4,
    n_kv_heads=4,
    n_layers=6,
    mlp_hidden_size=384,
    vocab_size=len(VOCAB),
    embedding_size=len(VOCAB),
    mask_token_id=VOCAB[MASK],
    eos_token_id=VOCAB[EOS],
    max_sequence_length=MAX_LENGTH,
    rope_theta=1000.0,
)
ROWS = {"sudoku": 32, "countdown": 48, "multiplication": 12, "judgement": 36}  # of each training step
POOL = {"sudoku": 300_000, "countdown": 400_000, "multiplication": 10_000, "judgement": 400_000}
MATRIX_RATE, OTHER_RATE = 0.02, 0.004
WARM_UP = 0.02  # share of the run
TEST_PROBLEMS = 300  # per task, for the card
RUNS = "training.json"  # what was run, in order; the card is written from it


def orthogonalise(update: Tensor) -> Tensor:
    """Newton-Schulz: matrices [n, rows, columns] with their singular values pushed to about 1 (Muon's quintic)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    tall = update.shape[-2] > update.shape[-1]
    x = (update.mT if tall else update).bfloat16()
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(5):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).float()


class Muon:
    """Momentum whose update is orthogonalised; for the matrices inside the blocks."""

    def __init__(self, params: list[nn.Parameter], momentum: float = 0.95, weight_decay: float = 0.01):
        self.momentum, self.weight_decay = momentum, weight_decay
        self.groups: dict[torch.Size, list[tuple[nn.Parameter, Tensor]]] = defaultdict(list)  # by shape, with means
        for param in params:
            self.groups[param.shape].append((param, torch.zeros_like(param)))

    @torch.no_grad()
    def step(self, rate: float) -> None:
        for (rows, columns), group in self.groups.items():
            updates = []
            for param, mean in group:
                assert param.grad is not None
                mean.lerp_(param.grad, 1 - self.momentum)
                updates.append(param.grad.lerp(mean, self.momentum))  # Nesterov
            scale = max(1, rows / columns) ** 0.5
            for (param, _), update in zip(group, orthogonalise(torch.stack(updates)), strict=True):
                param.mul_(1 - rate * self.weight_decay).add_(update, alpha=-rate * scale)


def initialise(model: LLaDA) -> None:
    """Blocks start as the identity, the head as uniform; the rest at the scale that Muon and AdamW expect."""
    for name, param in model.named_parameters():
        if name.endswith(("attn_out.weight", "ff_out.weight")):
            nn.init.zeros_(param)
        elif name.endswith("wte.weight"):
            nn.init.normal_(param, std=0.2)


def loss_of(model: LLaDA, batch: Batch) -> Tensor:
    """Weighted mean of the cross-entropy over the masked tokens, nats."""
    device = batch.inputs.device.type
    with torch.autocast(device, torch.bfloat16):
        logits = model(batch.inputs)
    losses = F.cross_entropy(logits.flatten(0, 1).float(), batch.targets.flatten(), reduction="none")
    weights = batch.weights.flatten()
    return (losses * weights).sum() / weights.sum()


def train(
    model: LLaDA, out: Path, minutes: float, device: torch.device, seed: int, rows_scale: int, peak: float
) -> dict:
    """Train the model in place for the given time; returns what the card says of the run.

    The rates rise to `peak` times their values and decay to 0. Weights go to `out` every 500 steps, so that an
    interrupted run leaves a model.
    """
    rng = Random(seed)
    generator = torch.Generator(device).manual_seed(seed)
    model.to(device).train()
    matrices = [p for name, p in model.named_parameters() if ".blocks." in name and p.ndim == 2]
    others = [p for name, p in model.named_parameters() if not (".blocks." in name and p.ndim == 2)]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, betas=(0.9, 0.98), weight_decay=0.0)
    pools = {task: build_pool(task, size, seed, device) for task, size in POOL.items()}
    print(f"{sum(p.numel() for p in model.parameters())} parameters; pools ready", flush=True)

    compiled_loss = torch.compile(loss_of, dynamic=True)  # lengths differ from batch to batch
    started, step = time.monotonic(), 0
    smooth: dict[str, float] = {}
    while (progress := (time.monotonic() - started) / (60 * minutes)) < 1:
        factor = peak * min(progress / WARM_UP, (1 - progress) / (1 - WARM_UP))
        losses = {}
        for task, rows in ROWS.items():
            losses[task] = compiled_loss(model, draw_batch(pools[task], rows * rows_scale, rng, generator))
            losses[task].backward()
        adam.param_groups[0]["lr"] = factor * OTHER_RATE
        muon.step(factor * MATRIX_RATE)
        adam.step()
        model.zero_grad()
        step += 1
        if step % 20 == 0:
            now = {task: loss.item() for task, loss in losses.items()}
            smooth = {task: 0.9 * smooth.get(task, loss) + 0.1 * loss for task, loss in now.items()}
        if step % 200 == 0:
            text = "  ".join(f"{task} {value:.3f}" for task, value in smooth.items())
            print(f"{60 * minutes * progress:6.0f} s  step {step}  {text}", flush=True)
        if step % 500 == 0:
            model.save_checkpoint(out)
    model.eval()
    scaled = {task: rows * rows_scale for task, rows in ROWS.items()}
    settings = {"minutes": minutes, "device": device.type, "seed": seed, "peak": peak, "rows": scaled}
    return settings | {"steps": step, "losses": smooth}


def write_checkpoint(model: LLaDA, runs: list[dict], out: Path) -> None:
    """Everything the model's directory holds, the card with freshly measured accuracies included."""
    model.save_checkpoint(out)
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": VOCAB[EOS]}, indent=2) + "\n")
    (out / RUNS).write_text(json.dumps(runs, indent=2) + "\n")
    save_tokenizer(out)
    one, two = (accuracies(model, TEST_PROBLEMS, per_step) for per_step in (1, 2))
    (out / "README.md").write_text(model_card(model, runs, one, two, TEST_PROBLEMS))
    for name, share in one.items():
        print(f"{name:32} {share:6.1%} {two[name]:6.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--minutes", type=float, default=40.0, help="training time; the rates decay to 0 over it")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows-scale", type=int, default=1, help="multiplies the rows of every step")
    parser.add_argument("--peak", type=float, default=1.0, help="multiplies the learning rates")
    parser.add_argument("--start", type=Path, help="checkpoint to continue from; none: from nothing")
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    if args.start:
        model = LLaDA.from_checkpoint(args.start)
        runs = json.loads((args.start / RUNS).read_text())
    else:
        model, runs = LLaDA(SHAPE), []
        initialise(model)
    device = torch.device(args.device)
    runs.append(train(model, args.out, args.minutes, device, args.seed, args.rows_scale, args.peak))
    write_checkpoint(model, runs, args.out)


if __name__ == "__main__":
    main()
