"""The few places of slow requests, which leave permits for the others.

IMDS may take two minutes for a scheduled-events request, which holds its permit as long. Half of the permits stay free
for other requests, unless there is only one. An approval does not wait for a query, because an eviction follows 30
seconds after its notice.
"""

from __future__ import annotations

from imdsproxy.budget.fair_semaphore import FairSemaphore
from imdsproxy.budget.limiter import Limiter
from imdsproxy.clock import Clock
from imdsproxy.upstream.task import FetchTask

# With fewer permits than these, a slow query and an approval cannot both have one.
_ENOUGH_FOR_BOTH = 3


class SlowPlaces:
    """The places of slow queries, and those of requests that are sent once."""

    def __init__(self, general: Limiter, clock: Clock) -> None:
        """Make the places for the permits of the general budget."""
        requests = general.budget.requests
        self._queries = FairSemaphore(max(1, requests // 2), clock, general.recall)
        self._once = FairSemaphore(1, clock) if requests >= _ENOUGH_FOR_BOTH else self._queries

    def of(self, task: FetchTask) -> FairSemaphore:
        """Return the places of which this task needs one."""
        return self._once if task.once else self._queries
