"""One measurement in a process of its own, for what cannot share one: peak memory, another dtype.

    python -m benchmarks.child '{"engine": {"dtype": "bfloat16"}, "canvas": 64, "knobs": {"cache": "dual"}}'

Runs the random model and prints one line of JSON.
"""

import json
import os
import resource
import subprocess
import sys
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


def measure_apart(**task: Any) -> dict[str, Any]:
    """Run this module with the task; returns the figures it prints.

    Args:
        task: `engine` (arguments), `canvas`, `knobs`, `concurrency`, `temperature`, `cut_at`.
    """
    command = [sys.executable, "-m", __name__, json.dumps(task)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}; its messages are above")
    return json.loads(done.stdout.splitlines()[-1])


def forget_peak() -> None:
    """Reset the process's memory peak, where Linux allows it; elsewhere the peak is that of the whole process."""
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        print("the peak includes start-up: /proc/self/clear_refs cannot be written", file=sys.stderr)


def memory_bytes(field: str) -> int:
    """Resident memory: VmRSS, now; VmHWM, its peak since `forget_peak`."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


class PeakPages:
    """The most KV pages that were held at once."""

    def __init__(self, llm: Any) -> None:
        from benchmarks.stopwatch import scheduler_of

        self.pool = scheduler_of(llm).kv_cache_manager.block_pool
        self.take, self.idle = self.pool.get_new_blocks, self.pool.get_num_free_blocks()
        self.pool.get_new_blocks = self.get_new_blocks
        self.most = 0

    def get_new_blocks(self, count: int) -> Any:
        blocks = self.take(count)
        self.most = max(self.most, self.idle - self.pool.get_num_free_blocks())
        return blocks


def main() -> None:
    from benchmarks.engines import measure, random_jobs, random_model
    from benchmarks.llm import started

    task = {"engine": {}, "concurrency": 1, "temperature": 0.7, "cut_at": None} | json.loads(sys.argv[1])
    with started(**random_model(**task["engine"])) as llm:
        jobs = random_jobs(task["concurrency"], task["canvas"], task["knobs"], temperature=task["temperature"])
        pages = PeakPages(llm)
        forget_peak()
        idle = memory_bytes("VmRSS")
        run = measure(llm, jobs, cut_at=task["cut_at"])
        cache = llm.llm_engine.vllm_config.cache_config
        memory = {
            "peak_pages": pages.most,
            "page_bytes": cache.kv_cache_memory_bytes // cache.num_gpu_blocks,
            "idle_bytes": idle,
            "peak_bytes": memory_bytes("VmHWM"),
            "process_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
        print(json.dumps({**run.figures(), **memory}))


if __name__ == "__main__":
    main()
