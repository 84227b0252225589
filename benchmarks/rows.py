"""What reading a row of logits costs: statistics and draws, against softmax, topk and multinomial.

    python -m benchmarks.rows [--vocabularies 40 32000 126464] [--rows 16 256]

Checks the results against the definition in float64 first. On a GPU the Triton kernels are timed, else the torch path.
GB/s counts every logit once. Ends in one line of JSON.
"""

import argparse
import json
import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.environment import environment
from benchmarks.timing import best_seconds
from vllm_infogain.sampling.rows import draw_tokens, row_statistics

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TEMPERATURE = 0.7
DRAWS = 8
Request = tuple[torch.Tensor, torch.Tensor, torch.Tensor]  # temperatures, keys and offsets


def plain_statistics(logits: torch.Tensor) -> tuple[torch.Tensor, ...]:
    log_probabilities = logits.log_softmax(-1)
    probabilities = log_probabilities.exp()
    return -(probabilities * log_probabilities).sum(-1), *probabilities.topk(2)


def plain_draws(logits: torch.Tensor, draws: int) -> torch.Tensor:
    return (logits / TEMPERATURE).softmax(-1).multinomial(draws, replacement=True)


def check(logits: torch.Tensor, request: Request) -> None:
    """Statistics to 1e-5; as many draws of the most likely tokens as their probabilities say, to five deviations."""
    statistics = row_statistics(logits)
    exact = logits.double().softmax(-1)
    for found, expected in (
        (statistics.entropy, torch.special.entr(exact).sum(-1)),
        (statistics.top_probability, exact.amax(-1)),
        (statistics.log_normalizer, logits.double().logsumexp(-1)),
    ):
        torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-7)
    assert torch.equal(statistics.top_token, logits.argmax(-1))
    drawn = draw_tokens(logits, *request, DRAWS)
    top = (logits.double() / TEMPERATURE).softmax(-1).gather(1, statistics.top_token.unsqueeze(1))
    hits = (drawn == statistics.top_token.unsqueeze(1)).sum()
    assert (hits - DRAWS * top.sum()).abs() <= 5 * (DRAWS * (top * (1 - top)).sum()).sqrt() + 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[40, 32_000, 126_464])
    parser.add_argument("--rows", type=int, nargs="+", default=[16, 256])
    arguments = parser.parse_args()
    path = "Triton" if DEVICE.type == "cuda" else "torch"
    print(f"environment: {environment()}")
    source = torch.randn(64 << 20, device=DEVICE)
    bandwidth = source.nbytes / best_seconds(source.amax) / 1e9
    print(f"{path} path; one pass over 256 MiB (amax) reads {bandwidth:.1f} GB/s\n")
    print("| vocabulary | rows | what | plain us/row | us/row | times faster | GB/s |\n|---|---|---|---|---|---|---|")
    results = []
    for vocab in arguments.vocabularies:
        for count in arguments.rows:
            logits = 3 * torch.randn(count, vocab, generator=torch.Generator().manual_seed(0)).to(DEVICE)
            offsets = torch.arange(count, device=DEVICE)
            request = (torch.full((count,), TEMPERATURE, device=DEVICE), torch.full_like(offsets, 1 << 40), offsets)
            check(logits, request)
            for name, plain, ours in (
                ("statistics", plain_statistics, row_statistics),
                ("1 draw", lambda x: plain_draws(x, 1), lambda x, r=request: draw_tokens(x, *r, 1)),
                (f"{DRAWS} draws", lambda x: plain_draws(x, DRAWS), lambda x, r=request: draw_tokens(x, *r, DRAWS)),
            ):
                before, after = (1e6 * best_seconds(lambda f=f, x=logits: f(x)) / count for f in (plain, ours))
                speed = 4e-3 * vocab / after
                print(
                    f"| {vocab} | {count} | {name} | {before:.2f} | {after:.2f} | {before / after:.1f} | {speed:.1f} |",
                    flush=True,
                )
                figures = {"plain_us": before, "us": after, "gb_per_s": speed}
                results.append({"vocabulary": vocab, "rows": count, "what": name, **figures})
    print(json.dumps({"benchmark": "rows", "path": path, "bandwidth_gb_per_s": bandwidth, "results": results}))


if __name__ == "__main__":
    main()
