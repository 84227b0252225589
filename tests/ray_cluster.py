"""A Ray cluster on this machine for tests, with logical GPUs: what `ray start` starts on the nodes of a real one."""

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from waiting import PATIENCE, wait_until

RAY = Path(sys.executable).parent / "ray"
HEAD = ["--head", "--port=0", "--include-dashboard=false"]
NODE = ["--object-store-memory=100000000", "--disable-usage-stats", "--block"]
QUIRKS = {
    # Where a token lies in the home, left there by any use of Ray, `ray start` asks for it and not all give it.
    "RAY_AUTH_MODE": "disabled",
    # Ray lets all others go first: beside other tests its workers would hardly start.
    "RAY_worker_niceness": "0",
}
MARK = "VLLM_INFOGAIN_TEST_CLUSTER"  # in the environment of every process that belongs to the cluster or uses it


@contextmanager
def ray_cluster(nodes: int, cpus: int = 1, gpus: int = 1) -> Iterator[dict[str, str]]:
    """Nodes of so many GPUs and CPUs each; yields what vLLM's environment needs. No process outlives it."""
    # Ray's sockets lie in it, and the path of a socket must be short.
    with tempfile.TemporaryDirectory(prefix="ray", ignore_cleanup_errors=True) as folder:
        environment = {"VLLM_INFOGAIN_CPU_RAY": "1", "OMP_NUM_THREADS": "1", MARK: folder, **QUIRKS}
        try:
            size = [f"--num-cpus={cpus}", f"--num-gpus={gpus}"]
            _start_node([*HEAD, *size, f"--temp-dir={folder}"], environment, folder)
            address = (Path(folder) / "ray_current_cluster").read_text().strip()
            for _ in range(nodes - 1):
                _start_node([*size, f"--address={address}"], environment, folder)
            yield environment | {"RAY_ADDRESS": address}
        finally:
            _stop(environment)


def _start_node(arguments: list[str], environment: dict[str, str], folder: str) -> None:
    with tempfile.NamedTemporaryFile(dir=folder, suffix=".log") as log:
        node = subprocess.Popen([RAY, "start", *arguments, *NODE], env=os.environ | environment, stdout=log, stderr=log)

        def said() -> str:
            return Path(log.name).read_text(errors="replace")

        def runs() -> bool:
            if "Ray runtime started" in said():
                return True
            assert node.poll() is None, f"`ray start` ended with code {node.returncode}:\n{said()}"
            return False

        wait_until(runs, lambda: f"`ray start` does not come to an end:\n{said()}", every=0.2)


def _stop(cluster: dict[str, str]) -> None:
    """Ask `ray start` to end its nodes, and see to it that everything ends."""
    for process in members(cluster):
        if process.ppid() == os.getpid():
            process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(members(cluster), timeout=PATIENCE)
    names = [" ".join(process.cmdline()) for process in alive]
    for process in alive:
        process.kill()
    assert not alive, f"outlived the cluster: {names}"


def members(cluster: dict[str, str], title: str = "") -> list[psutil.Process]:
    """Processes that belong to the cluster or use it, whose title has this text. Not this one."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get(MARK) == cluster[MARK] and process.pid != os.getpid()
            if ours and title in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            pass  # somebody else's, or gone
    return found
