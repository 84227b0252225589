"""Every command and example of the README and the pages beside the code runs."""

import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import textwrap
import tokenize
from pathlib import Path

import numpy as np
import pytest
from readme import PAGES, REFERENCE, ROOT, blocks, commands_of, lines_of
from server import openai_client
from waiting import PATIENCE

from vllm_infogain.embedded import SERVED_NAME, model_path
from vllm_infogain.embedded.tasks import Problem, check
from vllm_infogain.embedded.tokenizer import VOCAB
from vllm_infogain.request.params import LOOKAHEAD_SAMPLERS, PARSERS, READERS, SAMPLERS
from vllm_infogain.request.presets import PICTURE, TEXT
from vllm_infogain.sampling.frequencies import load_log_frequencies

PUZZLE = Problem("sudoku", "sudoku\n..4.\n.1.2\n1...\n....", "")

MODULES = [
    path.relative_to(ROOT).as_posix()
    for folder in ("vllm_infogain", "model_executors", "patches", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
]

# What each make command runs, and where that is tested.
MAKE = {
    "make demo": "-m vllm_infogain.embedded.demo",  # test_demo.py
    "make demo-images": "-m vllm_infogain.embedded.pictures.demo",  # test_demo.py
    "make check": '-m pytest -n 2 --dist loadfile -m "not engine"',
    "make test": "-m pytest -n 3 --dist loadfile\n",  # CI
    "make test-slow": "-m pytest -n 2 --dist loadfile -m slow\n",  # a scheduled workflow
    "make serve": "vllm serve --plugin infogain",  # below
}


def test_no_page_has_a_command_that_is_not_run():
    harnesses = {commands_of("lm_eval"), commands_of("vllm bench serve")}  # test_harnesses.py
    for block in blocks("sh"):
        assert set(lines_of(block)) <= set(MAKE) or block in harnesses or block.startswith("curl "), block
    assert set(MAKE) <= {line for block in blocks("sh") for line in lines_of(block)}


@pytest.mark.parametrize(("command", "runs"), MAKE.items())
def test_a_make_target_runs_what_is_tested(command: str, runs: str):
    plan = subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert runs in plan


def test_ci_runs_the_readmes_test_command_and_in_time_what_it_leaves_out():
    assert "\nmake test\n" in (ROOT / ".ci" / "run").read_text()
    assert "run: make test-slow\n" in (ROOT / ".github" / "workflows" / "slow.yml").read_text()


# What a hub's LLaDA looks like to transformers: a config and a model class of its own, in files beside the weights.
REMOTE_CODE = {
    "configuration_llada.py": """
        from vllm_infogain.model_executors.llada_config import LLaDAConfig as Plain

        class LLaDAConfig(Plain):
            pass
    """,
    "modeling_llada.py": """
        from torch import nn
        from transformers import PreTrainedModel
        from transformers.modeling_outputs import MaskedLMOutput
        from vllm_infogain.reference.llada import LLaDAShape, Transformer

        from .configuration_llada import LLaDAConfig

        class LLaDAModelLM(PreTrainedModel):
            config_class = LLaDAConfig

            def __init__(self, config):
                super().__init__(config)
                self.model = nn.ModuleDict({"transformer": Transformer(LLaDAShape.from_config(config.to_dict()))})
                self.post_init()

            def forward(self, input_ids):
                return MaskedLMOutput(logits=self.model["transformer"](input_ids))
    """,
}


def write_as_on_a_hub(path: Path) -> None:
    """The embedded model, as a checkpoint with remote code."""
    shutil.copytree(model_path(), path)
    for name, code in REMOTE_CODE.items():
        (path / name).write_text(textwrap.dedent(code))
    classes = {"AutoConfig": "configuration_llada.LLaDAConfig", "AutoModel": "modeling_llada.LLaDAModelLM"}
    config = json.loads((path / "config.json").read_text()) | {"auto_map": classes}
    (path / "config.json").write_text(json.dumps(config))


@pytest.mark.engine
def test_the_python_examples_run_as_printed(tmp_path):
    write_as_on_a_hub(tmp_path / "hub")
    outputs = []
    for example in blocks("python"):
        script = tmp_path / "example.py"
        script.write_text(example.replace('name = "GSAI-ML/LLaDA-8B-Instruct"', f"name = {str(tmp_path / 'hub')!r}"))
        environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
        done = subprocess.run(
            [sys.executable, script], capture_output=True, text=True, check=True, timeout=PATIENCE, env=environment
        )
        outputs.append(done.stdout)
    offline, library = outputs
    greedy, ours = re.findall(r"((?:\d{4}\n){4})(\{.*)\n", offline)
    assert not check(PUZZLE, greedy[0].rstrip())
    assert check(PUZZLE, ours[0].rstrip()), "look-ahead changes the answer"
    assert "'candidates': 0," in greedy[1]
    assert "'candidates': 0," not in ours[1]
    assert library.startswith("6*7=0101010 ")


def test_the_frequency_command_runs_as_printed(tmp_path, monkeypatch):
    command = re.search(r"`python (-m vllm_infogain.sampling.frequencies .*?)`", REFERENCE)[1]
    (tmp_path / "text").write_text("3*7=21\n")
    names = {"TEXT": tmp_path / "text", "MODEL": model_path(), "FILE": tmp_path / "counts.json"}
    option, module, *words = [str(names.get(word, word)) for word in command.split()]
    assert option == "-m"
    monkeypatch.setattr(sys, "argv", [module, *words])
    monkeypatch.delitem(sys.modules, module)
    runpy.run_module(module, run_name="__main__")  # in this process, which has imported transformers already
    table = np.exp(load_log_frequencies(tmp_path / "counts.json", len(VOCAB)))
    assert table[VOCAB["1"]] == pytest.approx(1 / (7 + 0.5 * (len(VOCAB) - 7)))


def test_the_reference_says_which_samplers_a_parameter_is_of():
    table = REFERENCE.split("## Parameters")[1].split("\n| sampler |")[0]
    rows = re.findall(r"^\| (`.*?) \|.*?\|.*?\| (.*?) \|.*\|$", table, re.MULTILINE)
    groups = {"all": SAMPLERS, "look-ahead": LOOKAHEAD_SAMPLERS}
    said = {
        name: frozenset(groups.get(of) or re.findall(r"`(\w+)`", of)) for names, of in rows
        for name in re.findall(r"`(\w+)`", names)
    }  # fmt: skip
    assert said == READERS


def test_the_reference_says_what_a_preset_stands_for():
    table = REFERENCE.split("| `preset` | text | pictures |\n")[1].split("\n\n")[0]
    _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    said = [{row[0].strip("`"): dict(re.findall(r"`(\w+): (\S+)`", row[column])) for row in rows} for column in (1, 2)]
    assert said == [{preset: {k: str(v) for k, v in knobs.items()} for preset, knobs in kind.items()}
                    for kind in (TEXT, PICTURE)]  # fmt: skip


def test_every_parameter_and_sampler_is_in_the_reference():
    parameters, samplers = REFERENCE.split("| sampler | what it does |")
    for name in PARSERS:
        assert f"`{name}`" in parameters, name
    for name in SAMPLERS:
        assert f"`{name}`" in samplers, name


def measured() -> dict[tuple[str, str], str]:
    """(settings, task) -> "accuracy %, CPU ms", of the tables that the benchmark wrote."""
    figures = {}
    for part in PAGES["benchmarks/front.md"].split("\n## ")[1:]:
        task, *lines = part.splitlines()
        _, _, *rows = (line.strip("| ").split(" | ") for line in lines if line.startswith("|"))
        for settings, _, accuracy, _, _, ms, *_ in rows:
            figures[settings, task] = f"{float(accuracy.split(' ±')[0]):.0f} %, {float(ms):.0f} ms"
    return figures


def test_the_figures_of_the_samplers_are_those_that_were_measured():
    table = PAGES["README.md"][PAGES["README.md"].index("| settings | Sudoku") :].split("\n\n")[0]
    head, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines())
    figures = measured()
    for name, *cells in rows:
        settings = re.sub(r" (\d+)(?=,|$)", r" \1.0", name.replace("`", "")).replace("K=", "tokens_per_step ")
        for task, cell in zip(head[1:], cells, strict=True):
            assert cell == figures[settings, task.capitalize()], (name, task)


@pytest.mark.engine
def test_plain_serve_with_the_plugin_flag_serves_the_embedded_model(embedded_url):
    with openai_client(embedded_url) as client:
        assert [model.id for model in client.models.list()] == [SERVED_NAME]
        messages = [{"role": "user", "content": "multiply 3*4"}]
        answer = client.chat.completions.create(model=SERVED_NAME, messages=messages, temperature=0, max_tokens=12)
        assert answer.choices[0].message.content.startswith("3*4=")


@pytest.mark.engine
def test_the_curl_commands_run_as_printed_against_the_plain_server(embedded_url):
    commands = [block for block in blocks("sh") if block.startswith("curl ")]
    commands.append(commands[0].replace('"info_gain"', '"entropy"'))
    printed = []
    for block in commands:
        command = shlex.split(block.replace("localhost:8000", embedded_url.removeprefix("http://")))
        printed.append(subprocess.run(command, capture_output=True, check=True, timeout=PATIENCE).stdout)
    chat, infilled, regex, completion, infilled_twice, stream, greedy = printed
    (answer,) = json.loads(chat)["choices"]
    assert check(PUZZLE, answer["message"]["content"])
    assert answer["infogain"]["candidates"] > 0
    assert not check(PUZZLE, json.loads(greedy)["choices"][0]["message"]["content"])
    assert texts(completion)[0] == "6*7=0101010"
    assert texts(completion)[1].endswith("yes")
    assert texts(infilled) == ["0101010"]
    assert texts(infilled_twice) == ["0101010", "0101010"]
    assert texts(regex) == ["6*7=0101010"]
    chunks = [line.removeprefix("data: ") for line in stream.decode().splitlines() if line]
    assert chunks.pop() == "[DONE]"
    choices = [choice for chunk in chunks for choice in json.loads(chunk)["choices"]]
    assert sum(len(choice.get("infogain_steps", [])) for choice in choices) == 12
    assert "".join(choice["text"] for choice in choices) == "6*7=0101010"


def texts(completion: bytes) -> list[str]:
    return [choice["text"] for choice in json.loads(completion)["choices"]]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", PAGES)
def test_relative_links_lead_to_files_and_headings_that_exist(path: str):
    broken = []
    text = re.sub(r"```.*?```", "", PAGES[path], flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        file = (ROOT / path).parent / target if target else ROOT / path
        if not file.exists() or (anchor and anchor not in anchors(file.read_text())):
            broken.append(link)
    assert not broken


def prose_of(path: str) -> str:
    """A page, or the docstrings and comments of a module."""
    if path in PAGES:
        return PAGES[path]
    with (ROOT / path).open("rb") as source:
        tokens = [*tokenize.tokenize(source.readline)]
    return "\n".join(token.string for token in tokens if token.type == tokenize.COMMENT or token.string[:3] == '"""')


@pytest.mark.parametrize("path", [*PAGES, *MODULES])
def test_files_that_prose_names_exist(path: str):
    places = ((ROOT / path).parent, ROOT, ROOT / "vllm_infogain", ROOT / "tests")
    named = re.findall(r"(?<![\w/.])(?:\w+/)*\w+\.(?:py|md|sh)(?![\w/])", prose_of(path))
    folder = ""  # in the map of the architecture a name alone follows one of the same folder
    missing = set()
    for name in named:
        folder = name.rpartition("/")[0] or folder
        if not any((place / file).exists() for place in places for file in (name, f"{folder}/{name}")):
            missing.add(name)
    assert not missing
