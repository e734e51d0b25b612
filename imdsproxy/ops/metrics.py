"""The metrics for Prometheus: the tallies of what happened, the state at the moment of collection, and the process.

No metric has a `_created` series. In the text format these would be further gauges, and `process_start_time_seconds`
says when all counters began.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from imdsproxy.ops.client_tallies import ClientTallies
from imdsproxy.ops.media_types import accepts_openmetrics
from imdsproxy.ops.state_metrics import State
from imdsproxy.ops.tallies import BOUNDS, AccessTallies, AttemptTallies, Counts, RequestTallies, Times

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""The Prometheus text format."""
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
"""The OpenMetrics text format."""

_BOUNDS = (*map(floatToGoString, BOUNDS), "+Inf")


class Metrics:
    """Writes the metrics. Their label values are known beforehand, or bounded in number."""

    def __init__(self, clients: int = 0) -> None:
        """Make the metrics; `clients` is the number of clients that have series of their own, 0 for none."""
        self.registry = CollectorRegistry()
        self.requests = RequestTallies()
        self.attempts = AttemptTallies()
        self.observe = self.requests.observe
        self.observe_attempt = self.attempts.observe
        self.access = AccessTallies()
        self.by_outcome = self.requests.by_outcome
        self.registry.register(_Answers(self.requests))
        self.registry.register(_Attempts(self.attempts))
        self.registry.register(_Refusals(self.access))
        self.clients = ClientTallies(clients)
        if clients:
            self.registry.register(_Clients(self.clients))
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._state: State | None = None

    def watch(self, state: State) -> None:
        """Register the gauges, which read the proxy's state when the metrics are collected."""
        self._state = state
        self.registry.register(state)

    def watch_readiness(self, ready: Callable[[], bool]) -> None:
        """Show whether the proxy is ready, as this function returns it."""
        if self._state is not None:
            self._state.ready = ready

    def watch_connections(self, count: Callable[[], int], limit: int) -> None:
        """Show the number of connections that this function returns, and their limit."""
        if self._state is not None:
            self._state.connections = count, limit

    def text(self) -> bytes:
        """Return all metrics in the Prometheus text format."""
        return generate_latest(self.registry)

    async def answer(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that a scraper's Accept field asks for, and the content type.

        The time of one turn of the event loop is measured here, because a timer would wake an idle proxy.
        """
        state = self._state
        if state is not None:
            began = state.now()
            await asyncio.sleep(0)
            state.loop_lag = state.now() - began
        if accepts_openmetrics(accept):
            return self.openmetrics(), OPENMETRICS
        return self.text(), CONTENT_TYPE

    def openmetrics(self) -> bytes:
        """Return all metrics in the OpenMetrics text format."""
        return bytes(openmetrics.generate_latest(self.registry))  # type: ignore[no-untyped-call]


class _Answers(Collector):
    """The number of answers, and the time they took."""

    def __init__(self, tallies: RequestTallies) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """Yield the counters and the histogram."""
        requests = self._tallies.requests()
        yield _counter("imdsproxy_requests", "Answered requests.", ("endpoint", "outcome"), requests)
        yield _counter(
            "imdsproxy_responses",
            "Answered requests by class of their status, and by the reason in Cache-Status.",
            ("status_class", "reason"),
            self._tallies.responses(),
        )
        yield _histogram("imdsproxy_request_seconds", "Time to answer a request.", self._tallies.times())


class _Attempts(Collector):
    """The requests to IMDS, and the waits for permits."""

    def __init__(self, tallies: AttemptTallies) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """Yield the counters and the histograms."""
        tallies = self._tallies
        sent = ("endpoint", "status")
        yield _counter("imdsproxy_upstream_requests", "Requests sent to IMDS.", sent, tallies.sent)
        yield _histogram("imdsproxy_upstream_seconds", "Response time of IMDS.", tallies.times)
        yield _counter(
            "imdsproxy_upstream_retries",
            "Retries of requests to IMDS, by reason of the previous failure.",
            ("endpoint", "reason"),
            tallies.retries,
        )
        yield _histogram("imdsproxy_budget_wait_seconds", "Time spent waiting for a permit.", tallies.waits)
        yield _counter(
            "imdsproxy_budget_refused",
            "Requests refused because no permit would be free in time.",
            ("class",),
            tallies.refused,
        )


class _Refusals(Collector):
    """The requests that the access rules refuse."""

    def __init__(self, tallies: AccessTallies) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """Yield the counter."""
        yield _counter(
            "imdsproxy_access_refused",
            "Requests refused by the access rules, or served in audit mode although they would be.",
            ("rule", "mode"),
            self._tallies.counts(),
        )


class _Clients(Collector):
    """What the most frequent clients did."""

    def __init__(self, tallies: ClientTallies) -> None:
        self._tallies = tallies

    def collect(self) -> Iterator[Metric]:
        """Yield the counters."""
        counts = self._tallies.counts()
        for name, text, values in (
            (
                "requests",
                "Requests by client, without hits of the fast path.",
                [each.requests for each in counts.values()],
            ),
            (
                "upstream_requests",
                "Requests sent to IMDS, by the client that caused them.",
                [each.sent for each in counts.values()],
            ),
            ("refused", "Refused requests by client.", [each.refused for each in counts.values()]),
        ):
            series: Counts = {(client,): value for client, value in zip(counts, values, strict=True)}
            yield _counter(f"imdsproxy_client_{name}", text, ("client",), series)


def _counter(name: str, text: str, labels: tuple[str, ...], counts: Counts) -> Metric:
    family = CounterMetricFamily(name, text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family


def _histogram(name: str, text: str, times: Mapping[str, Times]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=("endpoint",))
    for endpoint, each in times.items():
        family.add_metric((endpoint,), list(zip(_BOUNDS, each.cumulative(), strict=True)), each.seconds)
    return family
