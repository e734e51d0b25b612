"""The record that a client gets of a fetch's result."""

from __future__ import annotations

import json

import pytest

from imdsproxy.budget.limiter import NoPermit
from imdsproxy.cache.freshness import Entry
from imdsproxy.protocol.messages import Failure, FailureKind, Response
from imdsproxy.proxy.results import FetchResult, StoredAnswer, has_failed, record_of
from imdsproxy.records import Outcome, RequestRecord

NOW = 1_000.0
ANSWER = Response(200, ((b"content-type", b"application/json"),), b"{}")
ENTRY = Entry(ANSWER, NOW - 1, NOW + 59.5, NOW + 119, NOW + 3600)
UNREACHABLE = Failure(FailureKind.UNREACHABLE, "It cannot be reached.", sent=False)


def record(result: FetchResult | Failure, retry_base: float = 1.0) -> RequestRecord:
    return record_of(result, "instance", Outcome.MISS, "uri-miss", now=NOW, retry_base=retry_base)


@pytest.mark.parametrize(
    ("result", "outcome", "status"),
    [
        (StoredAnswer(ANSWER, ENTRY), Outcome.MISS, b"imdsproxy; fwd=uri-miss; fwd-status=200; ttl=59; stored"),
        (StoredAnswer(ANSWER), Outcome.MISS, b"imdsproxy; fwd=uri-miss; fwd-status=200"),
        (StoredAnswer(ANSWER, failed=True), Outcome.ERROR, b"imdsproxy; fwd=uri-miss; fwd-status=200"),
        (NoPermit(3), Outcome.REFUSED, b"imdsproxy; detail=budget"),
        (UNREACHABLE, Outcome.ERROR, b"imdsproxy; detail=upstream-unreachable"),
    ],
    ids=["stored", "not stored", "failed", "no permit", "failure"],
)
def test_record_says_what_became_of_the_request(result: FetchResult | Failure, outcome: Outcome, status: bytes) -> None:
    found = record(result)
    assert (found.endpoint, found.outcome, found.cache_status()) == ("instance", outcome, status)


@pytest.mark.parametrize(
    ("result", "failed"),
    [(StoredAnswer(ANSWER, ENTRY), False), (StoredAnswer(ANSWER, failed=True), True), (NoPermit(3), True)],
)
def test_stale_entry_is_served_instead_of_every_result_but_an_answer(result: FetchResult, failed: bool) -> None:
    assert has_failed(result) is failed
    assert has_failed(UNREACHABLE)


def test_refusal_for_lack_of_permits_says_when_to_ask_again() -> None:
    refusal = record(NoPermit(3)).response
    assert (refusal.status, refusal.header(b"retry-after")) == (429, b"3")
    assert "Ask again in 3 s" in json.loads(refusal.body)["error_description"]


@pytest.mark.parametrize(("retry_base", "seconds"), [(0.1, b"1"), (2.4, b"2"), (7.0, b"7")])
def test_failure_says_to_retry_after_the_base_pause_in_whole_seconds(retry_base: float, seconds: bytes) -> None:
    assert record(UNREACHABLE, retry_base).response.header(b"retry-after") == seconds
