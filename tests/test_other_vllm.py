"""The other vLLM that this package supports: what must hold on the installed one, in a process on an overlay of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from vllm_overlay import VLLM, NotToBeHadError, environment, overlay
from waiting import PATIENCE

TESTS = Path(__file__).parent
pytestmark = pytest.mark.engine  # it starts none, but takes as long


@pytest.fixture(scope="module")
def folder() -> Path:
    try:
        return overlay()
    except NotToBeHadError as reason:
        pytest.skip(str(reason))


def test_the_overlay_is_the_other_vllm_on_a_cpu(folder):
    code = "import vllm; from vllm.platforms import current_platform as p; print(vllm.__version__, p.is_cpu())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        env=environment(folder),
    )
    assert done.stdout.split() == [VLLM, "True"]


def test_our_seams_are_in_the_other_vllm_too(folder):
    """Contracts, arguments, refusals and streams; none of these tests starts an engine."""
    modules = [path.name for path in sorted(TESTS.glob("test_vllm_contract*.py"))]
    modules += ["test_engine_arguments.py", "test_plugin.py", "test_sampling_fields.py", "test_streams.py"]
    options = ["-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-m", "not engine"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *modules],
        check=False, capture_output=True, text=True, timeout=580, cwd=TESTS, env=environment(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-12000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 100
