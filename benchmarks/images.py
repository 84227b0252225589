"""Table 4 and Figures 7 and 8 of the paper on the picture model that ships: samplers by steps, six categories.

    python -m benchmarks.images [--per-category 100] [--steps 5 16 64] [--keep FOLDER]

Every picture is judged by GenEval's rules. Each cell's raw output is a file of FOLDER: a run that was stopped goes on
where it was. Writes the table, the sheet of pictures and the plot into the docs and ends in one line of JSON.
Needs the extra `paper`, for the plot.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # all of the engine's CPU time is this process's

import numpy as np

from benchmarks.environment import environment, settings_text
from benchmarks.image_figures import entropy_plot, sheet
from benchmarks.llm import started
from vllm_infogain.embedded.pictures import judging, model_path
from vllm_infogain.embedded.pictures.classifier import (
    Classifier,
    features,
    frechet_distance,
    inception_score,
    train_classifier,
)
from vllm_infogain.embedded.pictures.evaluation import Drawn, draw_all
from vllm_infogain.embedded.pictures.judging import are_right, held_out, picture_tokenizer, pictures
from vllm_infogain.embedded.pictures.scenes import Requirement, drawings
from vllm_infogain.images.geneval import CATEGORIES
from vllm_infogain.images.magvit import Magvit

# The paper's settings: both temperatures 0.4, N 8, no bypass.
GUIDANCE = 1.0
TEMPERATURE = 0.4
TEMPERATURES = {"maskgit": 1.0}  # of tokens; of the others it is TEMPERATURE
NOISE = {"position_temperature": TEMPERATURE}
LOOKAHEAD = {**NOISE, "num_candidates": 8, "bypass_threshold": 1.0}
SAMPLERS: dict[str, dict[str, Any]] = {
    "uniform": {"sampler": "uniform"},
    "entropy": {"sampler": "entropy", **NOISE},
    "confidence": {"sampler": "confidence", **NOISE},
    "margin": {"sampler": "margin", **NOISE},
    "confidence, no noise": {"sampler": "confidence"},
    "maskgit": {"sampler": "maskgit"},  # as published: draws at temperature 1, noise of its own
    "lookum": {"sampler": "lookum", **LOOKAHEAD},
    "info_gain, mean": {"sampler": "info_gain", **LOOKAHEAD, "state_uncertainty": "mean"},
    "info_gain, sum": {"sampler": "info_gain", **LOOKAHEAD, "state_uncertainty": "sum"},
}
UNCOUNTED: dict[str, dict[str, Any]] = {  # that choose the number of steps themselves
    "threshold": {"sampler": "threshold", "threshold": 0.9},
    "adaptive": {"sampler": "adaptive"},
}
FREE = 0  # steps: as many as the sampler takes
SCHEDULES = {5: "linear", 16: "maskgit", 64: "maskgit"}
REFERENCES = 4  # true drawings of each prompt, that FID compares with
SHOWN = ("confidence", "info_gain, sum")  # rows of the sheet
HEAD = ("steps", "sampler", *CATEGORIES, "mean", "FID", "IS", "entropy", "rows", "ms")


def cells(steps: Sequence[int], samplers: Sequence[str]) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Of the table: steps, name and knobs."""
    for count in steps:
        schedule = {} if count == FREE else {"schedule": SCHEDULES[count], "steps": count}
        known = UNCOUNTED if count == FREE else SAMPLERS
        for name in samplers:
            if name in known:
                yield count, name, {**known[name], **schedule, "guidance_scale": GUIDANCE}


def cell(
    llm: Any, wanted: Sequence[Requirement], knobs: dict[str, Any], temperature: float, kept: Path
) -> tuple[list[Drawn], float]:
    """Its pictures and the CPU seconds they took: drawn now, or read from where they were kept."""
    if kept.exists():
        first, *lines = kept.read_text().splitlines()
        return [Drawn(**json.loads(line)) for line in lines], json.loads(first)["cpu_seconds"]
    start = time.process_time()
    drawn = draw_all(llm, wanted, knobs, temperature=temperature, use_tqdm=True)
    seconds = time.process_time() - start
    lines = [json.dumps({"cpu_seconds": seconds, "knobs": knobs})]
    lines += [json.dumps(vars(one) | {"report": _without_steps(one.report)}) for one in drawn]
    unfinished = kept.with_suffix(".part")
    unfinished.write_text("\n".join(lines) + "\n")
    unfinished.rename(kept)
    return drawn, seconds


def _without_steps(report: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in report.items() if name != "trajectory"}


def figures(drawn: list[Drawn], seconds: float, tokenizer: Magvit, judge: "Judge") -> dict[str, Any]:
    """What the table says of a cell."""
    wanted = [one.requirement for one in drawn]
    shown = pictures(tokenizer, [one.codes for one in drawn])
    by_category = shares(are_right(shown, wanted), wanted)
    means = {name: float(np.mean([one.report[name] for one in drawn])) for name in ("cumulative_entropy", "rows")}
    return by_category | judge.figures(shown) | means | {"cpu_ms": 1000 * seconds / len(drawn)}


def shares(right: Sequence[bool], wanted: Sequence[Requirement]) -> dict[str, float]:
    """Share of right pictures by category, their mean, and its standard error over prompts and seeds (binomial)."""
    share, count = judging.shares(right, wanted), len(wanted) // len(CATEGORIES)
    mean = sum(share.values()) / len(CATEGORIES)
    variance = sum(one * (1 - one) / count for one in share.values())
    return share | {"mean": mean, "standard_error": variance**0.5 / len(CATEGORIES)}


class Judge:
    """FID and IS against true drawings of the same prompts."""

    def __init__(self, wanted: Sequence[Requirement]) -> None:
        self.classifier: Classifier = train_classifier()
        self.true = drawings(list(wanted) * REFERENCES, seed=1)
        self.features, _ = features(self.classifier, self.true)

    def figures(self, shown: np.ndarray) -> dict[str, float]:
        values, probabilities = features(self.classifier, shown)
        return {"fid": frechet_distance(values, self.features), "inception_score": inception_score(probabilities)}


def row(steps: object, sampler: str, found: dict[str, Any]) -> str:
    cells = [
        "free" if steps == FREE else str(steps), sampler, *(f"{100 * found[category]:.0f}" for category in CATEGORIES),
        f"{100 * found['mean']:.1f} ± {100 * found['standard_error']:.1f}",
        f"{found['fid']:.2f}", f"{found['inception_score']:.2f}",
        *(f"{found[name]:{form}}" if name in found else ""
          for name, form in (("cumulative_entropy", ".1f"), ("rows", ",.0f"), ("cpu_ms", ".0f"))),
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--per-category", type=int, default=100, help="prompts of each of the six categories")
    parser.add_argument("--steps", type=int, nargs="+", choices=(*SCHEDULES, FREE), default=[*SCHEDULES, FREE],
                        help="0: as many as a sampler takes that chooses them itself")  # fmt: skip
    known = [*SAMPLERS, *UNCOUNTED]
    parser.add_argument("--samplers", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--keep", type=Path, help="folder of the raw output, to go on after a stop")
    parser.add_argument("--kept-only", action="store_true", help="of the cells that FOLDER has; nothing is drawn anew")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    keep = arguments.keep or Path(tempfile.mkdtemp(prefix="images-"))
    keep.mkdir(parents=True, exist_ok=True)
    wanted = held_out(arguments.per_category)
    machine = environment()
    print(f"environment: {machine}\nraw output: {keep}", flush=True)
    tokenizer, judge = picture_tokenizer(model_path()), Judge(wanted)
    lines = [_title(arguments.per_category, machine), "| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    results: list[dict[str, Any]] = []
    sheets: dict[tuple[int, str], np.ndarray] = {}
    true = drawings(list(wanted), seed=2)
    lines.append(row("", "true drawings", shares(are_right(true, wanted), wanted) | judge.figures(true)))
    print("\n".join(lines[1:]), flush=True)
    with started(str(model_path()), dtype="bfloat16", block_size=32, kv_cache_memory_bytes=1 << 30) as llm:
        draw_all(llm, wanted[:4], {"sampler": "confidence"})  # the first batch pays for what is set up on first use
        for steps, name, knobs in cells(arguments.steps, arguments.samplers):
            kept = keep / f"{steps} {name} {arguments.per_category}.jsonl".replace(",", "").replace(" ", "-")
            if arguments.kept_only and not kept.exists():
                continue
            drawn, seconds = cell(llm, wanted, knobs, TEMPERATURES.get(name, TEMPERATURE), kept)
            found = figures(drawn, seconds, tokenizer, judge)
            results.append({"steps": steps, "settings": settings_text(knobs), "name": name} | found)
            sheets[steps, name] = pictures(tokenizer, [one.codes for one in drawn])
            lines.append(row(steps, name, found))
            print(lines[-1], flush=True)
    folder = arguments.out.parent / "pictures"
    folder.mkdir(exist_ok=True)
    with_sheet = [steps for steps in arguments.steps if all((steps, name) in sheets for name in SHOWN)]
    for steps in with_sheet:
        sheet({name: sheets[steps, name] for name in SHOWN}, wanted, folder / f"sheet-{steps}.png")
    entropy_plot(results, folder / "entropy.png")
    arguments.out.write_text("\n".join(lines) + "\n" + _pictures(with_sheet))
    print(json.dumps({"benchmark": "images", "per_category": arguments.per_category, "results": results}))


def _title(per_category: int, machine: dict[str, Any]) -> str:
    return f"""\
# Pictures by every sampler, on the model that ships

Written by `python -m benchmarks.images`. {6 * per_category} held-out prompts, {per_category} of each of GenEval's
categories (a category with fewer prompts repeats them with other seeds), `guidance_scale` {GUIDANCE:g}, both
temperatures {TEMPERATURE} (`maskgit` has its published ones), N 8 and no bypass for samplers that look ahead; 5 steps
are `linear`, 16 and 64 `maskgit` (cosine). Where steps are free the sampler chooses their number, with its defaults.

Columns: share of right pictures in %, by category, and their mean ± standard error; FID and Inception score by a small
classifier of ours, against true drawings of the same prompts (no figures of Inception's: they compare samplers here,
and nothing else); cumulative entropy in nats, rows that the model computed and CPU milliseconds, all per picture.

Machine: {machine["cpu"]}, one thread, bf16, vLLM {machine["vllm"]}, torch {machine["torch"]}; other work beside it.
"""


def _pictures(steps: Sequence[int]) -> str:
    sheets = "".join(
        f"\n{count} steps, the same prompts and seeds: {' above, '.join(SHOWN)} below.\n\n"
        f"![pictures, {count} steps](pictures/sheet-{count}.png)\n"
        for count in steps
    )
    return f"\n![cumulative entropy against the share of right pictures](pictures/entropy.png)\n{sheets}"


if __name__ == "__main__":
    main()
