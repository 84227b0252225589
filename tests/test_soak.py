"""A server's memory does not grow with the requests that it has served."""

import pytest
from soak import measure

pytestmark = pytest.mark.engine

GROWTH = 0.02


@pytest.mark.parametrize("count", [2000, pytest.param(10_000, marks=[pytest.mark.soak, pytest.mark.timeout(1800)])])
def test_the_second_half_of_many_requests_needs_no_more_memory_than_the_first(count: int):
    half, whole = measure(count, looks=2)
    for title in half:
        print(f"{title}: {half[title]} after {count // 2} requests, {whole[title]} after {count}")
        assert whole[title].rss < half[title].rss * (1 + GROWTH), title
        assert whole[title].uss < half[title].uss * (1 + GROWTH), title
