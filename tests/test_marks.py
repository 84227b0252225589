"""`make check` starts no engine: whatever starts one refuses a test that is not marked `engine`."""

from pathlib import Path

import child
import engines
import pytest
import server
from order import LONGEST, ON_ONE_SERVER


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


def test_the_order_names_the_modules_that_there_are_and_all_on_the_shared_server():
    texts = {path.stem: path.read_text() for path in Path(__file__).parent.glob("test_*.py")}
    assert set(LONGEST) <= texts.keys()
    for fixture, modules in ON_ONE_SERVER.items():
        assert set(modules) == {module for module, text in texts.items() if fixture in text}
