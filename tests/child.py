"""An engine in a process of its own, as the entry points of a user's script start one: `generate` runs this file."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engines import Job
from marked import refuse_unmarked


def generate(
    checkpoint: Path, jobs: Sequence[Job], environment: dict[str, str] | None = None, **engine_args: Any
) -> list[list[int]]:
    """Tokens of every job, all in one batch, from an engine whose core and workers are processes too."""
    refuse_unmarked()
    task = {"checkpoint": str(checkpoint), "jobs": [asdict(job) for job in jobs], "engine_args": engine_args}
    variables = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"} | (environment or {})
    variables.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)
    done = subprocess.run(
        [sys.executable, __file__],
        check=False, input=json.dumps(task), env=variables, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-12000:]
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def main() -> None:
    import vllm_infogain

    task = json.loads(sys.stdin.read())
    jobs = [Job(**fields) for fields in task["jobs"]]
    settings = {"dtype": "float32", "block_size": 32, "kv_cache_memory_bytes": 64 << 20} | task["engine_args"]
    llm = vllm_infogain.load_llm(task["checkpoint"], **settings)
    encode = llm.get_tokenizer().encode
    prompts = [encode(job.prompt) if isinstance(job.prompt, str) else job.prompt for job in jobs]
    prompts = [{"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(prompts, [job.sampling_params() for job in jobs], use_tqdm=False)
    print("RESULT", json.dumps([output.outputs[0].token_ids for output in outputs]), flush=True)


if __name__ == "__main__":
    main()
