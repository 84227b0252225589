"""Triton aimed at GPUs that are not there: a launch compiles the kernel as for that GPU, and runs nothing."""

import contextlib
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction


class NoGpu:
    """As much of a driver as is asked before a launch."""

    def __init__(self, capability: int) -> None:
        self.target = GPUTarget("cuda", capability, 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # what is compiled is kept by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextlib.contextmanager
def compiling_for(capability: int) -> Iterator[list[tuple[str, Any]]]:
    """Yields the kernels that launches meanwhile asked for, by name, compiled."""
    launched: list[tuple[str, Any]] = []
    run = JITFunction.run

    def compile_only(kernel, *args, grid, warmup, **kwargs):
        compiled = run(kernel, *args, grid=grid, warmup=True, **kwargs)
        launched.append((kernel.__name__, compiled))
        return compiled

    no_gpu = mock.patch.object(driver, "_active", NoGpu(capability))
    with no_gpu, mock.patch.object(JITFunction, "run", compile_only):
        yield launched


@contextlib.contextmanager
def counting_variants(capability: int) -> Iterator[set[str]]:
    """Yields what launches meanwhile would have to compile: a key for every variant of a kernel. Compiles nothing."""
    variants: set[str] = set()

    def note(kernel, key, *_):
        variants.add(f"{kernel.__name__}: {key}")

    with compiling_for(capability), mock.patch.object(JITFunction, "_do_compile", note):
        yield variants


def spilled(compiled: Any) -> int:
    """Bytes of a thread's registers that lie in memory, of a compiled kernel."""
    dump = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        usage = subprocess.check_output([dump, "--dump-resource-usage", file.name], text=True)
    figures = dict(part.split(":", 1) for line in usage.splitlines() for part in line.split() if ":" in part)
    return int(figures["STACK"]) + int(figures["LOCAL"])
