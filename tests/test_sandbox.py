"""Programs as models write them, in the sandbox: right and wrong ones, and those that would harm or mislead.

A program that never ends is stopped by the CPU time that it used, so no verdict here hangs on the machine's speed.
"""

import subprocess
import sys
from pathlib import Path

import checkout  # noqa: F401
import pytest
from waiting import PATIENCE

from benchmarks.paper.graders import confinement, programs, sandbox
from benchmarks.paper.graders.sandbox import Limits, NoSandboxError, Verdict, run_program

LIMITS = Limits(cpu_seconds=2, wall_seconds=PATIENCE, memory_bytes=1 << 28)
TESTS = "assert f(2) == 4\nassert f(3) == 9"
RIGHT = "def f(x):\n    return x * x\n"
WRONG = "def f(x):\n    return x + x\n"


def run(program: str, tests: str = TESTS, limits: Limits = LIMITS) -> Verdict:
    return run_program(program, tests, ["f"], limits)


@pytest.mark.parametrize(
    "program",
    [
        RIGHT,
        f"print('x' * 10**6)\n{RIGHT}",
        "import threading\nr = []\nt = threading.Thread(target=lambda: r.append(2))\nt.start()\nt.join()\n"
        "def f(x):\n    return x ** r[0]",
        "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass A:\n    x: int\n"
        "def f(x):\n    return A(x).x ** 2",
        f"import this\n{RIGHT}if __name__ == '__main__':\n    raise SystemExit(1)",
        f"import threading, time\nthreading.Thread(target=time.sleep, args=(10**6,)).start()\n{RIGHT}",
    ],
)
def test_a_right_program_passes(program: str):
    assert run(program) == Verdict(True, "passed")


@pytest.mark.parametrize(
    ("program", "why"),
    [
        (WRONG, "AssertionError"),
        ("def f(x) return 4", "SyntaxError"),
        ("def g(x):\n    return x * x", "NameError"),
        ("", "NameError"),
        ("def f(x):\n    return f(x)", "RecursionError"),
        (f"f = lambda x: {'(' * 500}x{')' * 500}", "SyntaxError"),
    ],
)
def test_a_wrong_program_fails_and_the_verdict_names_the_exception(program: str, why: str):
    assert run(program) == Verdict(False, f"failed: {why}")


@pytest.mark.parametrize(
    "program",
    [
        "while True: pass",
        f"import signal\nsignal.signal(signal.SIGXCPU, lambda *a: None)\n{RIGHT}while True: pass",
        "import threading\ndef f(x):\n    while True: pass\nthreading.Thread(target=f, args=(1,)).start()\nf(1)",
    ],
)
def test_a_program_that_never_ends_is_out_of_cpu_time(program: str):
    limits = Limits(cpu_seconds=1, wall_seconds=PATIENCE)
    assert run(program, limits=limits) == Verdict(False, "failed: out of CPU time, or killed for memory")


def test_a_program_that_sleeps_is_out_of_time():
    limits = Limits(cpu_seconds=60, wall_seconds=1.0)
    assert run(f"import time\ntime.sleep(10**6)\n{RIGHT}", limits=limits) == Verdict(False, "failed: out of time")


@pytest.mark.parametrize(
    "program",
    ["x = [0] * 10**11", "x = []\nwhile True: x.append([0] * 10**6)", "x = 'x' * 10**12", "x = bytearray(1 << 40)"],
)
def test_a_program_that_allocates_without_end_fails(program: str):
    assert run(f"{program}\n{RIGHT}") == Verdict(False, "failed: MemoryError")


FORBIDDEN = {
    "a process": "import os\nwhile True: os.fork()",
    "a process by multiprocessing": "import multiprocessing as m\nm.get_context('fork').Process(target=print).start()",
    "a program": "import subprocess\nsubprocess.run(['true'])",
    "a program in its own place": "import os\nos.execv('/bin/true', ['true'])",
    "a shell": "import os\nif os.system('true') != 0: raise PermissionError",
    "a socket": "import socket\nsocket.socket()",
    "a socket of files": "import socket\nsocket.socket(socket.AF_UNIX)",
    "a pair of sockets": "import socket\nsocket.socketpair()",
    "a request": "import socket\nsocket.create_connection(('127.0.0.1', 80))",
    "a new file": "open('NEW', 'w')",
    "a new file by its descriptor": "import os\nos.open('NEW', os.O_RDONLY | os.O_CREAT)",
    "a file's end": "open('OLD', 'a')",
    "a file read and written": "open('OLD', 'r+')",
    "a file's content by its opening": "import os\nos.open('OLD', os.O_RDONLY | os.O_TRUNC)",
    "a file's content": "import os\nos.truncate('OLD', 0)",
    "a file's name": "import os\nos.rename('OLD', 'NEW')",
    "a file": "import os\nos.remove('OLD')",
    "a file's rights": "import os\nos.chmod('OLD', 0)",
    "a link": "import os\nos.symlink('OLD', 'NEW')",
    "a folder": "import os\nos.mkdir('NEW')",
    "the parent's life": "import os\nos.kill(os.getppid(), 9)",
    "its own group's life": "import os\nos.killpg(0, 9)",
    "a limit": "import resource\nresource.prlimit(0, resource.RLIMIT_CPU, (1, 1))",
    "another's signals": "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())",
    "a name space": "import ctypes\nif ctypes.CDLL(None).unshare(0x10000000) != 0: raise PermissionError",
    "another's memory": (
        "import ctypes, os\nif ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) != 0: raise PermissionError"
    ),
    "a file in memory": "import os\nos.memfd_create('x')",
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_program_may_not_have_or_change(what: str, tmp_path: Path):
    (tmp_path / "OLD").write_text("kept")
    program = (
        FORBIDDEN[what].replace("'OLD'", repr(str(tmp_path / "OLD"))).replace("'NEW'", repr(str(tmp_path / "NEW")))
    )
    assert run(f"{program}\n{RIGHT}") == Verdict(False, "failed: PermissionError")
    assert [path.name for path in tmp_path.iterdir()] == ["OLD"]
    assert (tmp_path / "OLD").read_text() == "kept"


def test_the_forbidden_programs_do_run_where_nothing_confines_them(tmp_path: Path):
    """The filter refuses them, not a slip in their text."""
    (tmp_path / "OLD").write_text("")
    for what in ("a program", "a socket", "a pair of sockets", "a file's end", "a file's content", "a file in memory"):
        program = FORBIDDEN[what].replace("'OLD'", repr(str(tmp_path / "OLD")))
        subprocess.run([sys.executable, "-I", "-c", program], check=True, timeout=PATIENCE)


@pytest.mark.parametrize(
    "program",
    [
        "raise SystemExit(0)",
        "import sys\nsys.exit()",
        "import os\nos._exit(0)",
        "print('passed')\nimport os\nos._exit(0)",
        "import os\nfor fd in range(64):\n    try: os.write(fd, b'\\npassed\\n' * 100)\n    except OSError: pass\n"
        "os._exit(0)",
        "import os\nos.closerange(0, 64)",
        "import os\nwhile True:\n    for fd in range(3, 64):\n        try: os.write(fd, b'passed\\n' * 1000)\n"
        "        except OSError: pass",
        "import atexit, os\natexit.register(os._exit, 0)\nraise SystemExit",
        "def f(x):\n    raise SystemExit(0)",
        "def f(x):\n    import os\n    os._exit(0)",
        "import ctypes\nctypes.string_at(0)",
        "raise KeyboardInterrupt",
        "raise type('passed', (BaseException,), {})",
        "input()",
    ],
)
def test_a_program_that_ends_before_its_tests_has_not_passed(program: str):
    assert not run(f"{program}\n{WRONG}").passed


@pytest.mark.parametrize(
    "program",
    [
        f"class AssertionError(Exception): pass\n{WRONG}",
        f"import builtins\nbuiltins.AssertionError = KeyError\nbuiltins.all = lambda x: True\n{WRONG}",
        f"def check(f): pass\n{WRONG}",
        f"def abs(x): return 0\n{WRONG}",
        f"import builtins\nbuiltins.abs = lambda x: 0\n{WRONG}",
        "def f(x):\n    import builtins\n    builtins.abs = lambda x: 0\n    return 0",
        f"__debug__ = False\n{WRONG}",
        f"__builtins__ = {{'abs': lambda x: 0}}\n{WRONG}",
        f"import sys\nsys.settrace(lambda *a: sys._getframe(0))\n{WRONG}",
    ],
)
def test_what_a_program_redefines_changes_nothing_for_its_tests(program: str):
    tests = "def check(f):\n    assert abs(f(3) - 9) < 1e-6\n    assert all([f(2) == 4, f(3) == 9])\ncheck(f)"
    assert run(RIGHT, tests).passed
    assert not run(program, tests).passed


def test_a_program_named_like_a_built_in_is_what_is_tested():
    assert run_program("def sum(a, b): return a - b", "assert sum(5, 3) == 2", ["sum"], LIMITS).passed


def test_a_program_is_not_run_where_nothing_can_confine_it(monkeypatch, tmp_path: Path):
    runner = tmp_path / "run_confined.py"
    runner.write_text(sandbox.RUNNER.read_text())
    text = Path(confinement.__file__).read_text()
    (tmp_path / "confinement.py").write_text(text.replace('"x86_64":', '"x":').replace('"aarch64":', '"y":'))
    monkeypatch.setattr(sandbox, "RUNNER", runner)
    with pytest.raises(NoSandboxError, match=r"no confinement on linux .*: use Linux on x or y"):
        run("import os\nos._exit(0)")


def test_a_programs_descriptors_are_closed_again():
    before = len(list(Path("/proc/self/fd").iterdir()))
    run(RIGHT)
    run("import os\nos._exit(0)")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


PROMPT = '''import math

def half(x):
    return x / 2

def f(x: int) -> int:
    """Its square.
    >>> f(2)
    4
    """
'''
CHECK = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(3) == 9\n"


@pytest.mark.parametrize(
    "generation",
    [
        "    return x * x\n",
        "return x * x",
        "    y = x\n    return y * x\n\nprint(f(2) / 0)\n",
        "y = x\n    return y * x",
        "y = x\nreturn y * x",
        "    return int(half(x * x) * 2)\n<|eot_id|>    return 0",
        "    return x * x\n```\nThis function squares.",
        "```python\n    return x * x\n```",
        "Here it is:\n```python\ndef f(x):\n    return x * x\n```\nIt multiplies.",
        "```\ndef f(x):\n    return int(math.pow(x, 2))\n```",
        "```python\nimport os\n```\nand\n```python\ndef f(x):\n    return x * x\n```",
        "```python\ndef f(x):\n    return x * x",
        "def f(x):\n    return x * x\n```\nThis function squares.",
        "def f(x):\n    return x * x\n",
    ],
)
def test_a_function_is_completed_from_a_generation_of_any_form(generation: str):
    assert programs.human_eval(generation, PROMPT, CHECK, "f", LIMITS) == Verdict(True, "passed")


@pytest.mark.parametrize(
    "generation",
    ["", "    pass", "I cannot.", "```python\n```", "    return x + x", "```python\ndef g(x):\n    return x * x\n```"],
)
def test_a_generation_without_the_function_does_not_complete_it(generation: str):
    assert not programs.human_eval(generation, PROMPT, CHECK, "f", LIMITS).passed


def test_mbpp_tests_what_its_own_solution_defines():
    code = "def helper(x): return x\ndef set(x): return x * x"
    tests = ["assert set(2) == 4", "assert list(map(set, [1, 2])) == [1, 4]"]
    assert programs.tested_names(code, tests) == ["set"]
    assert programs.mbpp(f"```python\n{code}\n```", code, tests, limits=LIMITS).passed
    assert programs.mbpp(f"{code}\n[DONE]\nAnd so on.", code, tests, limits=LIMITS).passed
    assert not programs.mbpp("```python\nset = lambda x: x\n```", code, tests, limits=LIMITS).passed
    assert programs.mbpp(code, code, ["assert set(two) == 4"], setup="two = 2", limits=LIMITS).passed
