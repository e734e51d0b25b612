"""Prometheus metrics, counted from the records of what happened."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from imdsproxy.ops.snapshot import Snapshot
from imdsproxy.records import Client, Outcome, RequestRecord, UpstreamAttempt

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The Prometheus text format."""

# From a hit's tens of microseconds to the longest retry.
_BUCKETS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 70)


class Metrics:
    """Counts records. Label values are the project's own words and IMDS's statuses, so their number is bounded."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        answers = _Answers()
        registry.register(answers)
        self.observe = answers.observe
        self.by_outcome = answers.by_outcome
        self._attempts = Counter(
            "imdsproxy_upstream_requests", "Requests sent to IMDS.", ["endpoint", "status"], registry=registry
        )
        self._upstream_seconds = Histogram(
            "imdsproxy_upstream_seconds", "Response time of IMDS.", registry=registry, buckets=_BUCKETS
        )
        self._retries = Counter(
            "imdsproxy_upstream_retries",
            "Retries of requests to IMDS, by reason of the previous failure.",
            ["endpoint", "reason"],
            registry=registry,
        )
        self._waits = Histogram(
            "imdsproxy_budget_wait_seconds", "Time spent waiting for a permit.", registry=registry, buckets=_BUCKETS
        )
        self._refused = Counter(
            "imdsproxy_budget_refused",
            "Requests refused because no permit would be free in time.",
            ["class"],
            registry=registry,
        )

    def observe_attempt(self, attempt: UpstreamAttempt) -> None:
        """Count an upstream attempt."""
        self._waits.observe(attempt.waited)
        if attempt.status is None:
            self._refused.labels(attempt.budget.value).inc()
            return
        self._attempts.labels(attempt.endpoint, attempt.status).inc()
        self._upstream_seconds.observe(attempt.seconds)
        if attempt.retried_after is not None:
            self._retries.labels(attempt.endpoint, attempt.retried_after).inc()

    def watch(
        self, snapshot: Callable[[], Snapshot], pending_events: Callable[[], Mapping[str, int] | None] = lambda: None
    ) -> None:
        """Register gauges that read the proxy's state when the metrics are collected.

        Args:
            snapshot: Returns the state of the proxy.
            pending_events: Returns the scheduled events by type, or None if they are not known.
        """
        self.registry.register(_State(snapshot, pending_events))

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)


class _Answers(Collector):
    """The number of answers, and the time they took.

    They are plain numbers, because the library's thread-safe counters would double the time of a hit.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, Outcome], int] = {}
        self._within = [0] * (len(_BUCKETS) + 1)
        self._seconds = 0.0

    def observe(
        self, record: RequestRecord, seconds: float, _client: Client | None = None, _request: bytes = b"", /
    ) -> None:
        """Count an answer and the time it took."""
        pair = (record.endpoint, record.outcome)
        self._counts[pair] = self._counts.get(pair, 0) + 1
        self._within[bisect_left(_BUCKETS, seconds)] += 1
        self._seconds += seconds

    def by_outcome(self) -> dict[str, int]:
        """Return the number of answers by outcome."""
        counts: dict[str, int] = {}
        for (_, outcome), count in self._counts.items():
            counts[outcome.value] = counts.get(outcome.value, 0) + count
        return counts

    def collect(self) -> Iterator[Metric]:
        """Yield the counter and the histogram."""
        requests = CounterMetricFamily("imdsproxy_requests", "Answered requests.", labels=["endpoint", "outcome"])
        for (endpoint, outcome), count in self._counts.items():
            requests.add_metric([endpoint, outcome.value], count)
        yield requests
        bounds = (*map(floatToGoString, _BUCKETS), "+Inf")
        seconds = HistogramMetricFamily("imdsproxy_request_seconds", "Time to answer a request.")
        seconds.add_metric([], list(zip(bounds, accumulate(self._within), strict=True)), self._seconds)
        yield seconds


class _State(Collector):
    """The proxy's state at the moment of collection."""

    def __init__(
        self, snapshot: Callable[[], Snapshot], pending_events: Callable[[], Mapping[str, int] | None]
    ) -> None:
        self._snapshot = snapshot
        self._pending_events = pending_events

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges."""
        state = self._snapshot()
        available = GaugeMetricFamily("imdsproxy_budget_available", "Permits available now.", labels=["class"])
        for budget, permits in state.permits.items():
            available.add_metric([budget.value], permits)
        yield available
        yield GaugeMetricFamily("imdsproxy_cache_entries", "Entries in the cache.", value=state.entries)
        yield GaugeMetricFamily("imdsproxy_cache_bytes", "Size of the cache.", value=state.bytes)
        soonest = GaugeMetricFamily(
            "imdsproxy_token_expiry_seconds", "Remaining life of the cached access token that expires first."
        )
        if state.token_expiry is not None:
            soonest.add_metric([], state.token_expiry)
        yield soonest
        pending = GaugeMetricFamily(
            "imdsproxy_scheduled_events", "Scheduled events in IMDS's latest answer to a client.", labels=["type"]
        )
        for kind, count in (self._pending_events() or {}).items():
            pending.add_metric([kind], count)
        yield pending
        yield CounterMetricFamily(
            "imdsproxy_log_dropped",
            "Log lines dropped because standard error was not read or could not be written.",
            value=state.log_lines_dropped,
        )
