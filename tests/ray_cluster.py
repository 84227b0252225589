"""A Ray cluster on this machine for tests, with logical GPUs: what `ray start` starts on the nodes of a real one."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

RAY = Path(sys.executable).parent / "ray"
HEAD = ["--head", "--port=0", "--include-dashboard=false"]
NODE = ["--num-cpus=1", "--num-gpus=1", "--object-store-memory=100000000", "--disable-usage-stats", "--block"]
MARK = "VLLM_INFOGAIN_TEST_CLUSTER"  # in the environment of every process that belongs to the cluster or uses it


@contextmanager
def ray_cluster(nodes: int) -> Iterator[dict[str, str]]:
    """Nodes of one GPU each; yields the environment that vLLM needs to use them. No process outlives it."""
    # Ray's sockets lie in it, and the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        environment = {"VLLM_INFOGAIN_CPU_RAY": "1", "OMP_NUM_THREADS": "1", MARK: folder}
        try:
            _start_node([*HEAD, f"--temp-dir={folder}"], environment, folder)
            address = (Path(folder) / "ray_current_cluster").read_text().strip()
            for _ in range(nodes - 1):
                _start_node([f"--address={address}"], environment, folder)
            yield environment | {"RAY_ADDRESS": address}
        finally:
            _stop(folder)


def _start_node(arguments: list[str], environment: dict[str, str], folder: str, seconds: float = 120) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".log") as log:
        node = subprocess.Popen([RAY, "start", *arguments, *NODE], env=os.environ | environment, stdout=log, stderr=log)
        deadline = time.monotonic() + seconds
        while True:
            text = Path(log.name).read_text(errors="replace")
            if "Ray runtime started" in text:
                return
            assert node.poll() is None, f"`ray start` ended with code {node.returncode}:\n{text}"
            assert time.monotonic() < deadline, f"`ray start` takes too long:\n{text}"
            time.sleep(0.2)


def _stop(folder: str, seconds: float = 60) -> None:
    """Ask `ray start` to end its nodes, and see to it that everything ends."""
    for process in _members(folder):
        if process.ppid() == os.getpid():
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(_members(folder), timeout=seconds)
    names = [" ".join(process.cmdline()) for process in alive]
    for process in alive:
        process.kill()
    assert not alive, f"outlived the cluster: {names}"


def _members(folder: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == folder and process.pid != os.getpid():
                found.append(process)
        except psutil.Error:
            pass  # somebody else's, or gone
    return found
