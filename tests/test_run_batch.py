"""`vllm run-batch`: what it cannot run is refused before a model is loaded, by line and remedy. No engine runs here."""

import asyncio
import json
import os
import re
from contextlib import asynccontextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm_infogain.patches.run_batch import first_refusal, text_of

from vllm_infogain import plugin
from vllm_infogain.compat import api_server_entry, run_batch
from vllm_infogain.embedded import model_path
from vllm_infogain.embedded.tokenizer import save_tokenizer

MESSAGES = [{"role": "user", "content": "multiply 6*7"}]


def line(url: str = "/v1/chat/completions", **body: Any) -> str:
    body = body or {"model": "tiny", "messages": MESSAGES}
    return json.dumps({"custom_id": "a", "method": "POST", "url": url, "body": body})


def test_a_file_of_chats_is_run():
    assert first_refusal(f"{line()}\n\n{line(model='tiny', messages=MESSAGES, n=2)}\n") is None


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (line("/v1/completions", model="tiny", prompt="1+1"), "'/v1/completions'.*vllm_infogain.batch"),
        (line("/v1/completions", model="tiny", input="1+1"), "'/v1/completions'.*vllm_infogain.batch"),
        (line("/v1/embeddings", model="tiny", input="1+1"), "'/v1/embeddings'.*only /v1/chat/completions"),
        (line(model="tiny"), r"body\.messages: Field required"),
        (line(model="tiny", messages=MESSAGES, temperature="hot"), r"body\.temperature: .*number"),
        (line(model="tiny", messages=MESSAGES, top_logprobs=4), "logprobs.*must be set"),
        ('{"url": "/v1/chat/completions", "body": {}}', "custom_id: Field required"),
        ('{"custom_id": "a", "method": "POST"}', "give a JSON object with custom_id"),
        ('{"custom_id', "give a JSON object with custom_id"),
        ("[]", "give a JSON object with custom_id"),
    ],
)
def test_the_first_line_that_cannot_be_run_is_named_with_the_reason(bad, told):
    refused = first_refusal(f"{line()}\n\n{bad}\n{bad}\n")
    assert refused is not None
    assert refused.startswith("line 3: ")
    assert re.search(told, refused), refused


class EngineStartsError(Exception):
    """In place of an engine."""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """The batch runner's `main` on a file of these lines, up to where it would start an engine."""
    plugin.register()

    @asynccontextmanager
    async def start(*args, **kwargs):
        raise EngineStartsError
        yield

    monkeypatch.setattr(api_server_entry, "build_async_engine_client", start)

    def call(lines: list[str], *arguments: str) -> None:
        (tmp_path / "in.jsonl").write_text("\n".join(lines))
        parser = run_batch.make_arg_parser(FlexibleArgumentParser())
        files = ["-i", str(tmp_path / "in.jsonl"), "-o", str(tmp_path / "out.jsonl")]
        asyncio.run(run_batch.main(parser.parse_args([*files, *arguments])))

    return call


PROMPT = line("/v1/completions", model="tiny", prompt="1+1")


@pytest.mark.parametrize("arguments", [["--plugin", "infogain"], ["--model", str(model_path())]])
def test_completions_are_refused_before_an_engine_starts(run, arguments):
    with pytest.raises(SystemExit, match=r"^vllm run-batch: .*in\.jsonl, line 2: url='/v1/completions'"):
        run([line(), PROMPT], *arguments)
    with pytest.raises(EngineStartsError):
        run([line(), line()], *arguments)


def test_a_file_for_a_model_that_is_not_ours_is_vllms_to_judge(run, tmp_path):
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    save_tokenizer(Path(tmp_path / "llama"))
    with pytest.raises(EngineStartsError):
        run([PROMPT], "--model", str(tmp_path / "llama"))


def test_a_file_behind_a_url_is_checked_and_one_that_can_be_read_once_is_left_to_vllm(tmp_path):
    (tmp_path / "in.jsonl").write_text(PROMPT)
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        assert text_of(f"http://127.0.0.1:{server.server_port}/in.jsonl") == PROMPT
        server.shutdown()
    os.mkfifo(tmp_path / "pipe")
    assert text_of(str(tmp_path / "pipe")) == ""
