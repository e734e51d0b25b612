"""The budget is exhausted: who asked most, and how many requests were refused."""

from __future__ import annotations

from collections.abc import Iterator

from imdsproxy.ops.counts import MostFrequent
from imdsproxy.ops.episodes import Episode, Event, seconds
from imdsproxy.ops.history import client_name
from imdsproxy.protocol.messages import BudgetClass
from imdsproxy.records import UpstreamAttempt

SETTLES = 10.0
"""Seconds without a refusal before it is over. A client that obeys `Retry-After` comes back within them."""
RECENT = 60.0
"""Seconds of which at least half, and at most all, count for who asked most before the first refusal."""


class _RecentClients:
    """The clients of the last requests to IMDS, sent and refused."""

    def __init__(self) -> None:
        self._half = 0
        self._earlier, self._current = MostFrequent(), MostFrequent()

    def add(self, name: str, now: float) -> None:
        half = int(now // (RECENT / 2))
        if half > self._half:
            self._earlier = self._current if half == self._half + 1 else MostFrequent()
            self._current, self._half = MostFrequent(), half
        self._current.add(name)

    def top(self) -> tuple[str, int]:
        sums: dict[str, int] = {}
        for counts in (self._earlier, self._current):
            for name, count in counts.top(10):
                sums[name] = sums.get(name, 0) + count
        return max(sums.items(), key=lambda item: item[1])


class _Class:
    """One class of the budget."""

    def __init__(self) -> None:
        self.episode = Episode(SETTLES, passes=True)
        self.clients = MostFrequent()


class BudgetTroubles:
    """The classes of the budget."""

    def __init__(self) -> None:
        self._recent = _RecentClients()
        self._classes: dict[BudgetClass, _Class] = {}

    def observe(self, attempt: UpstreamAttempt, now: float) -> Iterator[Event]:
        """Learn from an upstream attempt, and yield what begins with it."""
        name = client_name(attempt.client)
        self._recent.add(name, now)
        each = self._classes.setdefault(attempt.budget, _Class())
        if attempt.status is None and each.episode.trouble(now):
            each.clients = MostFrequent()
            most, count = self._recent.top()
            fields = {"class": attempt.budget.value, "client": name, "asked_most": most, "asked": count}
            yield Event("budget exhausted; requests are refused with 429", fields)
        if each.episode.under_way:
            each.clients.add(name)

    def settle(self, now: float) -> Iterator[Event]:
        """Yield what ends now."""
        for budget, each in self._classes.items():
            ended = each.episode.end(now)
            if ended is not None:
                ((most, count),) = each.clients.top(1)
                fields = {
                    "class": budget.value,
                    "seconds": seconds(ended.seconds),
                    "refused": ended.count,
                    "asked_most": most,
                    "asked": count,
                }
                yield Event("budget no longer exhausted", fields, over=True)

    @property
    def due(self) -> float:
        """The moment of the next end if nothing shows until then."""
        return min((each.episode.due for each in self._classes.values()), default=float("inf"))
