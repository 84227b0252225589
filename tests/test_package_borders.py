"""Borders inside the package: who may import vLLM, and what works without it."""

import ast
import subprocess
import sys
import textwrap
from pathlib import Path

from waiting import PATIENCE

import vllm_infogain

ROOT = Path(vllm_infogain.__file__).parents[1]
MAY_IMPORT_VLLM = (
    "compat.py",
    "engine/worker.py",
    "evaluation.py",  # a user of vLLM's public API, like the demo
    "model_executors/",
    "patches/",
    "plugin.py",
    "__init__.py",
)


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_only_the_named_modules_import_vllm():
    sources = [*(ROOT / "vllm_infogain").rglob("*.py"), *(ROOT / "model_executors").glob("*.py")]
    sources += (ROOT / "patches").glob("*.py")
    importers = {
        str(path.relative_to(ROOT)).removeprefix("vllm_infogain/")
        for path in sources
        if any(name.split(".")[0] == "vllm" for name in imported_modules(path))
    }
    assert "compat.py" in importers
    assert not {path for path in importers if not path.startswith(MAY_IMPORT_VLLM)}


def test_the_algorithm_works_where_vllm_cannot_be_imported():
    code = """
        import importlib, sys

        class NoVLLM:
            def find_spec(self, name, path=None, target=None):
                if name.split(".")[0] == "vllm":
                    raise ImportError(f"{name} must not be imported here")

        sys.meta_path.insert(0, NoVLLM())
        for name in sys.argv[1:]:
            importlib.import_module(name)
        try:
            import vllm_infogain.compat
        except ImportError:
            print("kept out")
    """
    modules = ["", ".params", ".sampling.decoder", ".reference.oracle", ".embedded.tasks"]
    names = [f"vllm_infogain{module}" for module in modules]
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), *names],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout == "kept out\n"
