"""Tables that print as their rows come, and targets."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.engines import Measurement
from benchmarks.llm import Job
from benchmarks.roofline import Machine, Work, phase
from benchmarks.stopwatch import SHARES

RUN_COLUMNS = ("settings", "requests", "N", "canvas", "tokens/s", "steps", "rows per token",
               *(f"{part} %" for part in SHARES), "overhead ms per step", "matmul peak %")  # fmt: skip


@dataclass(frozen=True)
class Target:
    """A measured figure against the one that was asked for."""

    what: str
    relation: str  # ">=" or "<="
    asked: float
    measured: float

    @property
    def reached(self) -> bool:
        return self.measured >= self.asked if self.relation == ">=" else self.measured <= self.asked


class Tables:
    """Keeps what it prints: the text, and the figures for the line of JSON."""

    def __init__(self) -> None:
        self.text: list[str] = []
        self.rows: dict[str, list[dict[str, Any]]] = {}

    def say(self, text: str) -> None:
        self.text.append(text)
        print(text, flush=True)

    def head(self, name: str, title: str, columns: Sequence[str]) -> None:
        """Start a table; `name` is its key in the JSON."""
        self.name = name
        self.rows[name] = []
        self.say(f"\n{title}\n\n| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|")

    def row(self, cells: Sequence[object], **figures: Any) -> None:
        """Print the cells, keep the figures."""
        self.rows[self.name].append(figures)
        self.say("| " + " | ".join(_cell(cell) for cell in cells) + " |")

    def run(self, settings: str, requests: int, job: Job, run: Measurement, work: Work, machine: Machine) -> None:
        """A row of RUN_COLUMNS."""
        candidates = job.knobs.get("num_candidates", 8) if job.knobs["sampler"] == "info_gain" else 1
        shares = (f"{100 * run.share(part):.1f}" for part in SHARES)
        peak = phase(settings, run.forwards, work, machine).peak_share
        named = {"settings": settings, "requests": requests, "num_candidates": candidates, "canvas": job.max_tokens}
        cells = (*named.values(), f"{run.tokens_per_second:.1f}", len(run.forwards), run.rows_per_token, *shares)
        self.row((*cells, 1e3 * run.overhead, f"{100 * peak:.0f}"), **named, **run.figures(), peak_share=peak)

    def targets(self, targets: Sequence[Target]) -> None:
        self.head("targets", "Targets", ("what", "asked", "measured", "reached"))
        for target in targets:
            cells = (target.what, f"{target.relation} {target.asked:g}", target.measured)
            self.row((*cells, "yes" if target.reached else "no"), **asdict(target), reached=target.reached)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
    return str(value)
