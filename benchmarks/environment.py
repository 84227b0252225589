"""What a benchmark prints of the machine it ran on."""

import os
import platform
from collections.abc import Mapping
from importlib.metadata import version

import torch


def environment() -> dict[str, str | int]:
    """CPU or GPU name, cores, threads and versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "vllm": version("vllm"),
    }


def settings_text(knobs: Mapping[str, object]) -> str:
    """Decoding parameters as a table's cell: the sampler, then what differs from the defaults."""
    return ", ".join(str(value) if name == "sampler" else f"{name} {value}" for name, value in knobs.items())


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
