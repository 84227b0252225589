"""No test asserts on time: what holds on an idle machine must hold on a busy one."""

import ast
from pathlib import Path

CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "process_time", "time", "time_ns", "now"}
MAY_LOOK = {
    "waiting.py": "gives up on what never happens",
    "soak.py": "prints how long a run by hand has taken",
    "test_ray_serve.py": "prints how long a killed replica is missed",
    "test_images_server.py": "prints how long /health takes beside many pictures",
}


def clocks_in(source: str) -> set[str]:
    """Calls and imports of clocks: `time.monotonic()`, `from time import perf_counter`, `datetime.now()`."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in {"time", "datetime", "datetime.datetime"}:
            found |= {node.attr} & CLOCKS
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found |= {alias.name for alias in node.names} & CLOCKS
    return found


def test_no_test_looks_at_a_clock_but_to_give_up_waiting():
    found = {path.name: clocks_in(path.read_text()) for path in Path(__file__).parent.glob("*.py")}
    assert {name for name, clocks in found.items() if clocks} == MAY_LOOK.keys()
