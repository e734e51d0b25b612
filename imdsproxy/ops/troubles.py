"""Everything that an operator should hear of once when it begins, and once when it is over.

This is the pure part: values and times in, events out. `trouble_log` writes them.
"""

from __future__ import annotations

from collections.abc import Iterator

from imdsproxy.ops.budget_troubles import BudgetTroubles
from imdsproxy.ops.episodes import Episode, Event, seconds
from imdsproxy.ops.imds_troubles import ImdsTroubles
from imdsproxy.ops.token_troubles import TokenTroubles
from imdsproxy.protocol.messages import FailureKind
from imdsproxy.records import UpstreamAttempt

EVICTIONS_SETTLE = 60.0
DESCRIPTORS_SETTLE = 10.0
MEMORY_SETTLES = 10.0
_NO_MEMORY = "memory"


class Troubles:
    """The troubles of one proxy. All times are monotonic seconds."""

    def __init__(self, max_bytes: int) -> None:
        """Begin without trouble; `max_bytes` is the size of the cache."""
        self._max_bytes = max_bytes
        self._imds = ImdsTroubles()
        self._budget = BudgetTroubles()
        self._tokens = TokenTroubles()
        self._evictions = Episode(EVICTIONS_SETTLE, passes=True)
        self._descriptors = Episode(DESCRIPTORS_SETTLE, passes=True)
        self._memory = Episode(MEMORY_SETTLES, passes=True)

    def observe_attempt(self, attempt: UpstreamAttempt, life: float | None, now: float) -> Iterator[Event]:
        """Learn from an upstream attempt, and yield what ends and begins with it.

        Args:
            attempt: The attempt.
            life: The remaining life of the token that is cached for its target, in seconds; None without one.
            now: The current time.
        """
        yield from self._imds.observe(attempt, now)
        yield from self._budget.observe(attempt, now)
        yield from self._tokens.observe(attempt, life, now)
        if attempt.status == FailureKind.DESCRIPTORS.value and self._descriptors.trouble(now):
            message = "limit of open files reached; requests to IMDS cannot be sent"
            yield Event(message, {"raise": "LimitNOFILE= or ulimit -n"})
        yield from self.settle(now)

    def observe_eviction(self, entries: int, now: float) -> Iterator[Event]:
        """Learn that an entry was evicted because there was no room; `entries` are left."""
        if self._evictions.trouble(now):
            fields = {"entries": entries, "max_bytes": self._max_bytes, "raise": "IMDSPROXY_CACHE_MAX_BYTES"}
            yield Event("cache full; the least recently used entries are evicted", fields)

    def observe_refusal(self, detail: str, client: str, now: float) -> Iterator[Event]:
        """Learn that bytes of a client were refused, for the reason that `detail` names."""
        if detail == _NO_MEMORY and self._memory.trouble(now):
            message = "memory for requests used up; long ones are refused with 503"
            yield Event(message, {"client": client})

    def settle(self, now: float) -> Iterator[Event]:
        """Yield what ends now."""
        yield from self._imds.settle(now)
        yield from self._budget.settle(now)
        yield from self._tokens.settle(now)
        ended = self._evictions.end(now)
        if ended is not None:
            fields = {"seconds": seconds(ended.seconds), "evicted": ended.count}
            yield Event("no more entries are evicted", fields, over=True)
        ended = self._descriptors.end(now)
        if ended is not None:
            fields = {"seconds": seconds(ended.seconds), "failures": ended.count}
            yield Event("requests to IMDS can be sent again", fields, over=True)
        ended = self._memory.end(now)
        if ended is not None:
            fields = {"seconds": seconds(ended.seconds), "refused": ended.count}
            yield Event("no more requests are refused for want of memory", fields, over=True)

    @property
    def due(self) -> float:
        """The moment of the next end if nothing shows until then; infinity without trouble."""
        episodes = (self._evictions, self._descriptors, self._memory)
        return min(self._imds.due, self._budget.due, self._tokens.due, *(each.due for each in episodes))
