"""The metrics that are the proxy's state at the moment of collection."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.registry import Collector

from imdsproxy import __version__
from imdsproxy.ops.history import History
from imdsproxy.ops.snapshot import Snapshot
from imdsproxy.ops.token_figures import TokenFigures
from imdsproxy.protocol.messages import BudgetClass

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

_PYTHON = ".".join(map(str, sys.version_info[:3]))


@dataclass(slots=True, eq=False)
class State(Collector):
    """Reads the state of one proxy."""

    snapshot: Callable[[], Snapshot]
    tokens: Callable[[], list[TokenFigures]]
    """Returns the tokens in use."""
    history: History
    now: Callable[[], float]
    """Returns monotonic seconds."""
    ready: Callable[[], bool] = lambda: False
    connections: tuple[Callable[[], int], int] | None = None
    """Returns the number of connections, and their limit; None under another server, which counts its own."""
    loop_lag: float | None = None
    """Seconds that the event loop has just taken for one turn."""

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics of this kind."""
        yield InfoMetricFamily(
            "imdsproxy_build", "Version of the running proxy.", {"version": __version__, "python_version": _PYTHON}
        )
        state = self.snapshot()
        yield from self._health()
        yield _by_class("imdsproxy_budget_available", "Permits available now.", state.permits)
        yield _by_class("imdsproxy_budget_permits", "All permits, in use or not.", state.capacity)
        yield _by_class("imdsproxy_budget_waiting", "Requests of clients that wait for a permit.", state.waiting)
        yield _gauge("imdsproxy_cache_entries", "Entries in the cache.", state.entries)
        yield _gauge("imdsproxy_cache_bytes", "Size of the cache.", state.bytes)
        yield _gauge("imdsproxy_cache_max_bytes", "Size that the cache may have.", state.max_bytes)
        yield CounterMetricFamily(
            "imdsproxy_cache_evictions", "Entries evicted because the cache was full.", value=state.evictions
        )
        yield _gauge(
            "imdsproxy_token_expiry_seconds",
            "Remaining life of the cached access token that expires first.",
            state.token_expiry,
        )
        yield from self._tokens()
        pending = GaugeMetricFamily(
            "imdsproxy_scheduled_events", "Scheduled events in IMDS's latest answer to a client.", labels=["type"]
        )
        for kind, count in (self.history.current_events(self.now()) or {}).items():
            pending.add_metric([kind], count)
        yield pending
        if self.connections is not None:
            count_connections, limit = self.connections
            yield _gauge("imdsproxy_connections", "Open connections of clients.", count_connections())
            yield _gauge("imdsproxy_connections_limit", "Connections that may be open at once.", limit)
        yield _gauge(
            "imdsproxy_event_loop_lag_seconds",
            "Time that the event loop took for one turn when the metrics were collected.",
            self.loop_lag,
        )
        yield CounterMetricFamily(
            "imdsproxy_log_dropped",
            "Log lines dropped because standard error was not read or could not be written.",
            value=state.log_lines_dropped,
        )

    def _health(self) -> Iterator[Metric]:
        history = self.history
        yield _gauge("imdsproxy_ready", "Whether the proxy is ready: 1 or 0.", int(self.ready()))
        yield _gauge(
            "imdsproxy_upstream_up",
            "Whether the latest answer of IMDS was no failure: 1 or 0.",
            int(history.state == "answering"),
        )
        yield _gauge(
            "imdsproxy_upstream_last_success_age_seconds",
            "Time since IMDS last answered without a failure.",
            None if history.last_success is None else self.now() - history.last_success,
        )

    def _tokens(self) -> Iterator[Metric]:
        labels = ("audience", "identity")
        remaining = GaugeMetricFamily(
            "imdsproxy_token_remaining_seconds", "Remaining life of each access token in use.", labels=labels
        )
        failing = GaugeMetricFamily(
            "imdsproxy_token_renewal_failing",
            "Whether the latest request for each access token in use has failed: 1 or 0.",
            labels=labels,
        )
        failures = CounterMetricFamily(
            "imdsproxy_token_renewal_failures",
            "Failed requests to renew each access token in use.",
            labels=labels,
        )
        for token in self.tokens():
            remaining.add_metric(token.name, token.remaining)
            failing.add_metric(token.name, int(token.failing))
            failures.add_metric(token.name, token.failures)
        yield from (remaining, failing, failures)


def _gauge(name: str, text: str, value: float | None) -> Metric:
    """Return a gauge without labels. With None it has no sample."""
    family = GaugeMetricFamily(name, text)
    if value is not None:
        family.add_metric([], value)
    return family


def _by_class(name: str, text: str, values: Mapping[BudgetClass, int]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=["class"])
    for budget, value in values.items():
        family.add_metric([budget.value], value)
    return family
