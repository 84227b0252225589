"""Runs one program and its tests in a process of its own, confined: `sandbox.py` starts it and reads what it says.

Standard input holds the work as JSON. The one line of an answer goes to the descriptor that is named there, and begins
with a secret that the program under test is not given.
"""

import builtins
import json
import os
import sys
import types
from pathlib import Path
from typing import Any, NoReturn

sys.path.insert(0, str(Path(__file__).parent))
from confinement import confine

del sys.path[0]


def main() -> NoReturn:
    work = json.load(sys.stdin)

    def say(what: str) -> NoReturn:
        os.write(work["answer_to"], f"\n{work['secret']} {what}\n".encode())
        os._exit(0)

    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    try:
        confine(work["cpu_seconds"], work["memory_bytes"])
    except (OSError, ValueError) as error:
        say(f"unconfined {error}")
    try:
        judge(work["program"], work["tests"], work["tested"])
    except SystemExit:
        say("failed: the program ended before its tests did")
    except BaseException as error:  # whatever a program raises, it failed
        say(f"failed: {type(error).__name__}"[:200])
    say("passed")


def judge(program: str, tests: str, tested: list[str]) -> None:
    """Raise what the program or a test of it raises.

    The tests have a namespace and built-ins of their own: a program that replaces `abs` or `sorted`, in its own module
    or in `builtins`, changes nothing for them. They see the program's names, but those of built-ins only where they are
    what is tested.
    """
    built_in = dict(vars(builtins))
    module = namespace("program_under_test")
    exec(compile(program, "program", "exec"), module)
    seen = {name: value for name, value in module.items() if name in tested or name not in built_in}
    exec(compile(tests, "tests", "exec"), seen | {"__name__": "tests", "__builtins__": built_in})


def namespace(name: str) -> dict[str, Any]:
    """Of a new module, which dataclasses and the like look up by its name."""
    sys.modules[name] = types.ModuleType(name)
    return vars(sys.modules[name])


if __name__ == "__main__":
    main()
