"""Every family through vLLM's piecewise graphs, emulated on the CPU (graph_twin.py): captured, replayed, and right."""

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from graph_twin import FAULTS, GRAPH_BYTES, SIZES
from serve_family import FAMILIES as SERVED

pytestmark = [pytest.mark.engine, pytest.mark.timeout(1800)]

DEFAULT = ["llada", "sdar", "llada_moe"]  # both ways of attention, and experts
OTHERS = [family for family in SERVED if family not in (*DEFAULT, "mmada")]  # MMaDA's layers are LLaDA's
FAMILIES = [*DEFAULT, *(pytest.param(family, marks=pytest.mark.slow) for family in OTHERS)]
BROKEN = [f"llada:{fault}" for fault in FAULTS]


@pytest.fixture(scope="module")
def result_of() -> Callable[[str], dict]:
    """By name. One process for many: it patches torch, so none of ours can be it, and importing vLLM takes long."""
    results = functools.cache(run)
    return lambda name: results(tuple(OTHERS) if name in OTHERS else (*DEFAULT, *BROKEN))[name]


def run(names: tuple[str, ...]) -> dict[str, dict]:
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("graph_twin.py"), *names],
        check=False, capture_output=True, text=True, timeout=1700, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    return {result["name"]: result for result in map(json.loads, lines)}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_in_replayed_graphs_equals_the_oracle(result_of: Callable[[str], dict], family: str):
    result = result_of(family)
    assert result["differs"] is None
    pieces, rest = divmod(result["captured"], len(SIZES))
    assert pieces > 1, "attention is not cut out"
    assert rest == 0, "not every size was captured, or one was captured while serving"
    assert result["replayed"] >= 10 * pieces


@pytest.mark.parametrize("family", FAMILIES)
def test_the_graphs_memory_is_estimated_before_there_are_pages(result_of: Callable[[str], dict], family: str):
    result = result_of(family)
    pieces = result["captured"] // len(SIZES)
    assert result["thrown_away"] == 2 * pieces, "two sizes are enough, and are captured anew later"
    assert result["estimated"] == result["taken"] == len(SIZES) * pieces * GRAPH_BYTES
    assert result["is_locked"], "a workspace that grows would move under the graphs"


@pytest.mark.parametrize("name", BROKEN)
def test_the_twin_sees_what_a_gpu_would_answer_wrongly(result_of: Callable[[str], dict], name: str):
    assert result_of(name)["differs"]
