"""Where an engine's seconds go: wraps named methods of the engine, scheduler and runner inside this process.

    with Stopwatch(llm) as watch:
        ...
    watch.parts()["forward"], watch.forwards

Only for engines in this process (VLLM_ENABLE_V1_MULTIPROCESSING=0). Wrappers cost about a microsecond a call.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

PARTS = {
    "scheduler": ("schedule", "update_from_output"),
    "runner": ("_prepare", "_forward", "_logits", "_read", "_decide"),
}
PART_OF = {
    "schedule": "scheduler",
    "update_from_output": "scheduler",
    "_prepare": "inputs",
    "_forward": "forward",
    "_logits": "forward",
    "_read": "sampler",
    "_decide": "sampler",
    "step": "rest",
}
SHARES = ("scheduler", "inputs", "forward", "sampler", "rest")


@dataclass
class Forward:
    """One forward of the model: its rows, and the rows whose logits were wanted."""

    refresh: bool
    rows: int
    seconds: float
    logit_rows: int = 0
    logit_seconds: float = 0.0


class Stopwatch:
    """Seconds by part, each without the parts called inside it, so that they add up to the engine's steps."""

    def __init__(self, llm: Any) -> None:
        self.scheduler, self.runner = scheduler_of(llm), runner_of(llm)
        self.owners = {"engine": (llm.llm_engine, ("step",))} | {
            owner: (getattr(self, owner), names) for owner, names in PARTS.items()
        }
        for owner, (target, names) in self.owners.items():
            for name in names:
                if not callable(getattr(target, name, None)):
                    raise AttributeError(f"the {owner} has no {name}(): mend PARTS in {__name__}")
        self.reset()

    def reset(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.forwards: list[Forward] = []
        self._inner = [0.0]  # seconds spent in wrapped calls inside each call under way, and outside of all

    def parts(self) -> dict[str, float]:
        """Seconds of the steps since the last reset, by part."""
        return {part: self.seconds[part] for part in SHARES}

    def __enter__(self) -> "Stopwatch":
        for target, names in self.owners.values():
            for name in names:
                setattr(target, name, self._timed(getattr(target, name), name))
        return self

    def __exit__(self, *_error: object) -> None:
        for target, names in self.owners.values():
            for name in names:
                delattr(target, name)  # the class's own method shows again

    def _timed(self, method: Callable, name: str) -> Callable:
        part = PART_OF[name]

        def timed(*args: Any, **kwargs: Any) -> Any:
            refresh = name == "_forward" and self._is_refresh()
            self._inner.append(0.0)
            started = time.perf_counter()
            result = method(*args, **kwargs)
            taken = time.perf_counter() - started
            self.seconds[part] += taken - self._inner.pop()
            self._inner[-1] += taken
            if name == "_forward":
                self.forwards.append(Forward(refresh, len(result), taken))
            elif name == "_logits":
                self.forwards[-1].logit_rows += len(result)
                self.forwards[-1].logit_seconds += taken
            return result

        return timed

    def _is_refresh(self) -> bool:
        """Whether a sequence of the forward about to run renews its cached keys and values."""
        waiting = (running.decoder.pending for running in self.runner.requests.values())
        return any(pending.window.refresh for pending in waiting if pending is not None)


def scheduler_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.scheduler


def runner_of(llm: Any) -> Any:
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.model_runner
