"""Borders inside the package: who may import vLLM, which room may import which, and what works without vLLM."""

import subprocess
import sys
import textwrap
from pathlib import Path

from seams import imported_modules
from waiting import PATIENCE

import vllm_infogain

ROOT = Path(vllm_infogain.__file__).parents[1]
MAY_IMPORT_VLLM = (
    "compat.py",
    "engine/ray_on_cpu.py",  # a platform of vLLM, which it imports by itself
    "engine/worker.py",
    "embedded/evaluation.py",  # users of vLLM's public API, like the demo
    "images/offline.py",
    "embedded/pictures/evaluation.py",
    "model_executors/",
    "patches/",
    "plugin.py",
    "engine_defaults.py",
    "__init__.py",
)


# What each room may import, at the top of a file or later, besides itself; a room is a folder, or a file beside them.
ROOMS = {
    "compat": set(),
    "request": {"compat"},
    "grammar": {"compat", "request"},
    "sampling": {"request", "grammar"},
    "reference": {"request", "grammar", "sampling"},
    "library": {"request", "sampling"},
    "model_executors": set(),
    "images": {"request"},
    "engine": {"compat", "request", "grammar", "sampling", "model_executors", "images"},
    "serving": {"compat", "request", "grammar", "sampling", "images", "embedded"},  # the page judges its puzzles
    "embedded": {"request", "images", "reference", "vllm_infogain"},
    "engine_defaults": {"engine", "embedded"},
    "ray_serve": {"compat", "engine_defaults"},
    "vllm_infogain": {"request", "library", "engine_defaults"},
    "batch": {"compat", "request", "engine_defaults"},
    "patches": {"compat", "request", "grammar", "engine", "serving", "model_executors", "engine_defaults"},
    "plugin": {"compat", "engine", "model_executors", "patches"},
}


def sources() -> dict[str, Path]:
    """Every module, by its path inside the package."""
    folders = {"vllm_infogain": "", "model_executors": "model_executors/", "patches": "patches/"}
    return {
        prefix + path.relative_to(ROOT / folder).as_posix(): path
        for folder, prefix in folders.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def room(module: str) -> str:
    """Of `vllm_infogain.sampling.rows`: sampling."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in ROOMS else "vllm_infogain"


def test_a_room_imports_only_those_below_it():
    crossed = {}
    for name, path in sources().items():
        here = name.removesuffix(".py").split("/")[0]
        here = here if here in ROOMS else "vllm_infogain"
        there = {room(module) for module in imported_modules(path) if module.split(".")[0] == "vllm_infogain"}
        if beyond := there - {here} - ROOMS[here]:
            crossed[name] = beyond
    assert not crossed


def test_no_circle_leads_through_the_rooms():
    # The package's own front, `import vllm_infogain`, is what users import; `embedded` is such a user.
    below = {name: rooms - {"vllm_infogain"} for name, rooms in ROOMS.items()}
    while below:
        lowest = [name for name, rooms in below.items() if not rooms & below.keys()]
        assert lowest, f"a circle among {sorted(below)}"
        below = {name: rooms for name, rooms in below.items() if name not in lowest}


def test_no_circle_leads_through_the_modules():
    # A module's own folder aside: importing it runs the folder's `__init__`, which may import the module.
    names = {_module_name(name): path for name, path in sources().items() if not name.endswith("__init__.py")}
    imports = {
        name: {
            candidate
            for module in imported_modules(path)
            for candidate in (module, module.rpartition(".")[0])
            if candidate in names
        }
        for name, path in names.items()
    }
    while imports:
        lowest = [name for name, modules in imports.items() if not modules & imports.keys()]
        assert lowest, f"a circle among {sorted(imports)}, or below them"
        imports = {name: modules for name, modules in imports.items() if name not in lowest}


def _module_name(source: str) -> str:
    """Of `sampling/rows.py`: vllm_infogain.sampling.rows."""
    return "vllm_infogain." + source.removesuffix(".py").replace("/", ".")


def test_a_request_is_parsed_at_admission_and_by_the_scheduler_never_by_the_worker():
    parser = "vllm_infogain.request.from_vllm.decoding_params"
    importers = {name for name, path in sources().items() if parser in imported_modules(path)}
    assert importers == {"serving/admission.py", "engine/request_state.py"}


def test_only_the_named_modules_import_vllm():
    importers = {
        name for name, path in sources().items() if any(name.split(".")[0] == "vllm" for name in imported_modules(path))
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
    modules = ["", ".request.params", ".sampling.decoder", ".reference.oracle", ".embedded.tasks"]
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


def test_the_top_level_is_that_of_any_project():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {Path(line).parts[0] for line in listed.splitlines()}
    assert {name for name in top if not name.startswith(".")} == {
        "pyproject.toml", "vllm_infogain", "model_executors", "patches", "benchmarks", "tests", "README.md",
        "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile",
    }  # fmt: skip
