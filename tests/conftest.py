"""Settings every test shares. Engines run in this process, so that a test can step them and look inside."""

import os
from pathlib import Path

import pytest

# One thread: with a second one, OpenMP's spinning barriers make these tiny models forty times slower on a busy core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random LLaDA."""
    from checkpoints import write_llada  # after the settings above: it imports torch

    path = tmp_path_factory.mktemp("llada")
    write_llada(path)
    return path
