"""Counts of requests and upstream attempts, from their records.

They are plain numbers, because the library's thread-safe counters would double the time of a hit. `metrics` writes them
for Prometheus.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from imdsproxy.ops.metric_labels import (
    ALL_ENDPOINTS,
    ATTEMPT_STATUSES,
    OUTCOMES,
    RESPONSES,
    RETRY_REASONS,
    UPSTREAM_ENDPOINTS,
    reason_label,
    status_class,
)
from imdsproxy.protocol.messages import BudgetClass
from imdsproxy.records import Client, Outcome, RequestRecord, UpstreamAttempt

if TYPE_CHECKING:
    from imdsproxy.access.guard import Guard, RefusedAccess

# From a hit's tens of microseconds to the longest retry.
BOUNDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 70)
"""The upper bounds of the buckets of all histograms, in seconds. A further bucket has no bound."""

Labels = tuple[str, ...]
Counts = Mapping[Labels, int]


class Times:
    """Durations by bucket."""

    __slots__ = ("seconds", "within")

    def __init__(self) -> None:
        self.within = [0] * (len(BOUNDS) + 1)
        """The number of durations in each bucket, and in no lower one."""
        self.seconds = 0.0
        """Their sum."""

    def add(self, seconds: float) -> None:
        """Count a duration."""
        self.within[bisect_left(BOUNDS, seconds)] += 1
        self.seconds += seconds

    def merge(self, other: Times) -> None:
        """Add all durations of another."""
        self.within = [mine + theirs for mine, theirs in zip(self.within, other.within, strict=True)]
        self.seconds += other.seconds

    @property
    def count(self) -> int:
        """How many durations there are."""
        return sum(self.within)

    def cumulative(self) -> Iterator[int]:
        """Yield the number of durations up to each bound, and of all."""
        return accumulate(self.within)


class RequestTallies:
    """The answers and the time they took, by all that a record says of them."""

    def __init__(self) -> None:
        # A word of a record is one of the project's own, and a status has three digits, so the table is bounded.
        self._times: dict[tuple[str, Outcome, int, str | None], Times] = {}

    def observe(
        self, record: RequestRecord, seconds: float, _client: Client | None = None, _request: bytes = b"", /
    ) -> None:
        """Count an answer and the time it took. This is on the way of every hit, so nothing is called here."""
        key = record.endpoint, record.outcome, record.response.status, record.detail
        try:
            times = self._times[key]
        except KeyError:
            times = self._times[key] = Times()
        times.within[bisect_left(BOUNDS, seconds)] += 1
        times.seconds += seconds

    def by_outcome(self) -> dict[str, int]:
        """Return the number of answers by outcome."""
        counts: dict[str, int] = {}
        for (_, outcome, _, _), times in self._times.items():
            counts[outcome.value] = counts.get(outcome.value, 0) + times.count
        return counts

    def requests(self) -> Counts:
        """Return the number of answers by endpoint and outcome."""
        counts: dict[Labels, int] = {(endpoint, outcome): 0 for endpoint in ALL_ENDPOINTS for outcome in OUTCOMES}
        for (endpoint, outcome, _, _), times in self._times.items():
            counts[endpoint, outcome.value] += times.count
        return counts

    def responses(self) -> Counts:
        """Return the number of answers by status class and reason."""
        counts: dict[Labels, int] = dict.fromkeys(RESPONSES, 0)
        for (_, _, status, detail), times in self._times.items():
            pair = status_class(status), reason_label(detail)
            counts[pair] = counts.get(pair, 0) + times.count
        return counts

    def times(self) -> Mapping[str, Times]:
        """Return the times by endpoint."""
        found: dict[str, Times] = {}
        for (endpoint, _, _, _), times in self._times.items():
            found.setdefault(endpoint, Times()).merge(times)
        return found


class AccessTallies:
    """The requests that the access rules refuse."""

    def __init__(self) -> None:
        self.guard: Guard | None = None
        """The rules in force; None if there are none."""
        self.refused: dict[Labels, int] = {}
        """Their number by the name of the rule, which is one of the access file's, and by the mode."""

    def counts(self) -> Counts:
        """Return the refusals by rule and mode, with zeros for what the rules in force can refuse."""
        guard = self.guard
        if guard is None or not guard.decides:
            return self.refused
        mode = "enforce" if guard.enforces else "audit"
        return {**{(rule, mode): 0 for rule in guard.rules.refusing}, **self.refused}

    def observe(self, refused: RefusedAccess) -> None:
        """Count a refusal."""
        key = refused.verdict.rule, "enforce" if refused.enforced else "audit"
        self.refused[key] = self.refused.get(key, 0) + 1


class AttemptTallies:
    """The upstream attempts, their times, and the waits for permits."""

    def __init__(self) -> None:
        self.sent: dict[Labels, int] = {
            (endpoint, status): 0 for endpoint in UPSTREAM_ENDPOINTS for status in ATTEMPT_STATUSES
        }
        """Requests sent to IMDS, by endpoint and status."""
        self.retries: dict[Labels, int] = {
            (endpoint, reason): 0 for endpoint in UPSTREAM_ENDPOINTS for reason in RETRY_REASONS
        }
        """Those of them that repeated a failed one, by endpoint and its status."""
        self.refused: dict[Labels, int] = {(each.value,): 0 for each in BudgetClass}
        """Requests refused because no permit would be free in time, by class of the budget."""
        self.times: dict[str, Times] = {}
        """Response times, by endpoint."""
        self.waits: dict[str, Times] = {}
        """Waits for a permit, by endpoint."""

    def observe(self, attempt: UpstreamAttempt) -> None:
        """Count an upstream attempt."""
        endpoint, status = attempt.endpoint, attempt.status
        self.waits.setdefault(endpoint, Times()).add(attempt.waited)
        if status is None:
            self.refused[attempt.budget.value,] += 1
            return
        self.sent[endpoint, status] = self.sent.get((endpoint, status), 0) + 1
        self.times.setdefault(endpoint, Times()).add(attempt.seconds)
        if attempt.retried_after is not None:
            retry = endpoint, attempt.retried_after
            self.retries[retry] = self.retries.get(retry, 0) + 1
