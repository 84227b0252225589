"""What people measure servers with runs against ours, and reports that every request was served."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server import VLLM, serve

import vllm_infogain
from vllm_infogain.embedded import SERVED_NAME, model_path
from vllm_infogain.plugin import embedded_args

pytestmark = pytest.mark.engine

TASKS = Path(__file__).parent / "lm_eval_tasks"
QUESTIONS = len((TASKS / "multiplication.jsonl").read_text().splitlines())


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serve("--plugin", "infogain") as address:
        yield address


def run(command: list, home: Path) -> str:
    """Standard output of a command that finds no network."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(home)}
    command = [str(word) for word in command]
    done = subprocess.run(
        command, cwd=TASKS, env=os.environ | offline, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-8000:]
    return done.stdout


def lm_eval(backend: str, model_args: dict, generation: dict, tmp_path: Path) -> dict:
    """Results of the local task `multiplication`."""
    run(
        [
            sys.executable, "-m", "lm_eval", "--model", backend, "--model_args", json.dumps(model_args),
            "--gen_kwargs", json.dumps(generation), "--include_path", TASKS, "--tasks", "multiplication",
            "--output_path", tmp_path / "out", "--batch_size", "auto",
        ],
        tmp_path,
    )  # fmt: skip
    (results,) = (tmp_path / "out").rglob("results_*.json")
    return json.loads(results.read_text())


def assert_all_solved(results: dict) -> None:
    assert results["n-samples"]["multiplication"] == {"original": QUESTIONS, "effective": QUESTIONS}
    assert results["results"]["multiplication"]["exact_match,none"] == 1.0


def test_lm_evals_completions_back_end_completes_a_task(url: str, tmp_path):
    # Text, not token ids, which lm-eval would give no special tokens: the server's tokenizer knows better.
    model_args = {"model": SERVED_NAME, "base_url": f"{url}/v1/completions", "num_concurrent": 4, "max_length": 64}
    model_args |= {"tokenizer_backend": None, "tokenized_requests": False}
    assert_all_solved(lm_eval("local-completions", model_args, {"vllm_xargs": {"sampler": "info_gain"}}, tmp_path))


def test_lm_evals_vllm_back_end_completes_a_task(tmp_path):
    engine = vllm_infogain.engine_args() | embedded_args()
    del engine["model"], engine["served_model_name"]
    model_args = {"pretrained": str(model_path())} | engine
    assert_all_solved(lm_eval("vllm", model_args, {"extra_args": {"sampler": "info_gain"}}, tmp_path))


def test_vllms_own_serving_benchmark_has_no_failed_request(url: str, tmp_path):
    printed = run(
        [
            VLLM, "bench", "serve", "--base-url", url, "--model", SERVED_NAME, "--tokenizer", model_path(),
            "--dataset-name", "random", "--random-input-len", "10", "--random-output-len", "16",
            "--num-prompts", "32", "--max-concurrency", "8", "--ignore-eos",
        ],
        tmp_path,
    )  # fmt: skip
    figures = dict(re.findall(r"^([A-Z][\w ]+):\s+(\d+)\s*$", printed, re.MULTILINE))
    assert figures["Successful requests"] == "32"
    assert figures["Failed requests"] == "0"
    assert figures["Total generated tokens"] == str(32 * 16)
