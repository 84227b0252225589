"""How far a tiny model's logits are from those of plain torch on the same numbers, by number format and dtype.

`python tests/formats.py` prints the table of model_executors/README.md: the largest error of a logit. A start that
fails names its error.
"""

import os
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "CRITICAL")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"

from checkpoints import write_llada
from engines import running
from quantised import FORMS, quantise
from test_formats import first_logits
from vllm.distributed import cleanup_dist_env_and_memory

from vllm_infogain.reference.llada import LLaDA

DTYPES = ("float32", "bfloat16", "float16")


def largest_error(checkpoint: Path, plain: LLaDA, dtype: str) -> str:
    try:
        with running(checkpoint, plain, dtype=dtype) as engine:
            ours, exact = first_logits(engine, plain)
    except Exception as error:
        cleanup_dist_env_and_memory()
        return type(error).__name__
    return f"{(ours - exact).abs().max():.1g}"


def main() -> None:
    print("| weights | " + " | ".join(DTYPES) + " |\n|---" + "|---" * len(DTYPES) + "|")
    with tempfile.TemporaryDirectory() as directory:
        original = Path(directory) / "original"
        models = {"unquantised": (original, write_llada(original))}
        for form in FORMS:
            path = Path(directory) / form.replace(" ", "-")
            models[form] = (path, LLaDA.from_checkpoint(quantise(original, path, form)))
        for form, (path, plain) in models.items():
            print(f"| {form} | " + " | ".join(largest_error(path, plain, dtype) for dtype in DTYPES) + " |", flush=True)


if __name__ == "__main__":
    main()
