"""Reading a server's `/metrics`."""

import time
import urllib.request

from prometheus_client.parser import text_string_to_metric_families

Samples = dict[tuple[str, frozenset], float]  # by name and labels


def scrape(url: str) -> Samples:
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as response:
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


def wait_for(url: str, expected: dict[str, float], seconds: float = 20) -> Samples:
    """The samples once these totals are reached; they follow a response within moments."""
    deadline = time.monotonic() + seconds
    while True:
        samples = scrape(url)
        seen = {name: total(samples, name) for name in expected}
        if seen == expected:
            return samples
        assert time.monotonic() < deadline, f"{seen}, expected {expected}"
        time.sleep(0.05)
