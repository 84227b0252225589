"""Every command and example of the README runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from server import serve

from vllm_infogain.embedded import model_path
from vllm_infogain.embedded.tokenizer import VOCAB
from vllm_infogain.params import PARSERS, SAMPLERS
from vllm_infogain.sampling.frequencies import load_log_frequencies

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


# What each make command runs, and where that is tested.
MAKE = {
    "make demo": "-m vllm_infogain.demo",  # test_demo.py
    "make test": "-m pytest",  # CI
    "make serve": "vllm serve --plugin infogain",  # below
}


def test_the_readme_has_no_command_that_is_not_run():
    for block in blocks("sh"):
        assert block.strip() in MAKE or block.startswith("curl "), block
    assert set(MAKE) <= {block.strip() for block in blocks("sh")}


@pytest.mark.parametrize(("command", "runs"), MAKE.items())
def test_a_make_target_runs_what_is_tested(command: str, runs: str):
    plan = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert runs in plan


def test_ci_runs_the_readmes_test_command():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()


@pytest.mark.engine
def test_the_python_examples_run_as_printed(tmp_path):
    outputs = []
    for example in blocks("python"):
        script = tmp_path / "example.py"
        script.write_text(example)
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=300)
        outputs.append(done.stdout)
    offline, library = outputs
    assert re.search(r"1\d{3}\n\d{2}2\d\n\d3\d{2}\n\d{3}4", offline), "the givens stay where they are"
    assert "cumulative_entropy" in offline
    assert library.startswith("6*7=0101010 ")


def test_the_frequency_command_runs_as_printed(tmp_path):
    command = re.search(r"`python (-m vllm_infogain.sampling.frequencies .*?)`", README)[1]
    (tmp_path / "text").write_text("3*7=21\n")
    names = {"TEXT": tmp_path / "text", "MODEL": model_path(), "FILE": tmp_path / "counts.json"}
    words = [str(names.get(word, word)) for word in command.split()]
    subprocess.run([sys.executable, *words], check=True, timeout=120)
    table = np.exp(load_log_frequencies(tmp_path / "counts.json", len(VOCAB)))
    assert table[VOCAB["1"]] == pytest.approx(1 / (7 + 0.5 * (len(VOCAB) - 7)))


def test_every_parameter_and_sampler_is_in_the_readme():
    parameters, samplers = README.split("| sampler | what it does |")
    for name in PARSERS:
        assert f"`{name}`" in parameters, name
    for name in SAMPLERS:
        assert f"`{name}`" in samplers, name


@pytest.mark.engine
def test_the_curl_commands_run_as_printed_against_the_plain_server():
    with serve("--plugin", "infogain") as url:
        answers = []
        for block in blocks("sh"):
            if block.startswith("curl "):
                command = shlex.split(block.replace("localhost:8000", url.removeprefix("http://")))
                answers.append(json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout))
    chat, completion, infilled = answers
    assert re.fullmatch(r"\S+=\d+,\S+=29", chat["choices"][0]["message"]["content"])
    assert completion["choices"][0]["text"] == "6*7=0101010"
    assert completion["choices"][1]["text"].endswith("yes")
    assert [choice["text"] for choice in infilled["choices"]] == ["0101010", "0101010"]
