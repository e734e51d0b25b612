"""Header fields of a client, in shared fetches and in fetches for that client alone."""

from __future__ import annotations

import json

import pytest

from tests.integration.serving.kit import ATTESTED, INFO, LOAD_BALANCER, PLATFORM, REPROVISION
from tests.kit import METADATA, Arrivals, ProxyProcess, get, unused
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

pytestmark = pytest.mark.process


@pytest.mark.parametrize("target", [VERSIONS, INSTANCE, TOKEN, INFO, LOAD_BALANCER, EVENTS, ATTESTED])
def test_shared_fetch_carries_no_client_fields(proxy: ProxyProcess, arrivals: Arrivals, target: str) -> None:
    own = {
        "x-ms-client-request-id": "5f2b9c1e-0000-4000-8000-00000000c0de",
        "Authorization": "Bearer mine",
        "Cookie": "mine=1",
        "User-Agent": "mine/1",
        "Accept": "text/mine",
        "Accept-Encoding": "gzip",
        "Content-Type": "application/mine",
        "Cache-Control": "max-age=0",
        "Via": "1.1 mine",
        "Forwarded": "for=10.0.0.1",
        "X-Real-IP": "10.0.0.1",
        "X-Mine": "mine",
        "Metadata": "True",
    }
    target = unused(target)
    assert get(proxy.port, target, own).status == 200
    (arrival,) = arrivals()
    sent = dict(arrival.headers)
    own_words = {b"host", b"connection", b"accept", b"accept-encoding", b"user-agent", b"metadata"}
    assert {*sent} - {b"imdsproxy-via"} == own_words
    assert sent[b"metadata"] == b"true"
    assert b"mine" not in b"".join(sent.values())
    assert len(sent) == len(arrival.headers)


@pytest.mark.parametrize("target", [ATTESTED + "&nonce=1", PLATFORM, REPROVISION])
def test_fetch_for_one_client_carries_its_fields(proxy: ProxyProcess, arrivals: Arrivals, target: str) -> None:
    # A field of consequence keeps the request from being shared with others that ask the same.
    own = {"Metadata": "True", "X-Mine": "1", "x-ms-client-request-id": "mine", "User-Agent": "mine/1"}
    hidden = {"Via": "1.1 elsewhere", "Connection": "X-Hop", "X-Hop": "1", "X-Real-IP": "10.0.0.1"}
    get(proxy.port, target, {**own, **hidden})
    (arrival,) = arrivals()
    sent = dict(arrival.headers)
    assert sent[b"x-ms-client-request-id"] == b"mine"
    assert sent[b"user-agent"] == b"mine/1"
    assert sent[b"metadata"] == b"true"
    assert not {b"via", b"x-hop", b"x-real-ip", b"x-forwarded-for", b"forwarded"} & {*sent}
    assert len(sent) == len(arrival.headers)


@pytest.mark.parametrize("target", [INSTANCE, TOKEN, PLATFORM, VERSIONS])
def test_forwarded_request_is_refused_and_never_sent_on(proxy: ProxyProcess, arrivals: Arrivals, target: str) -> None:
    answer = get(proxy.port, target, {**METADATA, "X-Forwarded-For": "10.0.0.1"})
    assert answer.status == 400
    assert list(json.loads(answer.body)) == ["error", "error_description"]
    assert arrivals() == []
