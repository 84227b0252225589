"""What is installed is one distribution, with the model in it, whose algorithm needs no vLLM."""

import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from seams import imported_modules

ROOT = Path(__file__).parent.parent
DISTRIBUTIONS = {"PIL": "pillow"}  # by the name of what is imported, where it is another


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    # Of a copy: setuptools leaves folders beside what it builds, and packs what an earlier build has left there.
    folder, copy = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("checkout")
    for name in ("vllm_infogain", "model_executors", "patches"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, copy]
    subprocess.run(command, check=True)
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def test_only_one_package_lands_in_site_packages(wheel: zipfile.ZipFile):
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"vllm_infogain"}


def test_every_module_and_the_model_are_in_the_wheel(wheel: zipfile.ZipFile):
    names = set(wheel.namelist())
    folders = {"vllm_infogain": ".", "model_executors": "vllm_infogain", "patches": "vllm_infogain"}
    for folder, parent in folders.items():
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in {".py", ".json", ".safetensors", ".jinja", ".md"}:
                assert (Path(parent) / path.relative_to(ROOT)).as_posix() in names
    assert sum(wheel.getinfo(name).file_size for name in names if "/embedded/model/" in name) < 10_000_000


def test_vllm_finds_the_plugin_and_only_an_extra_needs_vllm(wheel: zipfile.ZipFile):
    (info,) = {name.split("/")[0] for name in wheel.namelist() if name.split("/")[0].endswith(".dist-info")}
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "[vllm.general_plugins]\ninfogain = vllm_infogain.plugin:register" in entry_points
    assert "[vllm.platform_plugins]\ninfogain = vllm_infogain.engine.ray_on_cpu:platform" in entry_points
    metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
    needs_vllm = [line for line in metadata.get_all("Requires-Dist") if line.startswith("vllm")]
    assert len(needs_vllm) == 1
    assert 'extra == "cuda"' in needs_vllm[0]


def test_all_that_our_code_imports_is_named_as_needed():
    imported = set()
    for folder in ("vllm_infogain", "model_executors", "patches"):
        for path in (ROOT / folder).rglob("*.py"):
            imported |= {module.split(".")[0] for module in imported_modules(path)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    lines = [*project["dependencies"], *(line for extra in ("serving", "cuda", "ray") for line in extras[extra])]
    named = {Requirement(line).name for line in lines}
    imported = {DISTRIBUTIONS.get(name, name) for name in imported}
    with_torch = {"triton"}  # its builds for CUDA bring it
    assert imported - sys.stdlib_module_names - {"vllm_infogain"} - with_torch == named
    assert set(extras["serving"]) <= set(extras["dev"])
