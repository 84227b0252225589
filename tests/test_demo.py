"""The demo ends by itself in a table and an example."""

import re
import subprocess
import sys

import pytest
from waiting import PATIENCE


@pytest.mark.engine
def test_the_demo_prints_a_table_and_one_puzzle_being_filled():
    command = [sys.executable, "-m", "vllm_infogain.embedded.demo", "--problems", "24"]
    output = subprocess.run(
        command, check=True, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE
    ).stdout
    rows = re.findall(r"^(sudoku|countdown) +(\w+) +([12]) +([\d.]+) ± +[\d.]+ %", output, re.MULTILINE)
    expected = [
        (task, sampler, k)
        for task in ("sudoku", "countdown")
        for k in "12"
        for sampler in ("entropy", "confidence", "margin", "info_gain")
    ]
    assert [row[:3] for row in rows] == expected
    assert all(float(accuracy) > 50 for task, _, k, accuracy in rows if (task, k) == ("sudoku", "1"))
    assert "step 10  H" in output, "20 tokens at two a step"
    filled = output[output.index("step 10  H") :]
    assert "↵" in filled
    assert "■" in filled
    assert not set("_.\\") & set(re.sub(r"\d\.\d\d", "", filled[: filled.index("\nNext")])), "all is written by then"
    assert re.search(r"info_gain: (solved|wrong)", output)
