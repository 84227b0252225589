"""Two workers that share every layer decide alike: the same tokens as one, through vLLM's multi-process executor."""

import json
import os
import subprocess
import sys
import textwrap

import pytest
from checkpoints import write_llada

SCRIPT = """
    import json, sys

    import vllm_infogain
    from vllm import SamplingParams
    from vllm_infogain.params import SAMPLERS

    if __name__ == "__main__":
        llm = vllm_infogain.load_llm(
            sys.argv[1], tensor_parallel_size=int(sys.argv[2]), dtype="float32", block_size=32,
            kv_cache_memory_bytes=64 << 20,
        )
        params = [
            SamplingParams(
                max_tokens=14, temperature=temperature, seed=5, ignore_eos=True,
                extra_args={"sampler": sampler, "tokens_per_step": 2, "block_length": 8},
            )
            for sampler in SAMPLERS
            for temperature in (0, 1)
        ]
        outputs = llm.generate([f"prompt {i % 5}" for i in range(len(params))], params, use_tqdm=False)
        print("RESULT", json.dumps([output.outputs[0].token_ids for output in outputs]))
"""


@pytest.mark.engine
def test_every_sampler_gives_the_same_tokens_on_one_worker_and_on_two(tmp_path):
    write_llada(tmp_path / "checkpoint")
    script = tmp_path / "generate.py"
    script.write_text(textwrap.dedent(SCRIPT))
    environment = os.environ | {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    del environment["VLLM_ENABLE_V1_MULTIPROCESSING"]
    tokens = {}
    for workers in (1, 2):
        command = [sys.executable, script, tmp_path / "checkpoint", str(workers)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-4000:]
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT"))
        tokens[workers] = json.loads(line.removeprefix("RESULT"))
    assert len(tokens[1]) > 20
    assert tokens[1] == tokens[2]
