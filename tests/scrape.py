"""Reading a server's `/metrics`."""

import urllib.request
from collections.abc import Callable
from typing import Any

from prometheus_client.parser import text_string_to_metric_families
from waiting import PATIENCE, wait_until

Samples = dict[tuple[str, frozenset], float]  # by name and labels


def scrape(url: str) -> Samples:
    with urllib.request.urlopen(f"{url}/metrics", timeout=PATIENCE) as response:
        text = response.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum over all samples of a name that have these labels."""
    values = [value for (known, all_labels), value in samples.items() if known == name and labels.items() <= all_labels]
    assert values, f"{name} {labels} is not at /metrics"
    return sum(values)


def wait_for_running(url: str, count: int) -> None:
    wait_for(url, {"vllm:num_requests_running": count})


def left_midway(url: str, begin: Callable[[], Any], whole: int) -> tuple[Samples, Samples]:
    """The samples before and after a stream that its client left; sent again where it was done before that.

    Args:
        begin: sends the requests, which make `whole` steps if they are let, and returns the stream after two events:
            the second one comes after the metrics know of the first.
    """
    idle = {"vllm:num_requests_running": 0}
    before, after = {}, {}

    def was_left() -> bool:
        nonlocal before, after
        before = wait_for(url, idle)
        begin().close()
        after = wait_for(url, idle)
        return 0 < total(after, "infogain:steps_total") - total(before, "infogain:steps_total") < whole

    wait_until(was_left, lambda: "who leaves a stream does not end its requests")
    return before, after


def wait_for(url: str, expected: dict[str, float]) -> Samples:
    """The samples once these totals are reached; they follow a response within moments."""
    samples: Samples = {}

    def seen() -> dict[str, float]:
        return {name: total(samples, name) for name in expected}

    def are_reached() -> bool:
        nonlocal samples
        samples = scrape(url)
        return seen() == expected

    wait_until(are_reached, lambda: f"{seen()}, expected {expected}")
    return samples
