"""A request's metrics with its report: readers that copy an output field by field, as Ray does, get the report so."""

from dataclasses import dataclass
from typing import Any

from vllm_infogain.compat import RequestStateStats


@dataclass
class RequestMetrics(RequestStateStats):
    """In place of vLLM's own on `RequestOutput.metrics`. Where an engine keeps none, its times and counts are 0."""

    infogain: dict[str, Any] | None = None  # the report of the output's first sample, once that is finished
