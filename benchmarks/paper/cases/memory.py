"""Memory by the number of candidates (Figure 10): peak of KV pages, and of the process.

    python -m benchmarks.paper.cases.memory [--pages FOLDER]

Each N is measured in a process of its own, on the random 12-layer model: the embedded one is smaller than what a
process gains and loses by itself. Writes the table and the figure into the folder.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.child import measure_apart
from benchmarks.environment import environment
from benchmarks.paper.drawing import axes
from benchmarks.paper.layout import table

CANDIDATES = (1, 2, 4, 8, 16, 32)
CANVAS, BLOCK = 256, 16
POOL = 512 << 20  # bytes of the KV pool, which is there from the start, whatever is used of it
# Nothing is bypassed, and the candidates are nearly all distinct.
KNOBS = {
    "sampler": "info_gain", "bypass_threshold": 1.0, "position_temperature": 5.0, "cache": "dual",
    "block_length": BLOCK,
}  # fmt: skip
Found = Mapping[str, Any]  # figures of one N


def measured(candidates: int) -> Found:
    knobs = {**KNOBS, "num_candidates": candidates}
    return measure_apart(engine={"kv_cache_memory_bytes": POOL}, canvas=CANVAS, knobs=knobs, cut_at=BLOCK)


def memory_table(found: Mapping[int, Found]) -> str:
    head = ["N", "KV pages, peak", "MB of KV", "over N=1", "MB of the process, peak", "over N=1", "rows per token"]
    first = found[min(found)]
    rows = []
    for candidates, one in found.items():
        pages, process = (f"{one[name] / first[name]:.2f}" for name in ("peak_pages", "peak_bytes"))
        megabytes = one["peak_pages"] * one["page_bytes"] / 1e6
        of_process = (f"{one['peak_bytes'] / 1e6:.0f}", process, f"{one['rows_per_token']:.0f}")
        rows.append([str(candidates), str(one["peak_pages"]), f"{megabytes:.1f}", pages, *of_process])
    return table(head, rows)


def draw_memory(found: Mapping[int, Found], path: Path) -> None:
    with axes(path, count=2, size=(4.2, 3.2)) as (left, right):
        pages = [one["peak_pages"] * one["page_bytes"] / 1e6 for one in found.values()]
        process = [one["peak_bytes"] / 1e6 for one in found.values()]
        for one, megabytes, label in ((left, pages, "KV pages"), (right, process, "process")):
            one.plot(list(found), megabytes, "o-")
            one.set_xlabel("N, candidates per step")
            one.set_ylabel(f"{label} at the peak, MB")
            one.set_ylim(0, 1.1 * max(megabytes))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", type=int, nargs="+", default=CANDIDATES, metavar="N")
    parser.add_argument("--pages", type=Path, default=Path("paper-results"), help="folder of the page and the picture")
    asked = parser.parse_args(argv)
    asked.pages.mkdir(parents=True, exist_ok=True)
    found = {}
    for candidates in sorted(asked.candidates):
        found[candidates] = measured(candidates)
        print(json.dumps({"candidates": candidates, **found[candidates]}), flush=True)
    machine = environment()
    said = f"""\
# Figure 10: memory by the number of candidates

Written by `python -m benchmarks.paper.cases.memory`. One request on the random 12-layer model (fp32), prompt 64, canvas
{CANVAS}, blocks of {BLOCK}, `cache: dual`, nothing bypassed, N candidates nearly all distinct; the first block, each N
in a process of its own. The process holds weights and the whole pool of {POOL >> 20} MiB of pages, used or not.
{machine["cpu"]}, one thread, vLLM {machine["vllm"]}.

{memory_table(found)}
![memory by the number of candidates](figure10.svg)
"""
    draw_memory(found, asked.pages / "figure10.svg")
    (asked.pages / "figure10.md").write_text(said)
    print(said)


if __name__ == "__main__":
    main()
