"""The tasks' problems: from where they are published, or from local files.

lm-eval hands a task's functions everything of `--metadata`; `data` is ours: a file, or a folder that holds a file of
each task's name below.
"""

import csv
import gzip
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

D1 = "https://raw.githubusercontent.com/dllm-reasoning/d1/6f5abf5ca8a58c6e08bbf06d412ad260dca6dbd3/dataset"
AUTHORS = "https://raw.githubusercontent.com/yks23/Information-Gain-Sampler/7e21cc70626855a0e8d5e0ea0faf08c582bb2ac0"


@dataclass(frozen=True)
class Source:
    """Where a task's test problems are published, the columns that are used, and a local file's name."""

    published: str  # a data set of the Hub and its configuration, or a file's address
    columns: tuple[str, ...]
    local: str


SOURCES = {
    "gsm8k": Source("openai/gsm8k main", ("question", "answer"), "gsm8k_test.jsonl"),
    "math500": Source("HuggingFaceH4/MATH-500 default", ("problem", "answer"), "math500.jsonl"),
    "humaneval": Source(
        "openai/openai_humaneval openai_humaneval", ("prompt", "canonical_solution", "test", "entry_point"),
        "HumanEval.jsonl.gz",
    ),
    "mbpp": Source(
        "google-research-datasets/mbpp full",
        ("text", "code", "test_list", "test_setup_code", "challenge_test_list"), "mbpp_test.jsonl",
    ),
    "sudoku": Source(f"{D1}/4x4_test_sudoku.csv", ("Puzzle", "Solution"), "sudoku4_test.csv"),
    "countdown": Source(f"{D1}/countdown_cd3_test.jsonl", ("input", "output"), "countdown_cd3_test.jsonl"),
    "writing": Source(
        f"{AUTHORS}/src/benchmarks/text_tasks/creativity_writing/data/creativity_writing.jsonl", ("prompt",),
        "writing_prompts.jsonl",
    ),
}  # fmt: skip


def splits(task: str, data: str | None = None, **_of_lm_eval: Any) -> dict[str, Any]:
    """The task's data as lm-eval asks for it; it adds keys of its own to those of `--metadata`."""
    return {"test": problems(task, data)}


def problems(task: str, data: str | None = None) -> Any:
    """A `datasets.Dataset` of the task's test problems."""
    from datasets import Dataset, DownloadManager, load_dataset

    source = SOURCES[task]
    if data is not None:
        path = local_file(data, source.local)
        rows = Dataset.from_list(read(path, path.name))
    elif "://" not in source.published:
        rows = load_dataset(*source.published.split(), split="test")
    else:
        downloaded = DownloadManager().download(source.published)  # kept in the cache, under a name of its own
        rows = Dataset.from_list(read(Path(downloaded), source.published))
    if missing := set(source.columns) - set(rows.column_names):
        raise ValueError(f"data={data}: problems of {task} have no {', '.join(sorted(missing))}, see {__name__}")
    return rows.select_columns(list(source.columns))


def read(path: Path, name: str) -> list[dict[str, Any]]:
    """Rows of a table (every cell is text) or lines of JSON, also packed by gzip."""
    with gzip.open(path, "rt") if name.endswith(".gz") else path.open() as file:
        return list(csv.DictReader(file)) if ".csv" in name else [json.loads(line) for line in file if line.strip()]


def local_file(data: str, name: str) -> Path:
    """The file itself, or the one of that name in the folder."""
    path = Path(data) / name if Path(data).is_dir() else Path(data)
    if not path.is_file():
        raise FileNotFoundError(f"data={data}: there is no file {path}; name a file, or a folder with {name}")
    return path


gsm8k, math500, humaneval, mbpp, sudoku, countdown, writing = (partial(splits, task) for task in SOURCES)
