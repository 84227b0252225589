"""Train the tokenizer of infogain-tiny-image: `python -m vllm_infogain.embedded.pictures.train_tokenizer --out DIR`."""

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor

from vllm_infogain.embedded.pictures.judging import are_right, shares
from vllm_infogain.embedded.pictures.scenes import GROUND, scenes, to_network
from vllm_infogain.images.geneval import CATEGORIES
from vllm_infogain.images.magvit import Magvit, MagvitConfig, pixels

SHAPE = MagvitConfig(
    channels=16, encoder_multipliers=(1, 2, 3), encoder_blocks=(1, 1, 1), decoder_multipliers=(1, 2, 3),
    decoder_blocks=(1, 1, 1), bits=8, norm_groups=8,
)  # fmt: skip
ROWS = 32  # pictures of each training step
POOL = 12_000  # pictures drawn once
OBJECT_WEIGHT = 5.0  # of a pixel of an object over one of the ground
BALANCE, COMMITMENT = 0.02, 0.05
RATE = 3e-3
TOGETHER = 0.6  # share of the time; then the decoder learns alone, for codes that no longer change
TEST_SCENES = 50  # per category


def losses(model: Magvit, batch: Tensor, weights: Tensor, *, only_decoder: bool) -> Tensor:
    """Of one step. Bits pass their gradient straight through to the channels they are the signs of."""
    if only_decoder:
        with torch.no_grad():
            codes = model.encode(batch)
        return _difference(model.decode(codes), batch, weights)
    channels = model.encoder(batch).tanh()
    bits = torch.where(channels > 0, 1.0, -1.0)
    through = channels + (bits - channels).detach()
    # A bit that is the same everywhere says nothing: its mean over the batch is driven to 0.
    balance = channels.mean((0, 2, 3)).square().mean()
    commitment = (channels - bits).square().mean()
    return _difference(model.decoder(through), batch, weights) + BALANCE * balance + COMMITMENT * commitment


def _difference(made: Tensor, wanted: Tensor, weights: Tensor) -> Tensor:
    off = made - wanted
    return ((off.abs() + off.square()) * weights).sum() / (3 * weights.sum())


def train(model: Magvit, out: Path, minutes: float, seed: int) -> None:
    """Train in place; the checkpoint is written every 200 steps, so that an interrupted run leaves one."""
    pool = to_network([picture for _, picture in scenes("train", POOL, seed)])
    ground = torch.tensor(GROUND)[:, None, None] / 127.5 - 1
    weights = torch.where((pool - ground).abs().amax(1, keepdim=True) > 0.01, OBJECT_WEIGHT, 1.0)
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    started, step, smooth = time.process_time(), 0, 0.0
    while (progress := (time.process_time() - started) / (60 * minutes)) < 1:
        only_decoder = progress > TOGETHER
        part = (progress - TOGETHER) / (1 - TOGETHER) if only_decoder else progress / TOGETHER
        optimiser.param_groups[0]["lr"] = RATE * min(part / 0.02, 1 - part) + 1e-6
        chosen = torch.randint(len(pool), (ROWS,), generator=generator)
        loss = losses(model, pool[chosen], weights[chosen], only_decoder=only_decoder)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        step += 1
        smooth = 0.95 * smooth + 0.05 * loss.item()
        if step % 200 == 0:
            model.save_checkpoint(out)
            print(f"{60 * minutes * progress:6.0f} s  step {step}  loss {smooth / (1 - 0.95**step):.4f}", flush=True)
    model.save_checkpoint(out)


@torch.no_grad()
def reconstructed_right(model: Magvit, seed: int = 1) -> dict[str, float]:
    """Share of held-out scenes that are still right once they went through the codes, by category."""
    pairs = list(scenes("test", TEST_SCENES * len(CATEGORIES), seed))
    wanted = [requirement for requirement, _ in pairs]
    codes = model.encode(to_network([picture for _, picture in pairs]))
    print(f"{len(codes.unique())} of {2**model.config.bits} codes in use")
    return shares(are_right(pixels(model.decode(codes)).numpy(), wanted), wanted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="directory of the checkpoint")
    parser.add_argument("--minutes", type=float, default=15.0, help="training time, of the CPU")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    model = Magvit(SHAPE)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster on CPUs
    print(f"{sum(p.numel() for p in model.parameters())} parameters", flush=True)
    train(model, args.out, args.minutes, args.seed)
    for category, share in reconstructed_right(Magvit.from_checkpoint(args.out)).items():
        print(f"{category:16} {share:6.1%}")


if __name__ == "__main__":
    main()
