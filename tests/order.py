"""Which modules of tests come first, and which stay together, where processes share the tests (pytest-xdist)."""

from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

# Longest first: at the end one process waits for the other, and should not wait for one of these.
LONGEST = (
    "test_stress", "test_families_served", "test_graph_twin", "test_server", "test_ray",
    "test_worker_death", "test_other_vllm", "test_device_twin", "test_plugin", "test_published", "test_metrics",
    "test_page", "test_images_server", "test_engine_moe", "test_tensor_parallel", "test_data_parallel",
    "test_engine_compiled", "test_grammar",
)  # fmt: skip
# By the fixture of conftest.py: the modules on the server that it starts once in a process. One process has them all.
ON_ONE_SERVER = {
    "embedded_url": ("test_stress", "test_fuzz", "test_harnesses", "test_infill_server", "test_readme"),
    "tiny_url": ("test_server", "test_streaming"),
}


def first(module: str) -> str:
    """Of the modules on one server the first; else the module itself."""
    return next((modules[0] for modules in ON_ONE_SERVER.values() if module in modules), module)


def rank(item: pytest.Item) -> int:
    module = first(item.path.stem)
    return LONGEST.index(module) if module in LONGEST else len(LONGEST)


class Scheduler(LoadFileScheduling):
    """`--dist loadfile`, but modules on one server count as one file."""

    def _split_scope(self, nodeid: str) -> str:
        return first(Path(super()._split_scope(nodeid)).stem)
