"""The end of a request: lengths and chunks, bodies, pipelined and split requests, endless heads and trailers."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from typing import Any

import pytest

from imdsproxy.emulator import EmulatorServer, Fault
from tests.integration.attacks.kit import (
    CLOSE,
    FORWARDED_FOR,
    HOST,
    IMDS_WORDS,
    RAW_EVENTS,
    RAW_TOKEN,
    SMUGGLED,
    TRUE,
    assert_refused,
    converse,
    nothing_arrives,
    read_answer,
    request,
    until_closed,
)
from tests.kit import ProxyProcess

pytestmark = pytest.mark.process


# --- lengths and chunks


@pytest.mark.attack(8)
@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 0\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 0\r\n",
        b"Content-Length: 4\r\nContent-Length: 4\r\n",
        b"Content-Length: 4, 4\r\n",
        b"Content-Length: 0, 4\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: -4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: 4.0\r\n",
        b"Content-Length: 4 4\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 18446744073709551616\r\n",
        b"Content-Length : 4\r\n",
        b"Content-Length\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: identity\r\nContent-Length: 4\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b'Transfer-Encoding: "chunked"\r\n',
        b"X: 1\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding\r\n : chunked\r\n",
    ],
    ids=repr,
)
@pytest.mark.parametrize("method", [b"POST", b"GET"])
def test_body_of_ambiguous_length_ends_the_connection(
    proxy: ProxyProcess, imds: EmulatorServer, method: bytes, fields: bytes
) -> None:
    target = RAW_EVENTS if method == b"POST" else RAW_TOKEN + b"&framing=1"
    with nothing_arrives(imds):
        answers = until_closed(
            proxy.port, request(target, HOST, TRUE, fields, method=method, body=b"0\r\n\r\n" + SMUGGLED)
        )
    assert len(answers) == 1
    assert_refused(answers[0], 400, "malformed")


@pytest.mark.attack(8)
@pytest.mark.parametrize(
    "body",
    [
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b" 2\r\n{}\r\n0\r\n\r\n",
        b"2 \r\n{}\r\n0\r\n\r\n",
        b"\r\n{}\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        b"2\n{}\n0\n\n",
        b"2\r{}\r\n0\r\n\r\n",
        b"2\r\n{}0\r\n\r\n",
        b"2\r\n{}xx0\r\n\r\n",
        b"2\r\n{}\n0\r\n\r\n",
        b"2;a\nb\r\n{}\r\n0\r\n\r\n",
        b"0\r\nX : 1\r\n\r\n",
        b"0\r\nX: 1\n\r\n",
        b"0\r\n X: 1\r\n\r\n",
    ],
    ids=repr,
)
def test_broken_chunk_ends_the_connection(proxy: ProxyProcess, imds: EmulatorServer, body: bytes) -> None:
    sent = request(RAW_EVENTS, HOST, TRUE, b"Transfer-Encoding: chunked\r\n", method=b"POST", body=body + SMUGGLED)
    with nothing_arrives(imds):
        answers = until_closed(proxy.port, sent)
    assert len(answers) == 1
    assert_refused(answers[0], 400, "malformed")


def test_unknown_transfer_coding_is_refused(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    """RFC 9112 section 6.1: a coding that is not understood is refused."""
    chunked = b"2\r\n{}\r\n0\r\n\r\n"
    sent = request(RAW_EVENTS, HOST, TRUE, CLOSE, b"Transfer-Encoding: gzip, chunked\r\n", method=b"POST", body=chunked)
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, sent)
    assert answer.status in {400, 501}


# --- bodies


@pytest.mark.attack(8)
def test_body_of_a_get_is_never_read_as_a_request(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    following = request(b"/-/healthy", HOST)
    with nothing_arrives(imds):
        for target, status in (
            (RAW_TOKEN, 400),
            (b"/elsewhere", 404),
            (b"/-/healthy", 200),
            (b"/metadata/versions", 200),
        ):
            for framed in (
                request(target, HOST, b"Content-Length: %d\r\n" % len(SMUGGLED), body=SMUGGLED),
                request(
                    target,
                    HOST,
                    b"Transfer-Encoding: chunked\r\n",
                    body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
                ),
            ):
                for pieces in (framed + following, [framed, following], [framed[:-20], framed[-20:] + following]):
                    answers = converse(proxy.port, pieces, 2)
                    assert [answer.status for answer in answers] == [status, 200]
                    assert answers[1].body == b'{"status":"ok"}'


def test_refused_posts_body_is_never_read_as_a_request(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    with nothing_arrives(imds):
        framed = request(RAW_TOKEN, HOST, b"Content-Length: %d\r\n" % len(SMUGGLED), method=b"POST", body=SMUGGLED)
        answers = converse(proxy.port, [framed[:-30], framed[-30:] + request(b"/-/healthy", HOST)], 2)
    assert [answer.status for answer in answers] == [405, 200]


@pytest.mark.parametrize("framing", ["length", "chunked", "one-byte-chunks", "expect"])
def test_post_to_scheduled_events_arrives_whole(proxy: ProxyProcess, imds: EmulatorServer, framing: str) -> None:
    event = imds.emulator.events.add()
    body = json.dumps({"StartRequests": [{"EventId": event}]}).encode()
    length = b"Content-Length: %d\r\n" % len(body)
    before = len(imds.emulator.arrivals)
    if framing == "expect":
        with (
            socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection,
            connection.makefile("rb") as read,
        ):
            connection.sendall(request(RAW_EVENTS, HOST, TRUE, length, b"Expect: 100-continue\r\n", method=b"POST"))
            assert read.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert read.readline() == b"\r\n"
            connection.sendall(body)
            answer = read_answer(read)
            assert answer is not None
    else:
        pieces = {
            "length": request(RAW_EVENTS, HOST, TRUE, length, method=b"POST", body=body),
            "chunked": request(
                RAW_EVENTS,
                HOST,
                TRUE,
                b"Transfer-Encoding: chunked\r\n",
                method=b"POST",
                body=b"%X;x=y\r\n%s\r\n000\r\nT: 1\r\n\r\n" % (len(body), body),
            ),
            "one-byte-chunks": request(
                RAW_EVENTS,
                HOST,
                TRUE,
                b"Transfer-Encoding: Chunked\r\n",
                method=b"POST",
                body=b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n",
            ),
        }[framing]
        (answer,) = converse(proxy.port, pieces)
    assert answer.status == 200
    assert answer.headers["cache-status"] == "imdsproxy; fwd=method; fwd-status=200"
    (arrival,) = imds.emulator.arrivals[before:]
    arrived = dict(arrival.headers)
    assert arrived[b"content-length"] == str(len(body)).encode()
    assert arrived.keys().isdisjoint({b"transfer-encoding", b"expect", b"t"})
    assert _status_of(imds, event) == "Started"
    imds.emulator.events.clear()


def _status_of(imds: EmulatorServer, event_id: str) -> str:
    document: dict[str, Any] = imds.emulator.events.document("2020-07-01", time.time())
    statuses: dict[str, str] = {event["EventId"]: event["EventStatus"] for event in document["Events"]}
    return statuses[event_id]


def test_expectation_of_a_request_that_is_refused_is_not_met(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    fields = (HOST, b"Content-Length: 2\r\n", b"Expect: 100-continue\r\n", CLOSE)
    with nothing_arrives(imds):
        for target, method, status in (
            (RAW_TOKEN, b"POST", 405),
            (b"/metadata/../x", b"POST", 400),
            (RAW_TOKEN, b"PUT", 405),
        ):
            (answer,) = converse(proxy.port, request(target, *fields, method=method))
            assert answer.status == status
        (answer,) = converse(proxy.port, request(RAW_EVENTS, *fields, FORWARDED_FOR, method=b"POST"))
        assert_refused(answer, 400, "x-forwarded-for")


@pytest.mark.parametrize("chunked", [False, True])
def test_long_post_is_refused(proxy: ProxyProcess, imds: EmulatorServer, chunked: bool) -> None:
    body = b"x" * 70_000
    field = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: 70000\r\n"
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    with nothing_arrives(imds):
        answers = converse(
            proxy.port, request(RAW_EVENTS, HOST, field, method=b"POST", body=framed) + request(b"/-/healthy", HOST), 2
        )
    assert_refused(answers[0], 413, "body-too-long")
    assert [answer.status for answer in answers[1:]] in ([200], [])


# --- pipelined and split requests


@pytest.mark.attack(8)
def test_pipelined_requests_are_answered_in_order(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=0.3, times=1))
    event = imds.emulator.events.add()
    body = json.dumps({"StartRequests": [{"EventId": event}]}).encode()
    balancer = b"/metadata/loadbalancer?api-version=2021-02-01&order=1"
    conversation = [
        (request(balancer, HOST), 200, b'{"loadbalancer"'),
        (request(b"/-/healthy", HOST), 200, b'{"status":"ok"}'),
        (request(RAW_TOKEN, HOST), 400, IMDS_WORDS),
        (request(RAW_TOKEN, HOST, TRUE), 200, b'{"access_token"'),
        (request(b"/elsewhere", HOST), 404, b'{"error":"not_found"'),
        (request(RAW_EVENTS, HOST, TRUE, b"Content-Length: %d\r\n" % len(body), method=b"POST", body=body), 200, b""),
        (request(b"/metadata/versions", HOST, b"Content-Length: 3\r\n", body=b"GET"), 200, b'{"apiVersions"'),
        (request(RAW_TOKEN, HOST, TRUE, method=b"DELETE"), 405, b'{"error":"method_not_allowed"'),
        (request(balancer, HOST), 200, b'{"loadbalancer"'),
        (request(b"/-/healthy", HOST, CLOSE), 200, b'{"status":"ok"}'),
    ]
    sent = b"".join(raw for raw, _, _ in conversation)
    for pieces in (sent, [sent[at : at + 50] for at in range(0, len(sent), 50)]):
        answers = until_closed(proxy.port, pieces)
        assert [answer.status for answer in answers] == [status for _, status, _ in conversation]
        for answer, (_, _, beginning) in zip(answers, conversation, strict=True):
            assert answer.body.startswith(beginning)
    imds.emulator.events.clear()


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nA : 1\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 200_000],
    ids=["garbage", "malformed", "too-long"],
)
@pytest.mark.parametrize("apart", [False, True], ids=["at-once", "apart"])
def test_refusal_of_a_malformed_request_comes_after_earlier_answers(
    proxy: ProxyProcess, imds: EmulatorServer, garbage: bytes, apart: bool
) -> None:
    target = b"/metadata/loadbalancer?api-version=2021-02-01&overtake=%d-%d" % (len(garbage), apart)
    asked = request(target, HOST) + request(b"/-/healthy", HOST)
    imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=0.2, times=1))
    answers = until_closed(proxy.port, [asked, garbage] if apart else asked + garbage)
    assert [answer.status for answer in answers[:2]] == [200, 200]
    assert answers[0].body.startswith(b'{"loadbalancer"')
    assert [answer.status for answer in answers[2:]] in ([], [400], [431])


@pytest.mark.attack(8)
def test_request_split_anywhere_is_the_same_request(proxy: ProxyProcess) -> None:
    sent = request(RAW_TOKEN, HOST, TRUE)
    whole = converse(proxy.port, sent)[0]
    token = json.loads(whole.body)["access_token"]
    (answer,) = converse(proxy.port, [sent[at : at + 1] for at in range(len(sent))])
    assert json.loads(answer.body)["access_token"] == token
    for at in range(1, len(sent), 5):
        (answer,) = converse(proxy.port, [sent[:at], sent[at:]])
        assert json.loads(answer.body)["access_token"] == token
    twice = sent * 2
    for at in range(1, len(twice), 11):
        answers = converse(proxy.port, [twice[:at], twice[at:]], 2)
        assert [json.loads(answer.body)["access_token"] for answer in answers] == [token, token]


def test_known_head_gives_no_access_to_other_requests(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    """A known head with one byte more is another head."""
    head = request(RAW_TOKEN, HOST, TRUE)
    assert [answer.status for answer in converse(proxy.port, head * 5, 5)] == [200] * 5
    with nothing_arrives(imds):
        for other, status, detail in (
            (request(RAW_TOKEN, HOST), 400, "metadata-header"),
            (request(RAW_TOKEN, HOST, TRUE, TRUE), 400, "metadata-header"),
            (request(RAW_TOKEN, HOST, TRUE, FORWARDED_FOR), 400, "x-forwarded-for"),
            (request(RAW_TOKEN, HOST, HOST, TRUE), 400, "bad-host"),
            (request(RAW_TOKEN, b"Host: localhosu\r\n", TRUE), 403, "host"),
            (request(RAW_TOKEN, HOST, TRUE, method=b"PUT"), 405, "method"),
            (head[:-2] + b" : 1\r\n\r\n", 400, "malformed"),
        ):
            for prefix, count in ((b"", 0), (head, 1), (head * 3, 3)):
                for pieces in (prefix + other, [prefix, other] if prefix else [other[:40], other[40:]]):
                    answers = converse(proxy.port, pieces, count + 1)
                    assert [answer.status for answer in answers[:count]] == [200] * count
                    if len(answers) == count and detail == "malformed":
                        continue  # closed without a word, since an answer was still on its way
                    assert_refused(answers[count], status, detail)
    smuggling = request(RAW_TOKEN, HOST, TRUE, b"Content-Length: %d\r\n" % len(head), body=head)
    answers = until_closed(proxy.port, smuggling + request(b"/-/healthy", HOST, CLOSE))
    assert [answer.body[:10] for answer in answers] == [b'{"access_t', b'{"status":']


# --- too long


@pytest.mark.attack(8)
@pytest.mark.parametrize(
    "sent",
    [
        request(RAW_TOKEN, HOST, TRUE, b"X: " + b"a" * 65_537 + b"\r\n"),
        request(RAW_TOKEN, HOST, TRUE, b"a" * 65_537 + b": 1\r\n"),
        request(RAW_TOKEN, HOST, TRUE, *(b"X-%d: 1\r\n" % number for number in range(10_000))),
        request(RAW_TOKEN, HOST, TRUE, *(b"X: 1\r\n" for _ in range(101))),
        request(RAW_TOKEN, HOST, TRUE, *(b"Metadata: true\r\n" for _ in range(10_000))),
        request(RAW_TOKEN + b"&x=" + b"a" * 65_537, HOST, TRUE),
        b"GET " + b"/metadata" * 20_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"a" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 50_000,
        b"\r\n" * 100_000,
        request(RAW_TOKEN, HOST, b"Transfer-Encoding: chunked\r\n", body=b"0\r\n" + b"X: 1\r\n" * 20_000 + b"\r\n"),
    ],
    ids=[
        *("value", "name", "10000-fields", "101-fields", "10000-metadata", "target", "endless-target"),
        *("endless-value", "endless-name", "endless-fields", "endless-lines", "trailers"),
    ],
)
def test_head_that_is_too_long_is_refused(proxy: ProxyProcess, imds: EmulatorServer, sent: bytes) -> None:
    with nothing_arrives(imds):
        answers = until_closed(proxy.port, [sent[at : at + 30_000] for at in range(0, len(sent), 30_000)])
    # Where the proxy closes while the client still sends, the answer can be lost on the client's side.
    for answer in answers[-1:]:
        assert answer.status in {400, 431}
        assert_refused(answer, answer.status, "head-too-long", "metadata-header", "malformed")
    assert all(answer.status != 200 for answer in answers)


@pytest.mark.attack(8, 15)
def test_hundred_fields_are_served(proxy: ProxyProcess) -> None:
    fields = [b"X-%d: 1\r\n" % number for number in range(98)]
    assert converse(proxy.port, request(RAW_TOKEN, HOST, TRUE, *fields))[0].status == 200


@pytest.mark.parametrize(
    "beginning", [b"0\r\nX: ", b"0\r\n", b"1;x="], ids=["trailer-value", "trailer-name", "extension"]
)
def test_bytes_behind_a_body_are_bounded(proxy: ProxyProcess, beginning: bytes) -> None:
    before = proxy.resident_bytes()
    head = request(RAW_TOKEN + b"&endless=1", HOST, b"Transfer-Encoding: chunked\r\n")
    most = 0
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection, contextlib.suppress(OSError):
        connection.sendall(head + beginning)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            connection.sendall(b"a" * 65_536)
            most = max(most, proxy.resident_bytes() - before)
    assert most < 8_000_000
