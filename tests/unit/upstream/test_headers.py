from __future__ import annotations

import pytest

from imdsproxy import __version__
from imdsproxy.policy.decisions import Cache, Forward, Lifetimes
from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.messages import BudgetClass, Headers, Refusal, Request, Response, Target
from imdsproxy.protocol.request_parser import HOP_HEADER, read
from imdsproxy.protocol.target import read_target
from imdsproxy.upstream.headers import dated, to_client, to_upstream

CACHE = Cache("instance", BudgetClass.GENERAL, Lifetimes(60))
FORWARD = Forward("other", BudgetClass.GENERAL, add_metadata=True)
FORWARD_AS_IT_CAME = Forward("identity", BudgetClass.IDENTITY, add_metadata=False)
HOPS = (HOP_HEADER, b"this")


def request(*fields: tuple[bytes, bytes], hops: tuple[str, ...] = (), metadata: bool = False) -> Request:
    target = read_target(b"/metadata/instance")
    assert isinstance(target, Target)
    return Request("GET", target, metadata=metadata, headers=fields, hops=hops)


def test_shared_fetch_carries_no_client_fields() -> None:
    asked = request(
        (b"host", b"127.0.0.1"),
        (b"user-agent", b"curl"),
        (b"accept", b"text/plain"),
        (b"accept-encoding", b"gzip"),
        (b"authorization", b"Bearer secret"),
        (b"cookie", b"a=1"),
        (b"cache-control", b"no-cache"),
        (b"range", b"bytes=0-1"),
        (b"if-none-match", b"x"),
        (b"x-ms-client-request-id", b"1"),
        metadata=True,
    )
    assert to_upstream(asked, CACHE, "this") == (
        (b"accept", b"*/*"),
        (b"accept-encoding", b"identity"),
        (b"user-agent", b"imdsproxy/" + __version__.encode()),
        (b"metadata", b"true"),
        HOPS,
    )


@pytest.mark.parametrize(
    ("decision", "metadata"), [(FORWARD, ((b"metadata", b"true"),)), (FORWARD_AS_IT_CAME, ())], ids=["added", "not"]
)
def test_forwarded_request_carries_the_clients_end_to_end_fields(decision: Forward, metadata: Headers) -> None:
    kept = (
        (b"user-agent", b"MSAL"),
        (b"accept", b"application/json"),
        (b"x-ms-client-request-id", b"1"),
        (b"content-type", b"application/json"),
        (b"x-twice", b"1"),
        (b"x-twice", b"2"),
    )
    assert to_upstream(request(*kept), decision, "this") == (*kept, *metadata, HOPS)


@pytest.mark.parametrize("decision", [FORWARD, FORWARD_AS_IT_CAME], ids=["added", "not"])
@pytest.mark.parametrize(
    "name",
    [
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"proxy-authenticate", b"proxy-authorization", b"proxy-authentication-info"),
        *(b"host", b"content-length", b"expect"),
        *(b"forwarded", b"via", b"x-forwarded-for", b"x-forwarded-host", b"x-forwarded-proto", b"x-real-ip"),
    ],
)
def test_hop_by_hop_and_proxy_fields_are_not_forwarded(name: bytes, decision: Forward) -> None:
    sent = to_upstream(request((name, b"x"), (b"accept", b"*/*")), decision, "this")
    assert name not in [field for field, _ in sent]
    assert (b"accept", b"*/*") in sent


def test_fields_named_by_connection_are_not_forwarded() -> None:
    asked = request(
        (b"connection", b"close, X-One"),
        (b"x-one", b"1"),
        (b"connection", b"x-two"),
        (b"x-two", b"2"),
        (b"x-three", b"3"),
    )
    assert to_upstream(asked, FORWARD_AS_IT_CAME, "this") == ((b"x-three", b"3"), HOPS)


@pytest.mark.parametrize("value", [b"true", b"false", b"TRUE", b""])
def test_metadata_header_follows_the_decision_not_the_client(value: bytes) -> None:
    asked = request((b"metadata", value), (b"metadata", value), (b"connection", b"metadata"))
    assert to_upstream(asked, FORWARD, "this") == ((b"metadata", b"true"), HOPS)
    assert to_upstream(asked, FORWARD_AS_IT_CAME, "this") == (HOPS,)


@pytest.mark.parametrize("decision", [CACHE, FORWARD, FORWARD_AS_IT_CAME], ids=["cache", "added", "not"])
def test_request_names_the_proxies_it_passed_with_this_one_last(decision: Cache | Forward) -> None:
    asked = request((HOP_HEADER, b"one, two"), hops=("one", "two"))
    hops = [value for name, value in to_upstream(asked, decision, "this") if name == HOP_HEADER]
    assert hops == [b"one, two, this"]


@pytest.mark.parametrize(
    "hop", [b"x" * 60_000, b"x" * 2_000, b"one\xff\x80", b"", b", ,"], ids=["60 kB", "2 kB", "bytes", "empty", "commas"]
)
def test_shared_fetch_carries_only_valid_hops(hop: bytes) -> None:
    # IMDS would answer 400 to a field it cannot take, and that answer would be kept for everyone.
    asked = read(
        "GET", b"/metadata/instance", [(b"host", b"127.0.0.1"), (HOP_HEADER, hop)], AcceptedHosts(instance="0" * 16)
    )
    if not isinstance(asked, Refusal):
        assert to_upstream(asked, CACHE, "0" * 16)[-1] == (HOP_HEADER, b"0" * 16)


def test_imds_fields_reach_the_client_in_lower_case_and_in_order() -> None:
    received = [
        (b"Content-Type", b"application/json; charset=utf-8"),
        (b"Server", b"IMDS/150.870.65.1854"),
        (b"Date", b"Mon, 11 Apr 2026 22:26:58 GMT"),
        (b"x-ms-request-id", b"1"),
        (b"Location", b"/elsewhere"),
        (b"Retry-After", b"3"),
    ]
    assert to_client(received) == tuple((name.lower(), value) for name, value in received)


@pytest.mark.parametrize("name", [b"Connection", b"Keep-Alive", b"Transfer-Encoding", b"Trailer", b"Upgrade", b"TE"])
def test_imds_hop_by_hop_fields_do_not_reach_the_client(name: bytes) -> None:
    assert to_client([(name, b"x"), (b"Server", b"IMDS")]) == ((b"server", b"IMDS"),)


def test_imds_fields_named_by_connection_do_not_reach_the_client() -> None:
    received = [(b"X-One", b"1"), (b"Connection", b"X-ONE , keep-alive"), (b"Server", b"IMDS")]
    assert to_client(received) == ((b"server", b"IMDS"),)


def test_content_length_is_dropped() -> None:
    assert to_client([(b"Content-Length", b"3"), (b"content-length", b"4")]) == ()


def test_response_without_date_gets_the_time_of_its_receipt() -> None:
    response = dated(Response(200, ((b"server", b"IMDS/1"),), b"{}"), 1_800_000_000.9)
    assert response == Response(200, ((b"server", b"IMDS/1"), (b"date", b"Fri, 15 Jan 2027 08:00:00 GMT")), b"{}")


def test_response_keeps_the_date_that_it_has() -> None:
    response = Response(200, ((b"date", b"Mon, 11 Apr 2022 22:26:58 GMT"),), b"{}")
    assert dated(response, 1_800_000_000.0) is response
