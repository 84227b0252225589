"""Every command and example of the README runs."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from server import serve

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
def test_the_python_example_runs_as_printed(tmp_path):
    (example,) = blocks("python")
    script = tmp_path / "example.py"
    script.write_text(example)
    output = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, timeout=300).stdout
    assert "1" in output
    assert "cumulative_entropy" in output


@pytest.mark.engine
def test_the_curl_commands_run_as_printed_against_the_plain_server():
    with serve("--plugin", "infogain") as url:
        answers = []
        for block in blocks("sh"):
            if block.startswith("curl "):
                command = shlex.split(block.replace("localhost:8000", url.removeprefix("http://")))
                answers.append(json.loads(subprocess.run(command, capture_output=True, check=True, timeout=120).stdout))
    chat, completion = answers
    assert re.fullmatch(r"\S+=\d+,\S+=29", chat["choices"][0]["message"]["content"])
    assert completion["choices"][0]["text"] == "6*7=0101010"
    assert completion["choices"][1]["text"].endswith("yes")
