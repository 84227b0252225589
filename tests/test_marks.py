"""`make check` starts no engine: whatever starts one refuses a test that is not marked `engine`."""

from pathlib import Path

import child
import engines
import pytest
import server


@pytest.mark.parametrize(
    "start",
    [
        lambda: engines.running(None).__enter__(),
        lambda: server.start().__enter__(),
        lambda: child.generate(Path(), []),
    ],
    ids=["engine", "server", "engine in a process"],
)
def test_a_test_without_the_mark_can_start_neither_engine_nor_server(start):
    with pytest.raises(AssertionError, match="marked `engine`"):
        start()
