"""What people measure servers with runs against ours, and reports that every request was served."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import checkout  # noqa: F401
import pytest
from readme import ROOT, commands_of
from waiting import PATIENCE

import vllm_infogain
from benchmarks.json_lines import read_lines
from benchmarks.paper.__main__ import main as paper
from vllm_infogain.embedded import SERVED_NAME, model_path
from vllm_infogain.engine_defaults import model_args

pytestmark = pytest.mark.engine

TASKS = Path(__file__).parent / "lm_eval_tasks"
QUESTIONS = len((TASKS / "multiplication.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def url(embedded_url: str) -> str:
    return embedded_url


def run(commands: str, home: Path) -> str:
    """Standard output of shell commands that find no network, at the checkout's root, in this environment."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home)}
    path = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-ec", commands],
        cwd=ROOT, env=os.environ | offline | path, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return done.stdout


def assert_all_solved(out: Path) -> None:
    """What lm-eval wrote there of the task `multiplication`."""
    (file,) = out.rglob("results_*.json")
    results = json.loads(file.read_text())
    assert results["n-samples"]["multiplication"] == {"original": QUESTIONS, "effective": QUESTIONS}
    assert results["results"]["multiplication"]["exact_match,none"] == 1.0


def test_lm_evals_completions_back_end_completes_a_task_as_the_readme_says(url: str, tmp_path):
    # Text, not token ids, which lm-eval would give no special tokens: the server's tokenizer knows better.
    commands = commands_of("lm_eval").replace("http://localhost:8000", url)
    run(f"{commands.rstrip()} --output_path {tmp_path / 'out'}", tmp_path)
    assert_all_solved(tmp_path / "out")


@pytest.mark.slow
def test_lm_evals_completions_back_end_sends_templated_chats(url: str, tmp_path):
    # Token ids: lm-eval sends a chat as text to chat endpoints only.
    model_args = {"model": SERVED_NAME, "base_url": f"{url}/v1/completions", "num_concurrent": 4, "max_length": 64}
    words = [
        "lm_eval", "--model", "local-completions", "--model_args",
        json.dumps(model_args | {"tokenizer": str(model_path())}), "--gen_kwargs",
        json.dumps({"vllm_xargs": {"sampler": "info_gain"}}), "--include_path", ".", "--tasks", "multiplication",
        "--output_path", str(tmp_path / "out"), "--batch_size", "auto", "--apply_chat_template",
    ]  # fmt: skip
    run(f"cd {TASKS}; {shlex.join(words)}", tmp_path)
    assert_all_solved(tmp_path / "out")


def test_lm_evals_vllm_back_end_completes_a_task_and_the_same_as_templated_chats(tmp_path):
    engine = vllm_infogain.engine_args() | model_args(None)
    del engine["model"], engine["served_model_name"]
    arguments = {"pretrained": str(model_path()), "batch_size": "auto"} | engine
    words = [sys.executable, str(Path(__file__).parent / "evaluate_twice.py"), json.dumps(arguments)]
    printed = run(f"cd {TASKS}; {shlex.join(words)}", tmp_path)
    plain, templated = json.loads(printed.splitlines()[-1])
    assert plain == templated
    assert [sample["exact_match"] for sample in plain] == [1.0] * QUESTIONS


def test_vllms_own_serving_benchmark_has_no_failed_request_as_the_readme_says(url: str, tmp_path):
    printed = run(commands_of("vllm bench serve").replace("http://localhost:8000", url), tmp_path)
    figures = dict(re.findall(r"^([A-Z][\w ]+):\s+(\d+)\s*$", printed, re.MULTILINE))
    assert figures["Successful requests"] == "32"
    assert figures["Failed requests"] == "0"
    assert figures["Total generated tokens"] == str(32 * 16)


def test_the_papers_table_against_a_server_has_the_rows_of_the_library(url: str, tmp_path):
    common = "table2 --limit 1 --runs 1 --tasks tiny-multiplication --samplers Entropy Info-Gain --quiet --no-figure"
    for options in (["--url", url], ["--library"]):
        assert paper([*common.split(), "--out", str(tmp_path), *options]) == 0
    texts = [
        {path.name: [row["text"] for row in read_lines(path)[1:]] for path in folder}
        for folder in (tmp_path.glob(f"server/{SERVED_NAME}/*.jsonl"), tmp_path.glob(f"{SERVED_NAME}-*/*.jsonl"))
    ]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 4
