"""How many slow requests may be under way at once, by the number of permits."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.budget.bucket import Budget
from imdsproxy.budget.limiter import Limiter
from imdsproxy.policy.decisions import Forward
from imdsproxy.protocol.messages import BudgetClass, Request, Target
from imdsproxy.protocol.target import read_target
from imdsproxy.testing.clock import FakeClock
from imdsproxy.upstream.slow_places import SlowPlaces
from imdsproxy.upstream.task import FetchTask


def task(*, once: bool) -> FetchTask:
    target = read_target(b"/metadata/scheduledevents?api-version=2020-07-01")
    assert isinstance(target, Target)
    forward = Forward("scheduledevents", BudgetClass.GENERAL, add_metadata=True, once=once, slow=True)
    return FetchTask(Request("POST" if once else "GET", target), forward)


@pytest.mark.parametrize(
    ("permits", "queries", "approvals"),
    [(1, 1, 0), (2, 1, 0), (3, 1, 1), (5, 2, 1), (20, 10, 1)],
)
def test_half_of_the_permits_serve_queries_and_an_approval_waits_for_none_if_both_fit(
    permits: int, queries: int, approvals: int
) -> None:
    async def taken() -> tuple[int, int]:
        clock = FakeClock()
        places = SlowPlaces(Limiter(Budget(permits, 1.0), clock, max_wait=10), clock)
        counts = []
        for once in (False, True):
            count = 0
            while await places.of(one := task(once=once)).acquire(one.place(one.ticket()), 0.0):
                count += 1
            counts.append(count)
        return counts[0], counts[1]

    assert asyncio.run(taken()) == (queries, approvals)
