"""The paper's tables and figures, each by one command.

    python -m benchmarks.paper table2 [--limit 20]
    python -m benchmarks.paper table2 --model GSAI-ML/LLaDA-8B-Instruct
    python -m benchmarks.paper cases
    python -m benchmarks.paper list

Without --model it is the model that ships, on tasks that it can do. Every generation is kept in a file under --out; the
same command goes on where it was ended. README.md of this folder says more.
"""

import argparse
import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # all of the engine's CPU time is this process's
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.paper.catalogue import ELSEWHERE, experiments, groups
from benchmarks.paper.experiment import Experiment
from benchmarks.paper.problems import TINY
from benchmarks.paper.settings import setting
from vllm_infogain.embedded import SERVED_NAME


def main(argv: list[str] | None = None) -> int:
    known, named = experiments(), groups()
    asked = _parser([*known, *named, *ELSEWHERE, "list"]).parse_args(argv)
    if asked.name == "list":
        print("\n".join(f"{name:14} {one.title}" for name, one in known.items()))
        print("\n".join(f"{name:14} {', '.join(one.name for one in group)}" for name, group in named.items()))
        print("\n".join(f"{name:14} {command}" for name, command in ELSEWHERE.items()))
    elif asked.name in ELSEWHERE:
        print(f"{asked.name} is made by: {ELSEWHERE[asked.name]}")
    else:
        with contextlib.ExitStack() as stack:
            engine = functools.cache(lambda: stack.enter_context(_engine(asked)))  # one for all, if any needs it
            for experiment in named.get(asked.name) or [known[asked.name]]:
                run(experiment, asked, engine)
    return 0


def run(experiment: Experiment, asked: argparse.Namespace, engine: Callable[[], Any]) -> None:
    from benchmarks.paper import replicas
    from benchmarks.paper.engines import attends_in_blocks, has_chat_template, served_model
    from benchmarks.paper.files import folder_of
    from benchmarks.paper.problems import questions
    from benchmarks.paper.run import Job, decode_missing, seconds_left

    if asked.url and not asked.model:
        asked.model = served_model(asked.url)
    is_tiny = asked.model in (None, SERVED_NAME)
    overrides = dict(asked.set)
    if not (asked.url or asked.library) and attends_in_blocks(asked.model):
        overrides.setdefault("block_length", PAPER_BLOCK)
    cells = experiment.cells(
        tiny=is_tiny, runs=asked.runs, samplers=asked.samplers, tasks=asked.tasks, overrides=overrides
    )
    if not cells:
        print(f"{experiment.name}: of the embedded model only")
        return
    asked_of = {task: questions(task, asked.limit, asked.data) for task in dict.fromkeys(cell.task for cell in cells)}
    folder = asked.out / "server" / asked.model.replace("/", "--") if asked.url else folder_of(asked.out, asked.model)
    job = Job(cells, asked_of, folder)
    left = sum(map(len, job.missing().values()))
    print(f"{experiment.name}: {len(cells)} cells, {job.count} rows, {left} left; raw outputs: {folder}", flush=True)
    if asked.dry_run:
        if left:
            print(f"about {_duration(seconds_left(job, engine()))} on this engine, by a short measurement")
        return
    if left and asked.replicas:
        replicas.decode_missing(
            job, folder / "batches", _batch_options(asked), asked.plain or not has_chat_template(asked.model),
            show_progress=not asked.quiet,
        )  # fmt: skip
    elif left:
        decode_missing(job, engine(), asked.batch_size, show_progress=not asked.quiet)
    write_page(experiment, job, asked)


def write_page(experiment: Experiment, job: Any, asked: argparse.Namespace) -> None:
    from benchmarks.paper.layout import page

    results = _compared(experiment, job, asked) if experiment.compares else job.results()
    pages: Path = asked.pages or asked.out
    pages.mkdir(parents=True, exist_ok=True)
    picture = None
    if experiment.draw is not None and not asked.no_figure:
        picture = pages / f"{experiment.name}.{asked.format}"
        experiment.draw(experiment, results, picture)
    said = page(experiment, results, _said(experiment, job, asked), picture.name if picture else None)
    (pages / f"{experiment.name}.md").write_text(said)
    print(said)


def _compared(experiment: Experiment, job: Any, asked: argparse.Namespace) -> Any:
    from benchmarks.paper import verdicts
    from benchmarks.paper.judge import endpoint

    results = job.results()
    if all(task in TINY for task in job.questions):
        return verdicts.compared(results, experiment.compares, verdicts.by_rules(results))
    if not asked.judge_url:
        print("No text is compared without a judge: give --judge-url and --judge-model.", file=sys.stderr)
        return results
    ask = endpoint(asked.judge_url, asked.judge_model, asked.judge_key)
    judge = verdicts.Judge(ask, asked.judge_model, job.folder / "verdicts")
    return verdicts.compared(results, experiment.compares, judge.prefer(results, job.questions))


def _said(experiment: Experiment, job: Any, asked: argparse.Namespace) -> list[str]:
    """Sentences above the table: what was run."""
    model = f"`{asked.model or SERVED_NAME}`, rows in `{job.folder.name}` (named by its weights)"
    runs = len({cell.run for cell in job.cells})
    problems = sorted({len(one) for one in job.questions.values()})
    count = f"{problems[0]}" if len(problems) == 1 else f"{problems[0]} to {problems[-1]}"
    return [
        f"Written by `python -m benchmarks.paper {experiment.name}`. Model: {model}.",
        f"Problems of each task: {count}; generations of each problem: {runs}.",
        "Mean ± standard error over problems; accuracy in %; entropy: cumulative, in nats per generation.",
        *([f"The paper's figures are of {experiment.paper_model} on the paper's tasks."] if experiment.paper else []),
    ]


@contextlib.contextmanager
def _engine(asked: argparse.Namespace) -> Iterator[Any]:
    from benchmarks.paper import engines

    if asked.url:
        yield engines.Server(asked.url, asked.model, asked.concurrency, asked.plain)
    elif asked.library:
        yield engines.library(asked.model)
    else:
        with engines.in_process(asked.model, asked.engine_args, asked.plain) as engine:
            yield engine


def _batch_options(asked: argparse.Namespace) -> list[str]:
    options = ["--replicas", str(asked.replicas), "--engine-args", json.dumps(asked.engine_args)]
    return options + (["--model", asked.model] if asked.model else [])


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{minutes} minutes" if minutes < 120 else f"{seconds / 3600:.1f} hours"


PAPER_BLOCK = 16


def _object(text: str) -> dict[str, Any]:
    value = json.loads(text)
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError("give a JSON object")
    return value


def _positive(text: str) -> int:
    if (count := int(text)) < 1:
        raise argparse.ArgumentTypeError("give 1 or more")
    return count


def _parser(names: list[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=names, metavar="NAME", help="tables and figures; `list` shows all")
    parser.add_argument("--model", help="checkpoint directory or hub name; with --url, its name there")
    parser.add_argument("--url", help="of a running server of ours")
    parser.add_argument("--concurrency", type=_positive, default=16, help="requests to the server at once")
    parser.add_argument("--replicas", type=_positive, help="engines, by the batch command (Ray)")
    parser.add_argument("--library", action="store_true", help="without vLLM: the embedded model, or a LLaDA")
    parser.add_argument("--engine-args", type=_object, default={}, metavar="JSON", help="engine arguments of vLLM")
    parser.add_argument("--plain", action="store_true", help="prompts as text, not as chats")
    parser.add_argument("--limit", type=_positive, help="only the first problems of each task")
    parser.add_argument("--runs", type=_positive, help="generations of each problem; without, as many as the paper's")
    parser.add_argument("--samplers", nargs="+", default=[], metavar="NAME", help="only these lines of the table")
    parser.add_argument("--tasks", nargs="+", default=[], metavar="TASK", help="only these tasks")
    parser.add_argument(
        "--set", nargs="+", type=setting, default=[], metavar="NAME=VALUE",
        help="over the paper's: decoding parameters, max_gen_toks, temperature",
    )  # fmt: skip
    parser.add_argument("--data", help="a folder of local files; without, tasks come from where they are published")
    parser.add_argument("--judge-url", help="of table5's judge: an OpenAI-compatible endpoint, up to and with /v1")
    parser.add_argument("--judge-model", help="the judge's name there")
    parser.add_argument("--judge-key", default=os.environ.get("OPENAI_API_KEY", "none"), help="default: OPENAI_API_KEY")
    parser.add_argument("--out", type=Path, default=Path("paper-results"), help="folder of raw outputs")
    parser.add_argument("--pages", type=Path, help="folder of the page and the picture; without, --out")
    parser.add_argument("--format", choices=("svg", "png"), default="svg", help="of the picture")
    parser.add_argument("--no-figure", action="store_true", help="the table alone; needs no matplotlib")
    parser.add_argument("--batch-size", type=_positive, default=64, help="rows between two writes")
    parser.add_argument("--dry-run", action="store_true", help="say how many rows there are, and how long they take")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(main())
