"""Runs a program that a model wrote against tests, and says whether they passed.

Protects against what models write: code that never ends, sleeps, allocates without end, forks, prints, asks for input,
ends early with success, writes or removes files, opens connections, kills processes, replaces built-ins.

Does not protect against a program made to deceive this very grader: it shares an interpreter with its tests, so it can
return objects equal to everything, replace functions of other modules, or search the memory for the secret that says
"passed". It can read every file that its user can read, though nothing of it gets out but passed or failed and the name
of an exception. It may use one core until its time is up. A fault in the kernel's own calls is beyond it.
"""

import contextlib
import io
import json
import os
import secrets
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

RUNNER = Path(__file__).parent / "run_confined.py"
# No secrets of the caller's; one thread, as each more takes addresses.
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1"} | {
    name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ
}
ANSWER_BYTES = 1 << 16  # what is read of a program that writes to every descriptor


class NoSandboxError(RuntimeError):
    """The machine cannot confine a program, so none was run."""


@dataclass(frozen=True)
class Limits:
    """Of one run. CPU time does not depend on what else the machine does; wall time ends a program that sleeps."""

    cpu_seconds: int = 10
    wall_seconds: float = 60.0
    memory_bytes: int = 1 << 30  # of addresses


@dataclass(frozen=True)
class Verdict:
    passed: bool
    reason: str  # "passed", or why not


def run_program(program: str, tests: str, tested: Iterable[str], limits: Limits | None = None) -> Verdict:
    """Whether the program runs, and then the tests do; `tested` are the names they are about."""
    limits = limits or Limits()
    secret = secrets.token_hex(16)
    answers, answer_to = os.pipe()
    work = {
        "program": program, "tests": tests, "tested": list(tested), "secret": secret, "answer_to": answer_to,
        "cpu_seconds": limits.cpu_seconds, "memory_bytes": limits.memory_bytes,
    }  # fmt: skip
    with os.fdopen(answers, "rb", buffering=0) as reader:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-B", "-X", "utf8", str(RUNNER)], stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", env=ENVIRONMENT, pass_fds=[answer_to],
                start_new_session=True,
            )  # fmt: skip
        finally:
            os.close(answer_to)  # only the program's end of it is left: it ends with the program
        try:
            with contextlib.suppress(BrokenPipeError):  # told below: it ended with a status of its own
                assert process.stdin is not None
                with process.stdin as work_to:
                    work_to.write(json.dumps(work).encode())
            answer = _read(reader, time.monotonic() + limits.wall_seconds)
        finally:
            process.kill()
            process.wait()
    if answer is None:
        return Verdict(False, "failed: out of time")
    said = [line.removeprefix(f"{secret} ") for line in answer.splitlines() if line.startswith(f"{secret} ")]
    if not said and process.returncode == -signal.SIGKILL:
        return Verdict(False, "failed: out of CPU time, or killed for memory")
    if not said:
        return Verdict(False, f"failed: ended with {process.returncode} before its tests did")
    if said[0].startswith("unconfined"):
        raise NoSandboxError(said[0])
    return Verdict(said[0] == "passed", said[0])


def _read(reader: io.RawIOBase, deadline: float) -> str | None:
    """Everything up to the end, or to ANSWER_BYTES; None where the deadline comes first."""
    read = b""
    with selectors.DefaultSelector() as selector:
        selector.register(reader, selectors.EVENT_READ)
        while len(read) < ANSWER_BYTES:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            if not (chunk := reader.read(ANSWER_BYTES)):
                break
            read += chunk
    return read.decode(errors="replace")
