"""The plugin's entry: the version it accepts, the flag it adds, and that it leaves everything else alone."""

import json
import os
import subprocess
import sys
import textwrap
import tomllib
from argparse import Namespace
from dataclasses import asdict, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm.config import AttentionConfig, CompilationConfig, CUDAGraphMode, StructuredOutputsConfig
from vllm.entrypoints.cli.serve import ServeSubcommand, make_arg_parser
from vllm.platforms import current_platform
from vllm.plugins import load_general_plugins
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.attention.backends.registry import AttentionBackendEnum
from waiting import PATIENCE

import vllm_infogain
from vllm_infogain import engine_defaults, plugin
from vllm_infogain.compat import (
    AsyncLLM,
    ChatCompletionRequest,
    CompletionRequest,
    EngineArgs,
    InputProcessor,
    StatLoggerManager,
)
from vllm_infogain.embedded import SERVED_NAME, model_path, pictures
from vllm_infogain.embedded.tokenizer import BOS, EOS, VOCAB, save_tokenizer

ROOT = Path(vllm_infogain.__file__).parents[1]


def run_python(code: str, *arguments: str, **environment: str) -> dict:
    """Run code in a fresh interpreter; returns the JSON of its last line."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *arguments],
        check=False, capture_output=True, text=True, timeout=PATIENCE,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"} | environment,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-6000:]
    return json.loads(run.stdout.splitlines()[-1])


# Versions.


@pytest.mark.parametrize("version", ["0.32.0", "0.32.0+cpu", "0.32.0rc1", "0.33.0", "0.33.0+cpu", "0.33.4.post1"])
def test_a_tested_vllm_is_accepted(version):
    plugin.check_vllm_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.34.0", "0.34.0rc1+cpu", "0.4.0", "1.32.0"])
def test_an_untested_vllm_is_refused_with_the_remedy(version):
    with pytest.raises(RuntimeError) as refusal:
        plugin.check_vllm_version(version)
    assert f"found {version}" in str(refusal.value)
    assert "pip install 'vllm>=0.32,<0.34'" in str(refusal.value)


def test_the_accepted_range_is_the_one_the_package_asks_for():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    low, high = (".".join(map(str, version)) for version in plugin.VLLM_RANGE)
    assert extras["cuda"] == [f"vllm>={low},<{high}"]


# Registration.


def test_registering_twice_changes_nothing_the_second_time():
    seams = {
        EngineArgs: "add_cli_args",
        InputProcessor: "process_inputs",
        AsyncLLM: "generate",
        CompletionRequest: "to_sampling_params",
        ChatCompletionRequest: "to_sampling_params",
        StatLoggerManager: "__init__",
    }
    plugin.register()
    wrapped = {owner: getattr(owner, name) for owner, name in seams.items()}
    plugin.register()
    assert {owner: getattr(owner, name) for owner, name in seams.items()} == wrapped
    for wrapper in wrapped.values():
        assert wrapper._wrapped_by_infogain
        assert not hasattr(wrapper.__wrapped__, "_wrapped_by_infogain")


# The flag.


def parse_serve(*arguments: str) -> Namespace:
    """What `vllm serve *arguments` parses, by the parser it builds."""
    load_general_plugins()
    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers(required=False, dest="subparser"))
    return parser.parse_args(["serve", *arguments])


def parse_api_server(*arguments: str) -> Namespace:
    """What `python -m vllm.entrypoints.openai.api_server *arguments` parses."""
    load_general_plugins()
    return make_arg_parser(FlexibleArgumentParser()).parse_args(list(arguments))


def changes(namespace: Namespace, plain: Namespace) -> dict:
    """What differs; of a group of settings, which is parsed to an object, its fields that do."""
    changed = {name: value for name, value in vars(namespace).items() if value != getattr(plain, name)}
    for name, value in changed.items():
        if is_dataclass(value):
            before = asdict(getattr(plain, name))
            changed[name] = {field: now for field, now in asdict(value).items() if now != before[field]}
    return changed


def test_the_flag_makes_the_engine_ours_and_leaves_the_model_alone():
    changed = changes(parse_serve("some/model", "--plugin", "infogain"), parse_serve("some/model"))
    assert changed == engine_defaults.engine_args() | {"plugin": "infogain"}


def test_the_flag_without_a_model_serves_the_embedded_one():
    namespace = parse_serve("--plugin", "infogain")
    changed = changes(namespace, parse_serve())
    assert changed == engine_defaults.engine_args() | engine_defaults.model_args(None) | {"plugin": "infogain"}
    assert namespace.served_model_name == [SERVED_NAME] == ["infogain-tiny"]
    assert namespace.model == str(model_path())


@pytest.mark.parametrize(
    "explicit",
    [
        ("max_num_seqs", 3, ["--max-num-seqs", "3"]),
        ("enable_prefix_caching", True, ["--enable-prefix-caching"]),
        ("block_size", 16, ["--block-size=16"]),
        ("dtype", "bfloat16", ["--dtype", "bfloat16"]),
        ("dtype", "auto", ["--dtype", "auto"]),  # vLLM's own default, but asked for
        ("enforce_eager", False, ["--no-enforce-eager"]),
        ("scheduler_cls", "some.Scheduler", ["--scheduler-cls", "some.Scheduler"]),
    ],
    ids=lambda explicit: " ".join(explicit[2]),
)
@pytest.mark.parametrize("order", ["before", "after"])
def test_an_explicit_flag_wins_wherever_it_stands(explicit, order):
    name, value, flag = explicit
    flags = [*flag, "--plugin", "infogain"] if order == "before" else ["--plugin", "infogain", *flag]
    assert getattr(parse_serve(*flags), name) == value


@pytest.mark.parametrize(
    "parse",
    [
        partial(parse_serve, "some/model", "--plugin", "infogain"),
        partial(parse_serve, "--plugin", "infogain", "some/model"),
        partial(parse_serve, "--plugin", "infogain", "--model", "some/model"),
        partial(parse_api_server, "--model", "some/model", "--plugin", "infogain"),
        partial(parse_api_server, "--plugin", "infogain", "--model", "some/model"),
    ],
    ids=["serve M P", "serve P M", "serve P --model M", "api_server --model M P", "api_server P --model M"],
)
def test_a_named_model_gets_none_of_the_embedded_models_settings_wherever_it_stands(parse):
    namespace = parse()
    assert "some/model" in (namespace.model_tag, namespace.model)
    plain = parse_serve()
    settings = engine_defaults.model_args(None).keys() - {"model"}
    assert {name: getattr(namespace, name) for name in settings} == {name: getattr(plain, name) for name in settings}


@pytest.mark.parametrize(
    "parse",
    [
        partial(parse_serve, "infogain-tiny-image", "--plugin", "infogain"),
        partial(parse_serve, "--plugin", "infogain", "--model", "infogain-tiny-image"),
    ],
    ids=["serve M P", "serve P --model M"],
)
def test_a_model_that_ships_is_found_by_its_name(parse):
    namespace = parse()
    assert Path(namespace.model) == pictures.model_path()
    assert namespace.model_tag is None
    assert namespace.served_model_name == ["infogain-tiny-image"]
    assert namespace.dtype == "float32"


# Groups of settings: what the user gives of them wins, the rest stays ours.


@pytest.fixture
def on_cuda(monkeypatch):
    """What would be parsed on a GPU."""
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)


PIECEWISE = {"cudagraph_mode": CUDAGraphMode.PIECEWISE}
OURS_ON_CUDA = {**PIECEWISE, "max_cudagraph_capture_size": 1024, "use_non_causal": True, "backend": "outlines"}


def grouped(args: Any) -> dict:
    """The fields that we set, and further ones of these groups, out of parsed or offline engine arguments."""
    compilation, attention = args.compilation_config, args.attention_config
    return {
        "cudagraph_mode": compilation.cudagraph_mode,
        "max_cudagraph_capture_size": compilation.max_cudagraph_capture_size,
        "cudagraph_capture_sizes": compilation.cudagraph_capture_sizes,
        "use_non_causal": attention.use_non_causal,
        "attention_backend": attention.backend,
        "backend": args.structured_outputs_config.backend,
        "enforce_eager": args.enforce_eager,
    }


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ("", {}),
        ("--enforce-eager", {"enforce_eager": True}),
        ("-O0", {}),
        ("-O1", {}),
        ("-cc.cudagraph_mode NONE", {"cudagraph_mode": CUDAGraphMode.NONE}),
        ("-cc.max_cudagraph_capture_size 64", {"max_cudagraph_capture_size": 64}),
        ("-cc.debug_dump_path /tmp", {}),
        ('--compilation-config {"max_cudagraph_capture_size":64}', {"max_cudagraph_capture_size": 64}),
        # With sizes of the user's, vLLM itself takes the largest for the maximum.
        ("-cc.cudagraph_capture_sizes [1,2]", {"max_cudagraph_capture_size": None, "cudagraph_capture_sizes": [1, 2]}),
        ("--cudagraph-capture-sizes 1 2", {"max_cudagraph_capture_size": None}),
        ("--max-cudagraph-capture-size 64", {"max_cudagraph_capture_size": None}),
        ("--attention-backend TRITON_ATTN", {}),
        ("-ac.backend TRITON_ATTN", {"attention_backend": AttentionBackendEnum.TRITON_ATTN}),
        ("--structured-outputs-config.backend xgrammar", {"backend": "xgrammar"}),
        ("--structured-outputs-config.enable_in_reasoning true", {}),
    ],
)
def test_a_flag_for_one_setting_of_a_group_leaves_our_others_on_cuda(on_cuda, flags, changed):
    before = {"cudagraph_capture_sizes": None, "attention_backend": None, "enforce_eager": False}
    namespace = parse_serve("some/model", "--plugin", "infogain", *flags.split())
    assert grouped(namespace) == before | OURS_ON_CUDA | changed
    EngineArgs.from_cli_args(namespace)


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {}),
        ({"compilation_config": {"mode": 0}}, {}),
        ({"compilation_config": 2}, {}),
        ({"compilation_config": {"cudagraph_mode": "NONE"}}, {"cudagraph_mode": CUDAGraphMode.NONE}),
        ({"compilation_config": CompilationConfig(cudagraph_mode="NONE")}, {"cudagraph_mode": CUDAGraphMode.NONE}),
        ({"compilation_config": CompilationConfig(compile_sizes=[8])}, {}),
        (
            {"compilation_config": {"cudagraph_capture_sizes": [1, 2]}},
            {"max_cudagraph_capture_size": None, "cudagraph_capture_sizes": [1, 2]},
        ),
        ({"max_cudagraph_capture_size": 64}, {"max_cudagraph_capture_size": None}),
        ({"attention_config": {"flash_attn_version": 2}}, {}),
        ({"attention_config": AttentionConfig(flash_attn_version=2)}, {}),
        ({"structured_outputs_config": {"enable_in_reasoning": True}}, {}),
        ({"structured_outputs_config": {"backend": "guidance"}}, {"backend": "guidance"}),
    ],
)
def test_an_offline_argument_for_one_setting_of_a_group_leaves_our_others_on_cuda(on_cuda, given, changed):
    before = {"cudagraph_capture_sizes": None, "attention_backend": None, "enforce_eager": False}
    args = vllm_infogain.engine_args(**given)
    if isinstance(args["structured_outputs_config"], dict):  # as LLM does
        args["structured_outputs_config"] = StructuredOutputsConfig(**args["structured_outputs_config"])
    if isinstance(args["compilation_config"], int):
        args["compilation_config"] = {"mode": args["compilation_config"]}
    assert grouped(EngineArgs(model="some/model", **args)) == before | OURS_ON_CUDA | changed


def test_settings_of_the_users_are_not_changed_in_place():
    theirs = StructuredOutputsConfig()
    assert vllm_infogain.engine_args(structured_outputs_config=theirs)["structured_outputs_config"] is not theirs
    assert theirs == StructuredOutputsConfig()


def test_an_unknown_plugin_is_refused(capsys):
    with pytest.raises(SystemExit):
        parse_serve("some/model", "--plugin", "other")
    assert "infogain" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--enable-lora"], "enable_lora=True: not supported with masked diffusion"),
        (["--pipeline-parallel-size", "2"], "pipeline_parallel_size=2: not supported with masked diffusion"),
        (["--logprobs-mode", "raw_logits"], "logprobs_mode='raw_logits': not supported with masked diffusion"),
        (["--logits-processors", "some:Processor"], "logits_processors=['some:Processor']: not supported"),
        (["--additional-config", '{"infogian": {"num_candidates": 2}}'], "additional_config['infogian']="),
        (["--additional-config", '{"infogain": {"candidates": 2}}'], "candidates=2: unknown parameter"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_cannot_be_honoured_ends_the_start_as_the_command_line_is_read_by_its_last_line(flags, said, capsys):
    with pytest.raises(SystemExit):
        parse_serve("some/model", "--plugin", "infogain", *flags)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert f"error: {said}" in last


def test_without_the_flag_the_parser_gives_what_it_gives_without_the_plugin():
    code = """
        import json, os, sys
        from vllm import plugins
        from vllm.entrypoints.cli.serve import ServeSubcommand
        from vllm.utils.argparse_utils import FlexibleArgumentParser

        def parsed():
            parser = FlexibleArgumentParser()
            ServeSubcommand().subparser_init(parser.add_subparsers(dest="subparser"))
            return {name: repr(value) for name, value in vars(parser.parse_args(sys.argv[1:])).items()}

        without = parsed()
        assert "vllm_infogain.plugin" not in sys.modules
        del os.environ["VLLM_PLUGINS"]
        plugins.plugins_loaded = False
        print(json.dumps({"without": without, "installed": parsed()}))
    """
    arguments = ["serve", "some/model", "--max-num-seqs", "7", "--dtype", "float32"]
    without, installed = run_python(code, *arguments, VLLM_PLUGINS="").values()
    assert installed.pop("plugin") == "None"
    assert "plugin" not in without
    assert installed == without


# Other models.


def write_llama(path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(VOCAB), hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=128, bos_token_id=VOCAB[BOS],
        eos_token_id=VOCAB[EOS], pad_token_id=VOCAB[EOS], initializer_range=0.3, dtype="float32",
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    save_tokenizer(path)


def test_our_renderer_is_refused_for_another_model(tmp_path):
    write_llama(tmp_path)
    load_general_plugins()
    with pytest.raises(ValueError, match="tokenizer_mode='infogain': it is of masked diffusion models"):
        EngineArgs(model=str(tmp_path), tokenizer_mode="infogain").create_model_config()


RUN_LLAMA = """
    import json, sys
    from vllm import LLM, SamplingParams

    llm = LLM(sys.argv[1], dtype="float32", block_size=32, kv_cache_memory_bytes=64 << 20, enforce_eager=True)
    core = llm.llm_engine.engine_core.engine_core
    # What our admission check would refuse: another model must never meet it.
    sampled = dict(max_tokens=12, seed=5, logprobs=2, top_p=0.9, min_p=0.01, presence_penalty=0.3)
    result = {
        "scheduler": type(core.scheduler).__qualname__,
        "worker": type(core.model_executor.driver_worker.worker).__qualname__,
        "plugins loaded": sorted(name for name in sys.modules if name == "vllm_infogain.plugin"),
    }
    for name, params in {"greedy": dict(max_tokens=12, temperature=0), "sampled": sampled}.items():
        outputs = llm.generate(["judge 1+2", "sudoku 1..4", "<|mask|>"], SamplingParams(**params), use_tqdm=False)
        result[name] = [list(output.outputs[0].token_ids) for output in outputs]
    result["logprobs"] = [
        sorted((token, entry.logprob) for token, entry in step.items()) for step in outputs[0].outputs[0].logprobs
    ]
    print(json.dumps(result))
"""


@pytest.mark.engine
def test_the_installed_plugin_changes_nothing_for_other_models(tmp_path):
    write_llama(tmp_path)
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    without = run_python(RUN_LLAMA, str(tmp_path), **environment, VLLM_PLUGINS="")
    installed = run_python(RUN_LLAMA, str(tmp_path), **environment)
    assert without.pop("plugins loaded") == []
    assert installed.pop("plugins loaded") == ["vllm_infogain.plugin"]
    assert len(without["greedy"]) == len(without["sampled"]) == 3
    assert without["greedy"] != without["sampled"]
    assert installed == without
