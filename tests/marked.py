"""Which tests may start a real engine or server: those marked `engine`. `make check` runs the others."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

MARK = "engine"
ALLOWED = "VLLM_INFOGAIN_TEST_IS_MARKED_ENGINE"  # in the environment, so that a test's processes know it too


@contextmanager
def running_a_test(is_marked: bool) -> Iterator[None]:
    before = os.environ.get(ALLOWED)
    os.environ[ALLOWED] = "yes" if is_marked else "no"
    try:
        yield
    finally:
        if before is None:
            del os.environ[ALLOWED]
        else:
            os.environ[ALLOWED] = before


def refuse_unmarked() -> None:
    """Called by whatever starts an engine for a test; outside tests nothing is refused."""
    assert os.environ.get(ALLOWED) != "no", f"a test that starts an engine is marked `{MARK}`"
