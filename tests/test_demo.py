"""The demo ends by itself in a table and an example."""

import base64
import io
import re
import subprocess
import sys

import pytest
from PIL import Image
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


@pytest.mark.engine
def test_the_demo_of_pictures_writes_a_page_of_both_samplers_pictures(tmp_path):
    page = tmp_path / "page.html"
    command = [sys.executable, "-m", "vllm_infogain.embedded.pictures.demo", "--per-category", "1", "--steps", "8"]
    output = subprocess.run(
        [*command, "--out", str(page)], check=True, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE
    ).stdout
    shares = re.findall(r"^(\w+) +(\d) of 6 right, cumulative entropy +([\d.]+) nats$", output, re.MULTILINE)
    assert [share[0] for share in shares] == ["confidence", "info_gain"]
    text = page.read_text(encoding="utf-8")
    assert len(re.findall("<figure>", text)) == 6
    pictures = re.findall(r'class="(right|wrong)" alt="" src="data:image/webp;base64,([^"]+)"', text)
    right = [verdict == "right" for verdict, _ in pictures]
    assert [sum(right[0::2]), sum(right[1::2])] == [int(share[1]) for share in shares]
    for _, data in pictures:
        shown = Image.open(io.BytesIO(base64.b64decode(data)))
        assert shown.size == (32, 32)
        assert shown.n_frames > 1, "the whole picture, and how it was filled in"
