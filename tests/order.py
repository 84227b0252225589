"""Which modules of tests come first, and which stay together, where processes share the tests (pytest-xdist)."""

from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

# Longest first: at the end one process waits for the other, and should not wait for one of these.
LONGEST = (
    "test_families_served", "test_graph_twin", "test_soak", "test_fuzz", "test_stress", "test_worker_death",
    "test_other_vllm", "test_ray", "test_device_twin", "test_plugin", "test_published", "test_metrics", "test_page",
    "test_engine_moe", "test_tensor_parallel", "test_data_parallel", "test_engine_compiled", "test_grammar",
)  # fmt: skip
# On the server that conftest.py starts once in a process: one process has them all.
ON_ONE_SERVER = ("test_stress", "test_harnesses", "test_infill_server", "test_readme", "test_server")


def rank(item: pytest.Item) -> int:
    module = item.path.stem
    module = ON_ONE_SERVER[0] if module in ON_ONE_SERVER else module
    return LONGEST.index(module) if module in LONGEST else len(LONGEST)


class Scheduler(LoadFileScheduling):
    """`--dist loadfile`, but modules on one server count as one file."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return " ".join(ON_ONE_SERVER) if Path(file).stem in ON_ONE_SERVER else file
