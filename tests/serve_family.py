"""Build a family's tiny random checkpoint, serve it, and ask it through the OpenAI client.

    python tests/serve_family.py FAMILY [--workers 2] [--ray]

Random weights answer nonsense; what counts is that the released format is served, and that it is so on every path, by
`vllm serve MODEL` as anybody would write it.
"""

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import openai
from checkpoints import write_dream, write_llada, write_mmada, write_sdar
from checkpoints_moe import write_llada2, write_llada_moe, write_sdar_moe
from ray_cluster import ray_cluster
from server import serve
from waiting import PATIENCE

FAMILIES = {
    "llada": write_llada,
    "dream": write_dream,
    "sdar": write_sdar,
    "sdar_moe": write_sdar_moe,
    "llada_moe": write_llada_moe,
    "llada2_moe": write_llada2,
    "mmada": write_mmada,
}
KNOBS = {"info_gain": {"sampler": "info_gain", "bypass_threshold": 1}, "entropy": {"sampler": "entropy"}}
SAMPLERS = tuple(KNOBS)


@contextmanager
def serving(family: str, workers: int = 1, ray: bool = False) -> Iterator[tuple[str, Path]]:
    """A server started for the family: its URL, and the checkpoint that it serves."""
    with ExitStack() as stack:
        checkpoint = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        FAMILIES[family](checkpoint)
        environment = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        arguments = [str(checkpoint), "--dtype", "float32", "--block-size", "32"]
        arguments += ["--kv-cache-memory-bytes", str(64 << 20), "--served-model-name", family]
        arguments += ["--tensor-parallel-size", str(workers)]
        if ray:
            environment |= stack.enter_context(ray_cluster(nodes=workers))
            arguments += ["--distributed-executor-backend", "ray"]
        yield stack.enter_context(serve(*arguments, environment=environment)), checkpoint


def ask(url: str, family: str) -> dict[str, tuple[str, dict]]:
    """The answer of each sampler to one request, and the report of it."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE) as client:
        choices = {
            sampler: client.completions.create(
                model=family, prompt="3*7=", max_tokens=16, temperature=0,
                extra_body={"ignore_eos": True, "vllm_xargs": KNOBS[sampler]},
            ).choices[0]
            for sampler in SAMPLERS
        }  # fmt: skip
    return {sampler: (choice.text, choice.model_extra["infogain"]) for sampler, choice in choices.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--workers", type=int, default=1, help="tensor-parallel size")
    parser.add_argument("--ray", action="store_true", help="place the workers by Ray, one on each of as many nodes")
    arguments = parser.parse_args()
    with serving(**vars(arguments)) as (url, _):
        for sampler, (text, _) in ask(url, arguments.family).items():
            print(f"{sampler}: {text!r}")


if __name__ == "__main__":
    main()
