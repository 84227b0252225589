"""What a table or figure of the paper is made of: settings, cells, and how their rows are laid out.

An `Experiment` is a declaration. To add one: declare it in a module of this folder, and name the module in
`catalogue.py`. The runner (`run.py`) makes its cells, decodes what their files lack, and hands all rows, as `Results`,
to `layout` and `draw`.

    Experiment(
        name="table2", title="...", tasks=("gsm8k", ...), tiny_tasks=("tiny-sudoku", ...),
        settings=(Setting("Entropy", {"sampler": "entropy"}), ...), tokens_per_step=(1, 2),
        layout=by_task, draw=None,
    )

A row is what a cell's file has of one generation: `index` of the problem, `text`, `tokens`, `report` (with the
trajectory, if the setting has `return_trajectory`), `grade` (by the grader's names; `accuracy` is 0 or 1), `seconds`
and `cpu_seconds` (its share of the batch it was decoded in). Cells that two experiments share are decoded once.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.paper.estimates import Results
from benchmarks.paper.settings import decoding_knobs
from vllm_infogain.request.params import READERS


@dataclass(frozen=True)
class Setting:
    """One line of a table: a name, and the decoding parameters that differ from the paper's."""

    name: str
    knobs: Mapping[str, Any]
    per_task: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # over `knobs`, by the task's name

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Cell:
    """One setting on one task, with one K, temperature and run: a file of rows."""

    task: str
    setting: Setting
    tokens_per_step: int | None  # K; None: the sampler or the schedule says how many
    temperature: float | None  # of tokens; None: the task's
    run: int
    overrides: tuple[tuple[str, Any], ...] = ()  # what the user set, by name: decoding parameters, or `max_gen_toks`

    @property
    def knobs(self) -> dict[str, Any]:
        """All decoding parameters of its requests: the paper's, the setting's, the user's."""
        asked = {**self.setting.knobs, **self.setting.per_task.get(self.task, {}), **dict(self.overrides)}
        asked.pop("max_gen_toks", None)
        if self.tokens_per_step is not None:
            asked["tokens_per_step"] = self.tokens_per_step
        return decoding_knobs(self.task, asked)

    @property
    def max_tokens(self) -> int | None:
        """None: the task's."""
        return dict(self.overrides).get("max_gen_toks")

    def description(self) -> dict[str, Any]:
        """What its rows depend on, beside the model and the problems."""
        return {
            "task": self.task, "knobs": self.knobs, "temperature": self.temperature, "max_tokens": self.max_tokens,
            "run": self.run,
        }  # fmt: skip

    @property
    def key(self) -> str:
        """Of its file's name; two cells that ask for the same share it, whatever their settings are called."""
        described = json.dumps(self.description(), sort_keys=True).encode()
        digest = hashlib.blake2b(described, digest_size=5).hexdigest()
        return f"{self.task}-{self.knobs['sampler']}-K{self.tokens_per_step or ''}-run{self.run}-{digest}"


@dataclass(frozen=True)
class Experiment:
    name: str
    title: str
    tasks: tuple[str, ...]  # of a checkpoint
    tiny_tasks: tuple[str, ...]  # of the embedded model, in their place
    settings: tuple[Setting, ...]
    layout: Callable[["Experiment", Results], str]  # the page's Markdown
    draw: Callable[["Experiment", Results, Path], None] | None = None  # writes the picture to the path given
    tokens_per_step: tuple[int | None, ...] = (1, 2)
    temperatures: tuple[float | None, ...] = (None,)
    runs: int = 5
    overrides: Mapping[str, Any] = field(default_factory=dict)  # on checkpoints, as of `Cell`
    tiny_overrides: Mapping[str, Any] = field(default_factory=dict)  # on the embedded model
    paper: Mapping[tuple[str, int | None], Mapping[str, float]] = field(default_factory=dict)  # by setting and K
    compares: str = ""  # a setting's name: every other's texts are compared with its, by a judge or by rules
    paper_model: str = ""  # whose figures those are
    says: str = ""  # sentences of the page, below its table

    def cells(
        self,
        *,
        tiny: bool,
        runs: int | None = None,
        samplers: Sequence[str] = (),
        tasks: Sequence[str] = (),
        overrides: Mapping[str, Any] | None = None,
    ) -> list[Cell]:
        """Run by run, so that what is ended early has all of the table.

        Args:
            tiny: of the embedded model.
            runs, samplers, tasks: fewer than declared; samplers by their settings' names.
            overrides: the user's, over the experiment's.
        """
        all_tasks = self.tiny_tasks if tiny else self.tasks
        unknown = {*samplers} - {one.name for one in self.settings} | {*tasks} - {*all_tasks}
        if unknown:
            raise ValueError(
                f"{self.name} has no {', '.join(sorted(unknown))}; it has {', '.join(all_tasks)} and "
                f"{', '.join(one.name for one in self.settings)}"
            )
        given = {**(self.tiny_overrides if tiny else self.overrides), **(overrides or {})}
        temperatures = (given.pop("temperature"),) if "temperature" in given else self.temperatures
        made = [
            Cell(task, setting, _asked(count, setting), temperature, run, tuple(sorted(given.items())))
            for run in range(self.runs if runs is None else runs)
            for temperature in temperatures
            for count in self.tokens_per_step
            for task in (tasks or all_tasks)
            for setting in self.settings
            if not samplers or setting.name in samplers
        ]
        return list({(cell.setting, cell.key): cell for cell in made}.values())


def _asked(count: int | None, setting: Setting) -> int | None:
    """K, where the setting does not say itself how many positions a step writes."""
    fixed = setting.knobs.get("schedule", "fixed") == "fixed"
    sampler = setting.knobs.get("sampler", "info_gain")
    return count if fixed and sampler in READERS["tokens_per_step"] else None
