"""A server's memory does not grow with the requests that it has served."""

import pytest
from soak import LOOKS, measure

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(1800)]

GROWTH = 0.02


def test_the_second_half_of_ten_thousand_requests_needs_no_more_memory_than_the_first():
    looks = [{title: one.rss for title, one in look.items()} for look in measure(10_000)]
    for title in looks[0]:
        print(title, [round(look[title], 1) for look in looks])
    # Peaks are compared: how much freed memory the allocator keeps differs by 1 % from one look to the next.
    first, second = looks[: LOOKS // 2], looks[LOOKS // 2 :]
    for title in looks[0]:
        peak = max(look[title] for look in first)
        assert max(look[title] for look in second) < peak * (1 + GROWTH), title
