from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from imdsproxy.app import Parts, build
from imdsproxy.cache.freshness import make_entry
from imdsproxy.ops.metrics import CONTENT_TYPE, Metrics
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.policy.endpoints import ENDPOINTS
from imdsproxy.protocol.messages import BudgetClass, Key, Response
from imdsproxy.records import Outcome, RequestRecord, UpstreamAttempt
from imdsproxy.testing.clock import FakeClock
from tests.scripted import NOWHERE, Imds

BOUNDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.01, 0.05, 0.1, 0.5, 1, 2, 5, 10, 30, 70)
LABELS = (
    *("5e-05", "0.0001", "0.00025", "0.0005", "0.001", "0.0025", "0.01", "0.05", "0.1", "0.5"),
    *("1.0", "2.0", "5.0", "10.0", "30.0", "70.0", "+Inf"),
)
OK = Response(200, (), b"{}")
Answered = tuple[str, Outcome, float]


def served(endpoint: str = "instance", outcome: Outcome = Outcome.HIT) -> RequestRecord:
    return RequestRecord(OK, endpoint, outcome)


def after(answers: Iterable[Answered]) -> Metrics:
    metrics = Metrics()
    for endpoint, outcome, seconds in answers:
        metrics.observe(served(endpoint, outcome), seconds)
    return metrics


def lines(text: bytes, *names: str) -> list[str]:
    """Return what is said of these metrics. When each began, which the library says as well, is nothing to us."""
    said = [line for line in text.decode().splitlines() if not line.startswith("# ") or "_created" not in line]
    return [line for line in said if line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(names)]


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample as a scraper reads it, by name and labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def by_library(answers: Iterable[Answered]) -> bytes:
    """Return what the library's own counter and histogram write of the same."""
    registry = CollectorRegistry()
    requests = Counter("imdsproxy_requests", "Answered requests.", ["endpoint", "outcome"], registry=registry)
    seconds = Histogram("imdsproxy_request_seconds", "Time to answer a request.", registry=registry, buckets=BOUNDS)
    for endpoint, outcome, took in answers:
        requests.labels(endpoint, outcome.value).inc()
        seconds.observe(took)
    return b"\n".join(line for line in generate_latest(registry).splitlines() if b"_created" not in line)


OURS = ("imdsproxy_requests", "imdsproxy_request_seconds")
ANSWERS = st.lists(
    st.tuples(
        st.sampled_from(sorted(ENDPOINTS)),
        st.sampled_from(Outcome),
        st.one_of(st.sampled_from((0.0, *BOUNDS)), st.floats(0.0, 200.0)),
    ),
    max_size=30,
)


@given(ANSWERS)
def test_text_equals_that_of_the_librarys_own_counters(answers: list[Answered]) -> None:
    """Scrapers, dashboards and alerts are made for that form, to the last digit of a bucket's label."""
    text = after(answers).text()
    assert lines(text, *OURS) == lines(by_library(answers), *OURS)
    assert list(text_string_to_metric_families(text.decode())), "the library reads it back"


def test_metrics_text_after_two_answers() -> None:
    metrics = after([("instance", Outcome.HIT, 0.00004), ("token", Outcome.MISS, 0.25)])
    # The library writes counters under the name that Prometheus's text format has for them.
    assert lines(metrics.text(), *OURS) == [
        "# HELP imdsproxy_requests_total Answered requests.",
        "# TYPE imdsproxy_requests_total counter",
        'imdsproxy_requests_total{endpoint="instance",outcome="hit"} 1.0',
        'imdsproxy_requests_total{endpoint="token",outcome="miss"} 1.0',
        "# HELP imdsproxy_request_seconds Time to answer a request.",
        "# TYPE imdsproxy_request_seconds histogram",
        *(
            f'imdsproxy_request_seconds_bucket{{le="{label}"}} {1.0 if place < LABELS.index("0.5") else 2.0}'
            for place, label in enumerate(LABELS)
        ),
        "imdsproxy_request_seconds_count 2.0",
        "imdsproxy_request_seconds_sum 0.25004",
    ]


@pytest.mark.parametrize(
    ("seconds", "first"),
    [
        (0.0, "5e-05"),
        (0.00005, "5e-05"),  # a bucket holds its own bound
        (0.0000501, "0.0001"),
        (0.0005, "0.0005"),
        (0.003, "0.01"),
        (1.0, "1.0"),
        (70.0, "70.0"),
        (70.1, "+Inf"),
        (1e9, "+Inf"),
    ],
)
def test_time_counts_in_its_bucket_and_all_above(seconds: float, first: str) -> None:
    found = samples(after([("instance", Outcome.HIT, seconds)]))
    within = {label: found["imdsproxy_request_seconds_bucket", (("le", label),)] for label in LABELS}
    assert [label for label, count in within.items() if count] == list(LABELS[LABELS.index(first) :])
    assert found["imdsproxy_request_seconds_count", ()] == 1
    assert found["imdsproxy_request_seconds_sum", ()] == seconds


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_counted_by_itself(outcome: Outcome) -> None:
    found = samples(after([("instance", outcome, 0.0)] * 3 + [("token", outcome, 0.0)]))
    counted = {labels: value for (name, labels), value in found.items() if name == "imdsproxy_requests_total"}
    assert counted == {
        (("endpoint", "instance"), ("outcome", outcome.value)): 3,
        (("endpoint", "token"), ("outcome", outcome.value)): 1,
    }


def test_counters_are_empty_before_the_first_answer() -> None:
    found = samples(Metrics())
    assert not [name for name, _ in found if name == "imdsproxy_requests_total"]
    assert found["imdsproxy_request_seconds_count", ()] == 0
    assert found["imdsproxy_request_seconds_bucket", (("le", "+Inf"),)] == 0


def test_counters_never_decrease() -> None:
    """A scraper reads a lower figure as a restart."""
    metrics, before = Metrics(), 0.0
    for number in range(1, 20):
        metrics.observe(served(), 0.001 * number)
        found = samples(metrics)
        assert found["imdsproxy_request_seconds_count", ()] == number
        assert found["imdsproxy_request_seconds_sum", ()] > before
        before = found["imdsproxy_request_seconds_sum", ()]
        assert metrics.text() == metrics.text()


# --- upstream attempts


def asked(status: str | None, *, retried_after: str | None = None, waited: float = 0.2) -> UpstreamAttempt:
    return UpstreamAttempt("token", BudgetClass.IDENTITY, waited, status, 0.3, retried_after)


def test_attempt_is_counted_by_its_result() -> None:
    metrics = Metrics()
    for one in (asked("200"), asked("200"), asked("upstream-timeout"), asked("200", retried_after="410")):
        metrics.observe_attempt(one)
    found = samples(metrics)
    sent = "imdsproxy_upstream_requests_total"
    assert found[sent, (("endpoint", "token"), ("status", "200"))] == 3
    assert found[sent, (("endpoint", "token"), ("status", "upstream-timeout"))] == 1
    assert found["imdsproxy_upstream_retries_total", (("endpoint", "token"), ("reason", "410"))] == 1
    assert found["imdsproxy_upstream_seconds_count", ()] == 4
    assert found["imdsproxy_budget_wait_seconds_count", ()] == 4
    assert found["imdsproxy_budget_wait_seconds_sum", ()] == pytest.approx(0.8)


def test_refused_attempt_is_no_upstream_request() -> None:
    metrics = Metrics()
    metrics.observe_attempt(asked(None, waited=10.0))
    found = samples(metrics)
    assert found["imdsproxy_budget_refused_total", (("class", "identity"),)] == 1
    assert found["imdsproxy_budget_wait_seconds_sum", ()] == 10.0
    assert found["imdsproxy_upstream_seconds_count", ()] == 0
    assert not [name for name, _ in found if name == "imdsproxy_upstream_requests_total"]


# --- gauges


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def parts(clock: FakeClock) -> Parts:
    return build(replace(NOWHERE, identity_budget_requests=20), Imds(), clock)


def test_gauges_are_read_at_collection(parts: Parts, clock: FakeClock) -> None:
    found = samples(parts.metrics)
    assert found["imdsproxy_budget_available", (("class", "general"),)] == 5
    assert found["imdsproxy_budget_available", (("class", "identity"),)] == 5, "so many at once"
    assert found["imdsproxy_cache_entries", ()] == found["imdsproxy_cache_bytes", ()] == 0
    assert ("imdsproxy_token_expiry_seconds", ()) not in found, "there is no token that could expire"
    now = clock.monotonic()
    parts.proxy.fetcher.limiters[BudgetClass.GENERAL].budget.reserve(now, 600.0, background=False)
    for name, life in (("/a?", 3600), ("/b?", 7200)):
        body = b'{"access_token":"x","expires_in":"%d"}' % life
        entry = make_entry(Response(200, (), body), Lifetimes(1e9, 0, 1e9, 0, token=True), now, now)
        assert entry is not None
        assert parts.proxy.store.put(Key(name), entry)
    clock.advance(100.0)
    found = samples(parts.metrics)
    assert found["imdsproxy_budget_available", (("class", "general"),)] == 4
    assert found["imdsproxy_cache_entries", ()] == 2
    assert found["imdsproxy_cache_bytes", ()] == parts.proxy.store.bytes > 0
    assert found["imdsproxy_token_expiry_seconds", ()] == 3500
    clock.advance(8000.0)
    found = samples(parts.metrics)
    assert found["imdsproxy_cache_entries", ()] == found["imdsproxy_cache_bytes", ()] == 0
    assert ("imdsproxy_token_expiry_seconds", ()) not in found


def test_metric_names_are_stable(parts: Parts) -> None:
    parts.metrics.observe(served(), 0.1)
    parts.metrics.observe_attempt(asked("200", retried_after="410"))
    parts.metrics.observe_attempt(asked(None))
    names = {family.name for family in text_string_to_metric_families(parts.metrics.text().decode())}
    assert {name for name in names if not name.endswith("_created")} == {
        "imdsproxy_requests",
        "imdsproxy_request_seconds",
        "imdsproxy_upstream_requests",
        "imdsproxy_upstream_seconds",
        "imdsproxy_upstream_retries",
        "imdsproxy_budget_available",
        "imdsproxy_budget_wait_seconds",
        "imdsproxy_budget_refused",
        "imdsproxy_cache_entries",
        "imdsproxy_cache_bytes",
        "imdsproxy_token_expiry_seconds",
        "imdsproxy_log_dropped",
        "imdsproxy_scheduled_events",
    }
    assert CONTENT_TYPE.startswith("text/plain; version=0.0.4")
