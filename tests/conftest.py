"""Settings every test shares. Engines run in this process, so that a test can step them and look inside."""

import os
from collections.abc import Iterator
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


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    if config.getvalue("dist") != "loadfile":
        return None
    from order import Scheduler

    config.option.loadscopereorder = False  # not by the number of tests, but in the order below
    return Scheduler(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):  # one of several processes
        from order import rank

        items.sort(key=rank)


# Servers that several modules share; order.py has these modules.


@pytest.fixture(scope="session")
def embedded_url() -> Iterator[str]:
    """A server of the embedded model, as it is without further flags, but with the page."""
    from server import serve

    # Thousands of samples, which vLLM serves by default, are no error, and take long: whoever draws bodies may ask so.
    environment = {"VLLM_MAX_N_SEQUENCES": "8", "VLLM_PLUGINS": "infogain,infogain_page"}
    with serve("--plugin", "infogain", environment=environment) as url:
        yield url


@pytest.fixture(scope="session")
def tiny_url(tmp_path_factory) -> Iterator[str]:
    """A server of a tiny random LLaDA, called `tiny`, with a default of ours, tools and vLLM's further routes."""
    from server import serve_tiny

    defaults = '{"infogain": {"num_candidates": 4}}'
    more = ("--enable-scale-out", "--enable-auto-tool-choice", "--tool-call-parser", "hermes")
    with serve_tiny(tmp_path_factory.mktemp("tiny"), "--additional-config", defaults, *more) as url:
        yield url


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A tiny random LLaDA."""
    from checkpoints import write_llada  # after the settings above: it imports torch

    path = tmp_path_factory.mktemp("llada")
    write_llada(path)
    return path
