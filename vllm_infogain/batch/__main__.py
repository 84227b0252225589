"""Decode a file of prompts on replicas of the engine: `python -m vllm_infogain.batch IN OUT`.

The same command again goes on where it was ended. See README.md of this folder.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from vllm_infogain import engine_defaults
from vllm_infogain.batch import source
from vllm_infogain.batch.folder import Folder

FEWEST, MOST = 16, 256  # rows per block: what a kill can cost, and what a part file holds
BLOCKS = 16  # per replica, where there are rows enough


def main(argv: list[str] | None = None) -> int:
    asked = _parser().parse_args(argv)
    try:
        summary = decode_file(asked)
    except source.InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(json.dumps(summary))
    return 0


def decode_file(asked: argparse.Namespace) -> dict[str, Any]:
    """What the command line asks for; returns the summary.

    Raises:
        InputError: nothing can be decoded as asked.
    """
    start = time.perf_counter()
    files = source.files_of(asked.input)
    file_format = asked.format or source.SUFFIXES[files[0].suffix]
    engine_args = engine_defaults.model_args(asked.model) | asked.engine_args
    decided = {
        "input": source.digest(files), "id": asked.id, "format": file_format, "defaults": asked.defaults,
        "seed": asked.seed, "engine_args": engine_args,
    }  # fmt: skip
    folder = Folder(asked.output)
    known = folder.open(decided)
    if known is None:
        count = source.count_rows(files, asked.id)
        rows_per_block = max(FEWEST, min(MOST, count // (BLOCKS * asked.replicas)))
        source.stage(files, asked.id, folder.rows, rows_per_block)
        known = decided | {"rows": count, "rows_per_block": rows_per_block}
        folder.close_staging(known)
    before = folder.rows_done()
    if before < known["rows"]:
        _run(asked, folder, known)
    return _summary(folder, known["rows"], before, time.perf_counter() - start)


def _run(asked: argparse.Namespace, folder: Folder, known: dict[str, Any]) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Replicas on one machine's cores: none may take them for itself.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    try:
        from vllm_infogain.batch import job
    except ImportError as error:
        raise source.InputError(f"{error}: batches run on Ray Data, pip install 'ray[data]>=2.60'") from error

    what = job.Job(
        model=known["engine_args"]["model"],
        replicas=asked.replicas,
        file_format=known["format"],
        rows=known["rows"],
        rows_per_block=known["rows_per_block"],
        seed=asked.seed,
        engine_args={name: value for name, value in known["engine_args"].items() if name != "model"},
        defaults=asked.defaults,
    )
    with job.session(asked.address, asked.replicas + 3, verbose=asked.verbose):
        job.run(what, folder)


def _summary(folder: Folder, count: int, before: int, seconds: float) -> dict[str, Any]:
    errors = list(folder.errors())
    if len(errors) != count:
        raise RuntimeError(f"{folder.path} has {len(errors)} rows of {count}; look for parts that were changed")
    return {
        "rows": count,
        "errors": sum(error is not None for error in errors),
        "done_before": before,
        "seconds": round(seconds, 2),
        "rows_per_second": round((count - before) / seconds, 2),
    }


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("give a JSON object")
    return value


def _replicas(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("give 1 or more")
    return count


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m vllm_infogain.batch", description=__doc__)
    parser.add_argument("input", type=Path, metavar="IN", help="rows: a .jsonl or .parquet file, or a folder of such")
    parser.add_argument("output", type=Path, metavar="OUT", help="folder of part files; all nodes must see it")
    parser.add_argument("--model", help="checkpoint directory or hub name; without, the model that ships")
    parser.add_argument("--replicas", type=_replicas, default=1, help="engines, each with its own weights")
    parser.add_argument("--id", metavar="COLUMN", help="of the rows' ids; without, `id` or the row's number")
    parser.add_argument("--format", choices=("jsonl", "parquet"), help="of the output; without, as the input")
    parser.add_argument("--defaults", type=_object, default={}, metavar="JSON", help="parameters of rows without")
    parser.add_argument("--seed", type=int, default=0, help="what the seeds of rows without one are derived from")
    parser.add_argument("--engine-args", type=_object, default={}, metavar="JSON", help="engine arguments of vLLM")
    parser.add_argument("--address", help="of a Ray cluster; without, $RAY_ADDRESS, or one of this machine alone")
    parser.add_argument("--verbose", action="store_true", help="show what the engines log")
    return parser


if __name__ == "__main__":
    sys.exit(main())
