"""A real `vllm serve` for tests."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import psutil
import pytest
from marked import refuse_unmarked
from waiting import PATIENCE, wait_until

MODEL_LENGTH = 1024  # positions of the model that `serve_tiny` serves
VLLM = Path(sys.executable).parent / "vllm"


@dataclass(frozen=True)
class Server:
    url: str
    process: subprocess.Popen  # of the API server; engine core and workers are its children


@contextmanager
def serve(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run `vllm serve *arguments`; yields the server's base URL once it is healthy. It must live to the end."""
    with start(*arguments, environment=environment) as server:
        yield server.url
        code = server.process.poll()
        assert code is None, f"the server died with code {code}"


@contextmanager
def start(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run `vllm serve *arguments`; yields the server once it is healthy. It may die, and is ended at the end.

    Args:
        arguments: of `vllm serve`; host and port are added.
        environment: variables beside this process's.
    """
    refuse_unmarked()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(VLLM), "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    variables = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
    variables |= environment or {}
    variables.pop("VLLM_ENABLE_V1_MULTIPROCESSING", None)  # engine core and worker in processes of their own
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, env=variables, stdout=log, stderr=log, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_healthy(process, url)
            yield Server(url, process)
        except BaseException:
            log.seek(0)
            print(log.read().decode(errors="replace")[-12000:])
            raise
        finally:
            _stop(process)


def titled(server: Server, title: str) -> list[psutil.Process]:
    """The server's processes whose title, which vLLM sets, starts so."""
    return [
        child for child in psutil.Process(server.process.pid).children(recursive=True)
        if " ".join(child.cmdline()).startswith(title)
    ]  # fmt: skip


def is_healthy(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=PATIENCE) as response:
            return response.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _wait_until_healthy(process: subprocess.Popen, url: str) -> None:
    def is_ready() -> bool:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended with code {process.returncode} before it was healthy")
        return is_healthy(url)

    wait_until(is_ready, lambda: "the server does not become healthy", every=0.5)


def _stop(process: subprocess.Popen) -> None:
    """End the server and whatever it started: it leads a process group of its own."""
    process.send_signal(signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=20)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@contextmanager
def serve_tiny(
    directory: Path, *arguments: str, name: str = "tiny", environment: Mapping[str, str] | None = None
) -> Iterator[str]:
    """`serve` a random LLaDA, written to a directory."""
    from checkpoints import write_llada

    write_llada(directory, max_sequence_length=MODEL_LENGTH)
    with serve(
        str(directory), "--plugin", "infogain", "--dtype", "float32", "--block-size", "32",
        "--kv-cache-memory-bytes", "67108864", "--served-model-name", name, *arguments, environment=environment,
    ) as url:  # fmt: skip
        yield url


def openai_client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE)


def assert_refused(create: Callable[..., Any], fields: dict[str, Any], parameter: str, stream: bool) -> None:
    """A request gets HTTP 400 with a message that names the parameter, before any stream starts."""
    with pytest.raises(openai.BadRequestError) as refusal:
        create(**fields, stream=stream)
    assert refusal.value.status_code == 400
    assert parameter in refusal.value.body["message"]
