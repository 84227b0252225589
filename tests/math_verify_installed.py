"""For tests that need `math_verify`: where CI runs, its absence is a fault."""

import importlib.util
import os

import pytest

needs_math_verify = pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None and "CI" not in os.environ,
    reason="math_verify is not installed: pip install -e '.[dev]'",
)
