"""Settings every test shares. Engines run in this process, so that a test can step them and look inside."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from marked import MARK, running_a_test

# No property is timed, neither its examples nor how they are made: the machine may be busy.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# One thread: with a second one, OpenMP's spinning barriers make these tiny models forty times slower on a busy core.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    with running_a_test(is_marked=item.get_closest_marker(MARK) is not None):
        return (yield)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random LLaDA."""
    from checkpoints import write_llada  # after the settings above: it imports torch

    path = tmp_path_factory.mktemp("llada")
    write_llada(path)
    return path
