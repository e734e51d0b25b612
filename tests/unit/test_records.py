from __future__ import annotations

import re
from typing import Any

import pytest

from imdsproxy.protocol.cache_status import reports_loop
from imdsproxy.protocol.messages import BudgetClass, Failure, FailureKind, Headers, Refusal, Response
from imdsproxy.protocol.peer import Peer, PeerKind
from imdsproxy.records import (
    Client,
    KnownClient,
    Outcome,
    RequestObserver,
    RequestRecord,
    UpstreamAttempt,
    description_of,
    notify_all,
    refused,
)

OK = Response(200, ((b"server", b"IMDS/150.870.65.1854"), (b"date", b"Mon, 11 Apr 2026 22:26:58 GMT")), b'{"a":1}')
# RFC 8941 section 3.3.4.
STRUCTURED_TOKEN = re.compile(r"[A-Za-z*][A-Za-z0-9!#$%&'*+\-.^_`|~:/]*")


def served(outcome: Outcome, **more: Any) -> RequestRecord:
    return RequestRecord(OK, "instance", outcome, **more)


def test_outcomes_are_the_contracts() -> None:
    assert " ".join(outcome.value for outcome in Outcome) == "hit stale miss collapsed bypass refused error"


@pytest.mark.parametrize(
    ("record", "member"),
    [
        (served(Outcome.HIT, age=3, ttl=57), b"imdsproxy; hit; ttl=57"),
        (served(Outcome.HIT, age=0, ttl=0), b"imdsproxy; hit; ttl=0"),
        (served(Outcome.STALE, age=70, ttl=-10), b"imdsproxy; hit; ttl=-10"),
        (
            served(Outcome.STALE, age=700, ttl=-640, detail="stale-if-error"),
            b"imdsproxy; hit; ttl=-640; detail=stale-if-error",
        ),
        (
            served(Outcome.MISS, forward="uri-miss", forward_status=200, ttl=60, stored=True),
            b"imdsproxy; fwd=uri-miss; fwd-status=200; ttl=60; stored",
        ),
        (
            served(Outcome.COLLAPSED, forward="uri-miss", forward_status=200, ttl=60, stored=True),
            b"imdsproxy; fwd=uri-miss; fwd-status=200; ttl=60; stored; collapsed",
        ),
        (served(Outcome.BYPASS, forward="bypass", forward_status=404), b"imdsproxy; fwd=bypass; fwd-status=404"),
        (served(Outcome.ERROR, forward="stale", forward_status=503), b"imdsproxy; fwd=stale; fwd-status=503"),
        (served(Outcome.REFUSED, detail="budget"), b"imdsproxy; detail=budget"),
        (served(Outcome.REFUSED), b"imdsproxy"),
    ],
)
def test_cache_status_follows_rfc_9211(record: RequestRecord, member: bytes) -> None:
    assert record.cache_status() == member


def test_imds_fields_come_first_unchanged_then_the_proxys_own() -> None:
    assert served(Outcome.HIT, age=3, ttl=57).headers() == [
        *OK.headers,
        (b"content-length", b"7"),
        (b"age", b"3"),
        (b"cache-status", b"imdsproxy; hit; ttl=57"),
    ]


def test_age_is_present_on_a_hit_only() -> None:
    names = [name for name, _ in served(Outcome.MISS, forward="uri-miss", forward_status=200).headers()]
    assert b"age" not in names
    assert b"cache-status" in names


def test_empty_body_has_a_length_too() -> None:
    assert (b"content-length", b"0") in RequestRecord(Response(200, (), b""), "instance", Outcome.MISS).headers()


@pytest.mark.parametrize("status", [204, 304])
def test_status_without_a_body_has_no_length(status: int) -> None:
    fields = RequestRecord(Response(status, (), b""), "instance", Outcome.MISS).headers()
    assert b"content-length" not in [name for name, _ in fields]


def test_headers_do_not_change_the_stored_response() -> None:
    record = served(Outcome.HIT, age=1, ttl=1)
    before = OK.headers
    record.headers().append((b"x", b"y"))
    assert OK.headers == before
    assert record.headers() == record.headers()


def test_cache_status_keeps_members_of_other_caches() -> None:
    # RFC 9211 section 2: the cache closest to the origin comes first.
    response = Response(200, ((b"cache-status", b"imdsproxy; hit; ttl=9"),), b"")
    fields = RequestRecord(response, "instance", Outcome.HIT, age=1, ttl=59).headers()
    assert [value for name, value in fields if name == b"cache-status"] == [
        b"imdsproxy; hit; ttl=9, imdsproxy; hit; ttl=59"
    ]


def test_age_of_another_cache_is_replaced() -> None:
    # RFC 9110 section 5.3: only a list may be given in several fields, and Age is none.
    response = Response(200, ((b"age", b"50"),), b"")
    fields = RequestRecord(response, "instance", Outcome.HIT, age=3, ttl=57).headers()
    assert len([value for name, value in fields if name == b"age"]) == 1


def test_own_answer_has_its_reason_as_detail() -> None:
    record = refused(Refusal(403, "denied", "forbidden", "Ask for something else."))
    assert (record.response.status, record.endpoint, record.outcome) == (403, "none", Outcome.REFUSED)
    assert (b"cache-status", b"imdsproxy; detail=denied") in record.headers()
    assert (b"content-type", b"application/json; charset=utf-8") in record.headers()
    assert (b"content-length", b"%d" % len(record.response.body)) in record.headers()
    assert record.age is None


def test_own_answer_can_have_an_endpoint_and_an_outcome() -> None:
    record = refused(Refusal(502, "upstream-reset", "x", "y"), "token", Outcome.ERROR)
    assert (record.endpoint, record.outcome) == ("token", Outcome.ERROR)


@pytest.mark.parametrize("kind", FailureKind)
def test_every_failure_kind_is_a_cache_status_token(kind: FailureKind) -> None:
    assert STRUCTURED_TOKEN.fullmatch(kind.value)


def test_refused_attempt_has_no_status_and_no_time() -> None:
    asked = UpstreamAttempt("instance", BudgetClass.GENERAL, 0.0, None)
    assert (asked.status, asked.seconds, asked.retried_after) == (None, 0.0, None)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (508, ((b"cache-status", b"imdsproxy; detail=loop"),), True),
        (508, ((b"cache-status", b"other; detail=loop"),), False),
        (508, (), False),
        (502, ((b"cache-status", b"imdsproxy; detail=loop"),), False),
    ],
)
def test_reports_loop_needs_an_imdsproxy_508(status: int, headers: Headers, expected: bool) -> None:
    assert reports_loop(Response(status, headers, b"")) is expected


def test_loop_refusal_is_recognised_by_reports_loop() -> None:
    loop = refused(Failure(FailureKind.LOOP, "It leads back.").refusal(1))
    assert reports_loop(Response(loop.response.status, tuple(loop.headers()), loop.response.body))


def test_every_observer_is_told_the_same_in_its_order() -> None:
    told: list[tuple[object, ...]] = []

    def observer(name: str) -> RequestObserver:
        return lambda *given: told.append((name, *given))

    record = refused(Refusal(404, "outside", "not_found", "It is not there."))
    notify_all([observer("one"), observer("other")])(record, 0.5, ("127.0.0.1", 1), b"GET /")
    assert told == [(name, record, 0.5, ("127.0.0.1", 1), b"GET /") for name in ("one", "other")]
    assert told[0][1] is told[1][1] is record


def test_only_observer_is_called_directly() -> None:
    def observe(record: RequestRecord, seconds: float, client: Client | None, request: bytes, /) -> None:
        del record, seconds, client, request

    assert notify_all([observe]) is observe


def test_known_client_is_its_address_for_asgi_and_has_a_description() -> None:
    peer = Peer(address="127.0.0.1", user=33, user_name="www", kind=PeerKind.TCP)
    client = KnownClient(peer, ("127.0.0.1", 4711))
    assert client == ("127.0.0.1", 4711)
    assert description_of(client) == "user 33 (www)"
    at_socket = KnownClient(Peer(user=33, process=12, kind=PeerKind.UNIX), None)
    assert at_socket == ("user 33, process 12", 0)
    assert description_of(at_socket) == "user 33, process 12"
    assert description_of(KnownClient(Peer(unknown="it has ended"), ("10.0.0.7", 1))) == "10.0.0.7"
    assert description_of(KnownClient(Peer(unknown="it has ended"), None)) == "-"


@pytest.mark.parametrize(("client", "name"), [(("10.0.0.7", 1), "10.0.0.7"), (None, "-")])
def test_description_of_another_client_is_its_address(client: Client | None, name: str) -> None:
    assert description_of(client) == name
