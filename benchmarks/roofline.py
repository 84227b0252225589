"""How far the 12-layer model's forward is from what this machine can do.

    python -m benchmarks.roofline [--concurrency 8] [--blocks 16 32]

Measures the matmul peak and the memory bandwidth (one thread, fp32), the model's own layers alone, and then runs the
engine: FLOPs of the rows it computed over the forward's seconds, as a share of that peak. Ends in the commands of
vLLM's own benchmarks and one line of JSON.
"""

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

import torch

from benchmarks.engines import measure, random_jobs, random_model, shape_of
from benchmarks.environment import environment
from benchmarks.llm import started
from benchmarks.models import VLLM_COMMANDS
from benchmarks.stopwatch import Forward, runner_of
from benchmarks.timing import best_seconds
from vllm_infogain.reference.llada import LLaDAShape

PROMPT, CANVAS = 64, 64
WEIGHT_BYTES = 4
LAYER_ROWS = (16, 32, 64, 128, 256, 512, 1024)
RUNS: dict[str, dict[str, Any]] = {
    "greedy": {"sampler": "entropy"},
    "look-ahead": {"sampler": "info_gain", "bypass_threshold": 1.0},
    "look-ahead, all distinct": {"sampler": "info_gain", "bypass_threshold": 1.0, "position_temperature": 1.0},
}


@dataclass(frozen=True)
class Machine:
    """Measured limits of one thread."""

    flops: float  # per second, the best of any large matmul here
    torch_flops: float  # per second, of torch.mm, which is all that a plain torch model has
    copy_bytes: float  # per second, read and written
    read_bytes: float  # per second, of weights streamed through one matrix-vector product


@torch.inference_mode()
def measure_machine() -> Machine:
    """Square matrices of several sizes, by torch and by the linear kernel that vLLM's CPU layers use; copies and
    products of 256 MiB, beyond any cache."""
    from vllm import _custom_ops as ops

    torch_flops = onednn_flops = 0.0
    for size in (1024, 2048, 4096):
        left, right = torch.randn(size, size), torch.randn(size, size)
        out, flops = torch.empty(size, size), 2 * size**3
        seconds = best_seconds(lambda a=left, b=right, c=out: torch.mm(a, b, out=c))
        torch_flops = max(torch_flops, flops / seconds)
        if ops._supports_onednn:
            packed = ops.create_onednn_mm(right, 32)
            seconds = best_seconds(lambda a=left, b=packed: ops.onednn_mm(b, a, None))
            onednn_flops = max(onednn_flops, flops / seconds)
    source = torch.zeros(64 << 20)
    target = torch.ones_like(source)
    copied = 2 * source.nbytes / best_seconds(lambda: target.copy_(source))
    matrix, vector = source.view(-1, 8192), torch.ones(8192)
    read = source.nbytes / best_seconds(lambda: torch.mv(matrix, vector))
    return Machine(max(torch_flops, onednn_flops), torch_flops, copied, read)


@dataclass(frozen=True)
class Work:
    """What the forwards of sequences of `keys` positions must compute."""

    shape: LLaDAShape
    keys: int  # positions that each row attends to

    @property
    def layer_weights(self) -> int:
        shape = self.shape
        attention = 2 * shape.d_model * (shape.n_heads + shape.n_kv_heads) * shape.head_dim
        return shape.n_layers * (attention + 3 * shape.d_model * shape.mlp_hidden_size)

    @property
    def head_weights(self) -> int:
        return self.shape.d_model * self.shape.embedding_size

    def flops(self, forwards: Iterable[Forward]) -> float:
        """Layers and attention for every row, the head for the rows whose logits were wanted."""
        per_row = 2 * self.layer_weights + 4 * self.shape.d_model * self.keys * self.shape.n_layers
        return sum(f.rows * per_row + f.logit_rows * 2 * self.head_weights for f in forwards)

    def least_seconds(self, forwards: Iterable[Forward], machine: Machine) -> float:
        """At the machine's limits: each forward at its matmul peak, or as fast as its weights can be read."""
        weights = WEIGHT_BYTES * (self.layer_weights + self.head_weights)
        return sum(max(self.flops([f]) / machine.flops, weights / machine.read_bytes) for f in forwards)


@dataclass(frozen=True)
class Phase:
    """The forwards of one kind in one run."""

    name: str
    forwards: int
    rows: float  # per forward
    logit_rows: float  # per forward
    gflops: float  # per second
    peak_share: float
    bound_share: float  # least_seconds over the seconds taken


def seconds_of(forwards: Iterable[Forward]) -> float:
    return sum(forward.seconds + forward.logit_seconds for forward in forwards)


def phases(name: str, forwards: list[Forward], work: Work, machine: Machine) -> list[Phase]:
    """All forwards of a run, then the refreshes and the rest."""
    refreshes = [forward for forward in forwards if forward.refresh]
    others = [forward for forward in forwards if not forward.refresh]
    kinds = {name: forwards, f"{name}, refresh": refreshes, f"{name}, block": others}
    return [phase(kind, members, work, machine) for kind, members in kinds.items() if members]


def phase(name: str, forwards: list[Forward], work: Work, machine: Machine) -> Phase:
    seconds, flops, number = seconds_of(forwards), work.flops(forwards), len(forwards)
    return Phase(
        name,
        number,
        sum(forward.rows for forward in forwards) / number,
        sum(forward.logit_rows for forward in forwards) / number,
        flops / seconds / 1e9,
        flops / seconds / machine.flops,
        work.least_seconds(forwards, machine) / seconds,
    )


@torch.inference_mode()
def measure_layers(llm: Any) -> dict[str, list[float]]:
    """GFLOP/s of the engine's own linear layers, at each number of LAYER_ROWS."""
    runner = runner_of(llm)
    model, shape, dtype = runner.model, shape_of(llm), llm.llm_engine.vllm_config.model_config.dtype
    block = model.transformer.blocks[0]
    kv = shape.n_kv_heads * shape.head_dim
    layers = {  # name: call, inputs, outputs
        "qkv_proj": (block.qkv_proj, shape.d_model, shape.d_model + 2 * kv),
        "attn_out": (block.attn_out, shape.d_model, shape.d_model),
        "gate_up_proj": (block.gate_up_proj, shape.d_model, 2 * shape.mlp_hidden_size),
        "ff_out": (block.ff_out, shape.mlp_hidden_size, shape.d_model),
        "head": (model.compute_logits, shape.d_model, shape.embedding_size),
    }
    speeds: dict[str, list[float]] = {}
    for name, (call, inputs, outputs) in layers.items():
        speeds[name] = []
        for number in LAYER_ROWS:
            x = torch.randn(number, inputs, dtype=dtype, device=runner.device)
            seconds = best_seconds(lambda call=call, x=x: call(x), budget=0.1)
            speeds[name].append(2 * number * inputs * outputs / seconds / 1e9)
    return speeds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--blocks", type=int, nargs="+", default=[16, 32])
    arguments = parser.parse_args()
    with started(**random_model()) as llm:
        print(f"environment: {environment()}")
        machine = measure_machine()
        print(
            f"matmul peak {machine.flops / 1e9:.0f} GFLOP/s (torch.mm alone {machine.torch_flops / 1e9:.0f}), "
            f"copy {machine.copy_bytes / 1e9:.1f} GB/s, weights read {machine.read_bytes / 1e9:.1f} GB/s; "
            "one thread, fp32\n"
        )
        print("GFLOP/s of the engine's own layers, by rows\n")
        print("| layer | " + " | ".join(map(str, LAYER_ROWS)) + " |\n|---|" + "---|" * len(LAYER_ROWS))
        layers = measure_layers(llm)
        for name, speeds in layers.items():
            print(f"| {name} | " + " | ".join(f"{speed:.0f}" for speed in speeds) + " |")
        print(f"\n{arguments.concurrency} requests, prompt {PROMPT}, canvas {CANVAS}, cache dual, one block measured\n")
        print("| block | phase | forwards | rows | logit rows | GFLOP/s | of the peak | of the bound |")
        print("|---|---|---|---|---|---|---|---|")
        results: list[dict[str, Any]] = []
        work = Work(shape_of(llm), keys=PROMPT + CANVAS)
        for block in arguments.blocks:
            for name, knobs in RUNS.items():
                jobs = random_jobs(
                    arguments.concurrency, CANVAS, {**knobs, "cache": "dual", "block_length": block}, temperature=0.7
                )
                run = measure(llm, jobs, cut_at=block)
                for row in phases(name, run.forwards, work, machine):
                    results.append({"block": block, **asdict(row)})
                    print(
                        f"| {block} | {row.name} | {row.forwards} | {row.rows:.0f} | {row.logit_rows:.0f} "
                        f"| {row.gflops:.0f} | {100 * row.peak_share:.0f} % | {100 * row.bound_share:.0f} % |",
                        flush=True,
                    )
        print("\nThe bound of a forward: the peak, or reading all weights once, whichever takes longer.")
        print(f"\n{VLLM_COMMANDS}\n")
        figures = {"machine": asdict(machine), "layers": layers, "layer_rows": LAYER_ROWS, "phases": results}
        print(json.dumps({"benchmark": "roofline", "environment": environment(), **figures}))


if __name__ == "__main__":
    main()
