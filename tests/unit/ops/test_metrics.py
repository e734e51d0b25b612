from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as strict_families
from prometheus_client.parser import text_string_to_metric_families

from imdsproxy.access.decision import Verdict
from imdsproxy.access.guard import RefusedAccess
from imdsproxy.access.subject import Subject
from imdsproxy.cache.freshness import make_entry
from imdsproxy.ops.metric_labels import ATTEMPT_STATUSES, RESPONSES, RETRY_REASONS
from imdsproxy.ops.metrics import CONTENT_TYPE, OPENMETRICS, Metrics
from imdsproxy.parts.parts import Parts, build
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
INSTANCE = (("endpoint", "instance"),)
TOKEN = (("endpoint", "token"),)
Answered = tuple[str, Outcome, float]


def served(endpoint: str = "instance", outcome: Outcome = Outcome.HIT) -> RequestRecord:
    return RequestRecord(OK, endpoint, outcome)


def after(answers: Iterable[Answered]) -> Metrics:
    metrics = Metrics()
    for endpoint, outcome, seconds in answers:
        metrics.observe(served(endpoint, outcome), seconds)
    return metrics


def lines(text: bytes, *names: str) -> list[str]:
    """Return what is said of these metrics, without the counters that are 0."""
    said = [line for line in text.decode().splitlines() if not line.endswith("} 0.0") or "_bucket{" in line]
    return [
        line
        for line in said
        if "_created" not in line and line.removeprefix("# HELP ").removeprefix("# TYPE ").startswith(names)
    ]


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
    seconds = Histogram(
        "imdsproxy_request_seconds", "Time to answer a request.", ["endpoint"], registry=registry, buckets=BOUNDS
    )
    for endpoint, outcome, took in answers:
        requests.labels(endpoint, outcome.value).inc()
        seconds.labels(endpoint).observe(took)
    return generate_latest(registry)


def without_sums(text: list[str]) -> list[str]:
    return [line for line in text if "_sum{" not in line]


def sums(text: list[str]) -> dict[str, float]:
    pairs = (line.rpartition(" ") for line in text if "_sum{" in line)
    return {name: float(value) for name, _, value in pairs}


OURS = ("imdsproxy_requests", "imdsproxy_request_seconds")
ANSWERS = st.lists(
    st.tuples(
        st.sampled_from(sorted(ENDPOINTS)),
        st.sampled_from(Outcome),
        st.one_of(st.sampled_from((0.0, *BOUNDS)), st.floats(0.0, 200.0)),
    ),
    max_size=30,
)


@pytest.mark.no_cover  # the tables of the other tests reach the same branches
@given(ANSWERS)
def test_text_equals_that_of_the_librarys_own_counters(answers: list[Answered]) -> None:
    """Scrapers, dashboards and alerts are made for that form, to the last digit of a bucket's label."""
    text = after(answers).text()
    ours, theirs = lines(text, *OURS), lines(by_library(answers), *OURS)
    assert sorted(without_sums(ours)) == sorted(without_sums(theirs))
    assert sums(ours) == pytest.approx(sums(theirs)), "they are added in another order"
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
        *(f'imdsproxy_request_seconds_bucket{{endpoint="instance",le="{label}"}} 1.0' for label in LABELS),
        'imdsproxy_request_seconds_count{endpoint="instance"} 1.0',
        'imdsproxy_request_seconds_sum{endpoint="instance"} 4e-05',
        *(
            f'imdsproxy_request_seconds_bucket{{endpoint="token",le="{label}"}} '
            f"{0.0 if place < LABELS.index('0.5') else 1.0}"
            for place, label in enumerate(LABELS)
        ),
        'imdsproxy_request_seconds_count{endpoint="token"} 1.0',
        'imdsproxy_request_seconds_sum{endpoint="token"} 0.25',
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
    within = {label: found["imdsproxy_request_seconds_bucket", (*INSTANCE, ("le", label))] for label in LABELS}
    assert [label for label, count in within.items() if count] == list(LABELS[LABELS.index(first) :])
    assert found["imdsproxy_request_seconds_count", INSTANCE] == 1
    assert found["imdsproxy_request_seconds_sum", INSTANCE] == seconds


@pytest.mark.parametrize("outcome", Outcome)
def test_every_outcome_is_counted_by_itself(outcome: Outcome) -> None:
    found = samples(after([("instance", outcome, 0.0)] * 3 + [("token", outcome, 0.0)]))
    counted = {labels: value for (name, labels), value in found.items() if name == "imdsproxy_requests_total" and value}
    assert counted == {
        (("endpoint", "instance"), ("outcome", outcome.value)): 3,
        (("endpoint", "token"), ("outcome", outcome.value)): 1,
    }


def test_every_labelled_counter_is_there_from_the_start() -> None:
    found = samples(Metrics())
    for name, count in (
        ("imdsproxy_requests_total", len(ENDPOINTS) * len(Outcome)),
        ("imdsproxy_responses_total", len(RESPONSES)),
        ("imdsproxy_upstream_requests_total", (len(ENDPOINTS) - 1) * len(ATTEMPT_STATUSES)),
        ("imdsproxy_upstream_retries_total", (len(ENDPOINTS) - 1) * len(RETRY_REASONS)),
        ("imdsproxy_budget_refused_total", len(BudgetClass)),
    ):
        assert [value for (other, _), value in found.items() if other == name] == [0] * count, name


def test_answers_are_counted_by_status_class_and_reason() -> None:
    metrics = Metrics()
    for status, detail in ((200, None), (200, None), (404, None), (429, "budget"), (200, "unheard-of"), (999, None)):
        metrics.observe(RequestRecord(Response(status, (), b""), "instance", Outcome.MISS, detail=detail), 0.1)
    found = samples(metrics)
    counted = {
        dict(labels)["status_class"] + " " + dict(labels)["reason"]: value
        for (name, labels), value in found.items()
        if name == "imdsproxy_responses_total" and value
    }
    assert counted == {"2xx none": 2, "4xx none": 1, "4xx budget": 1, "2xx other": 1, "other none": 1}


def test_counters_never_decrease() -> None:
    """A scraper reads a lower figure as a restart."""
    metrics, before = Metrics(), 0.0
    for number in range(1, 8):
        metrics.observe(served(), 0.001 * number)
        found = samples(metrics)
        assert found["imdsproxy_request_seconds_count", INSTANCE] == number
        assert found["imdsproxy_request_seconds_sum", INSTANCE] > before
        before = found["imdsproxy_request_seconds_sum", INSTANCE]
        assert samples(metrics)["imdsproxy_request_seconds_sum", INSTANCE] == before


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
    assert found["imdsproxy_upstream_seconds_count", TOKEN] == 4
    assert found["imdsproxy_budget_wait_seconds_count", TOKEN] == 4
    assert found["imdsproxy_budget_wait_seconds_sum", TOKEN] == pytest.approx(0.8)


def test_refused_attempt_is_no_upstream_request() -> None:
    metrics = Metrics()
    metrics.observe_attempt(asked(None, waited=10.0))
    found = samples(metrics)
    assert found["imdsproxy_budget_refused_total", (("class", "identity"),)] == 1
    assert found["imdsproxy_budget_wait_seconds_sum", TOKEN] == 10.0
    assert ("imdsproxy_upstream_seconds_count", TOKEN) not in found
    assert not any(value for (name, _), value in found.items() if name == "imdsproxy_upstream_requests_total")


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


CONTRACT = {
    "imdsproxy_requests": {"endpoint", "outcome"},
    "imdsproxy_request_seconds": {"endpoint"},
    "imdsproxy_upstream_requests": {"endpoint", "status"},
    "imdsproxy_upstream_seconds": {"endpoint"},
    "imdsproxy_upstream_retries": {"endpoint", "reason"},
    "imdsproxy_budget_available": {"class"},
    "imdsproxy_budget_wait_seconds": {"endpoint"},
    "imdsproxy_budget_refused": {"class"},
    "imdsproxy_access_refused": {"rule", "mode"},
    "imdsproxy_cache_entries": set(),
    "imdsproxy_cache_bytes": set(),
    "imdsproxy_token_expiry_seconds": set(),
}


def test_contracts_metrics_have_their_names_and_labels(parts: Parts) -> None:
    families = exported(parts.metrics)
    assert {name: families[name] for name in CONTRACT} == CONTRACT


def exported(metrics: Metrics) -> dict[str, set[str]]:
    """Return the labels of each family after one of every event."""
    metrics.observe(served(), 0.1)
    metrics.observe_attempt(asked("200", retried_after="410"))
    metrics.observe_attempt(asked(None))
    metrics.access.observe(RefusedAccess(Verdict(allowed=False, rule="web"), Subject(), "GET", "/", enforced=True))
    return {
        family.name: {label for sample in family.samples for label in sample.labels} - {"le"}
        for family in text_string_to_metric_families(metrics.text().decode())
    }


def test_no_metric_has_a_created_series(parts: Parts) -> None:
    exported(parts.metrics)
    assert b"_created" not in parts.metrics.text()
    assert b"_created" not in parts.metrics.openmetrics()


def test_openmetrics_text_is_read_by_its_strict_parser(parts: Parts) -> None:
    exported(parts.metrics)
    read = strict_families(parts.metrics.openmetrics().decode())  # type: ignore[no-untyped-call]
    strict = {family.name: family for family in read}
    plain = {family.name for family in text_string_to_metric_families(parts.metrics.text().decode())}
    assert {name.removesuffix("_info") for name in plain} == set(strict)
    assert strict["imdsproxy_build"].type == "info"


@pytest.mark.parametrize(
    ("accept", "content_type"), [("*/*", CONTENT_TYPE), ("application/openmetrics-text", OPENMETRICS)]
)
def test_accept_decides_the_format(parts: Parts, accept: str, content_type: str) -> None:
    text, found = asyncio.run(parts.metrics.answer(accept))
    assert found == content_type
    assert text.endswith(b"# EOF\n") == (content_type == OPENMETRICS)
    assert b"imdsproxy_event_loop_lag_seconds 0.0\n" in text, "the clock of this test stands still"


def test_process_and_collector_are_shown(parts: Parts) -> None:
    names = {name for name, _ in samples(parts.metrics)}
    assert {"python_gc_collections_total", "imdsproxy_build_info"} <= names
    if sys.platform == "linux":
        assert {"process_resident_memory_bytes", "process_cpu_seconds_total", "process_open_fds"} <= names


def test_health_follows_imds_and_readiness(parts: Parts, clock: FakeClock) -> None:
    found = samples(parts.metrics)
    assert found["imdsproxy_upstream_up", ()] == found["imdsproxy_ready", ()] == 0
    assert ("imdsproxy_upstream_last_success_age_seconds", ()) not in found
    parts.history.observe_attempt(asked("200"), clock.monotonic())
    parts.metrics.watch_readiness(lambda: True)
    clock.advance(7.0)
    found = samples(parts.metrics)
    assert found["imdsproxy_upstream_up", ()] == found["imdsproxy_ready", ()] == 1
    assert found["imdsproxy_upstream_last_success_age_seconds", ()] == 7
    parts.history.observe_attempt(replace(asked("500"), failure="status 500"), clock.monotonic())
    assert samples(parts.metrics)["imdsproxy_upstream_up", ()] == 0


def test_capacity_and_connections_are_shown(parts: Parts) -> None:
    found = samples(parts.metrics)
    assert found["imdsproxy_budget_permits", (("class", "general"),)] == 5
    assert found["imdsproxy_budget_permits", (("class", "identity"),)] == 20
    assert found["imdsproxy_budget_waiting", (("class", "general"),)] == 0
    assert found["imdsproxy_cache_max_bytes", ()] == parts.proxy.store.max_bytes
    assert found["imdsproxy_cache_evictions_total", ()] == 0
    assert ("imdsproxy_connections", ()) not in found, "another server counts its own"
    parts.metrics.watch_connections(lambda: 3, 100)
    found = samples(parts.metrics)
    assert (found["imdsproxy_connections", ()], found["imdsproxy_connections_limit", ()]) == (3, 100)
