"""No method and no protocol reaches another host: `CONNECT`, absolute targets, `Upgrade`, bytes that are not HTTP."""

from __future__ import annotations

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.attacks.kit import (
    CLOSE,
    FORWARDED_FOR,
    HOST,
    RAW_EVENTS,
    RAW_TOKEN,
    SMUGGLED,
    TRUE,
    assert_refused,
    converse,
    nothing_arrives,
    request,
    until_closed,
)
from tests.kit import ProxyProcess
from tests.targets import INSTANCE, TOKEN

pytestmark = [pytest.mark.any_python, pytest.mark.process]


# --- another host


@pytest.mark.attack(7)
@pytest.mark.parametrize("authority", ["169.254.169.254:80", "evil.example:443", "localhost:22"])
def test_connect_opens_nothing(proxy: ProxyProcess, imds: EmulatorServer, trap: int, authority: str) -> None:
    for target in (authority, f"127.0.0.1:{trap}", f"127.0.0.1:{imds.port}"):
        with nothing_arrives(imds):
            (answer,) = until_closed(proxy.port, f"CONNECT {target} HTTP/1.1\r\n".encode() + HOST + b"\r\n" + SMUGGLED)
        assert_refused(answer, 405, "method")
        assert answer.headers["allow"] == "GET"


@pytest.mark.attack(7)
@pytest.mark.parametrize(
    ("prefix", "status", "details"),
    [
        ("http://evil.example", 403, ("other-host",)),
        ("http://127.0.0.1:{trap}", 403, ("other-host",)),
        ("http://localhost", 403, ("other-host",)),
        ("http://localhost:{own}", 403, ("other-host",)),
        ("http://127.0.0.1:{own}", 403, ("other-host",)),
        ("http://169.254.169.254:8080", 403, ("other-host",)),
        ("http://169.254.169.254:{trap}", 403, ("other-host",)),
        ("http://169.254.169.254.", 403, ("other-host",)),
        ("http://169.254.169.254.evil.example", 403, ("other-host",)),
        ("http://2852039166", 403, ("other-host",)),
        ("http://0xa9fea9fe", 403, ("other-host",)),
        ("http://0251.0376.0251.0376", 403, ("other-host",)),
        ("http://[::ffff:169.254.169.254]", 403, ("other-host",)),
        ("http://metadata.google.internal", 403, ("other-host",)),
        ("http://user@169.254.169.254", 400, ("bad-target", "malformed")),
        ("http://user:hunter2@169.254.169.254", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254@evil.example", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254:80@127.0.0.1:{trap}", 400, ("bad-target", "malformed")),
        (r"http://169.254.169.254\@evil.example", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254%2eevil.example", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254%00", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254#", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254:x", 400, ("bad-target", "malformed")),
        ("http://", 400, ("bad-target", "malformed")),
        ("http:", 400, ("bad-target", "malformed")),
        ("https://169.254.169.254", 403, ("other-host",)),
        ("ftp://169.254.169.254", 400, ("bad-target", "malformed")),
        ("file://", 400, ("bad-target", "malformed")),
        ("//169.254.169.254", 400, ("bad-target", "malformed")),
        ("//evil.example", 400, ("bad-target", "malformed")),
        ("169.254.169.254", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254/http://127.0.0.1:{trap}", 400, ("bad-target", "malformed")),
    ],
)
def test_absolute_target_for_another_host_is_refused(
    proxy: ProxyProcess, imds: EmulatorServer, trap: int, *, prefix: str, status: int, details: tuple[str, ...]
) -> None:
    target = prefix.format(trap=trap, own=proxy.port).encode() + RAW_TOKEN
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(target, HOST, TRUE, CLOSE))
    assert_refused(answer, status, *details)


@pytest.mark.parametrize(
    "prefix",
    [
        *("http://169.254.169.254", "http://169.254.169.254:80", "HTTP://169.254.169.254", "http://169.254.169.254:"),
        "http://127.0.0.1:{imds}",
    ],
)
def test_absolute_target_for_imds_obeys_the_same_rules(proxy: ProxyProcess, imds: EmulatorServer, prefix: str) -> None:
    target = prefix.format(imds=imds.port).encode() + RAW_TOKEN
    before = len(imds.emulator.arrivals)
    # It stands above Host (RFC 9112 section 3.2.2), which clients of a proxy set to the same.
    (answer,) = converse(proxy.port, request(target, b"Host: 169.254.169.254\r\n", TRUE))
    assert answer.status == 200
    assert all(arrival.target.startswith(b"/metadata/") for arrival in imds.emulator.arrivals[before:])
    with nothing_arrives(imds):
        assert_refused(converse(proxy.port, request(target, HOST))[0], 400, "metadata-header")
        assert_refused(converse(proxy.port, request(target, HOST, TRUE, FORWARDED_FOR))[0], 400, "x-forwarded-for")
        assert_refused(converse(proxy.port, request(target, HOST, HOST, TRUE))[0], 400, "bad-host")


# --- methods


@pytest.mark.attack(7)
@pytest.mark.parametrize(
    "method", ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "POST", "PURGE", "QUERY"]
)
@pytest.mark.parametrize("target", [TOKEN, INSTANCE, "/metadata/identity/info", "/-/metrics", "/elsewhere"])
def test_any_other_method_is_refused(proxy: ProxyProcess, imds: EmulatorServer, method: str, target: str) -> None:
    page = target.startswith("/-/")
    if page and method == "HEAD":
        return  # it is answered there
    with nothing_arrives(imds):
        sent = request(target.encode(), HOST, TRUE, b"Cookie: secret\r\n", method=method.encode())
        (answer,) = converse(proxy.port, sent, head=method == "HEAD")
    assert answer.headers["allow"] == ("GET, HEAD" if page else "GET")
    assert b"secret" not in answer.body
    if method == "HEAD":
        assert (answer.status, answer.headers["cache-status"]) == (405, "imdsproxy; detail=method")
    else:
        assert_refused(answer, 405, "method")


def test_allow_names_get_and_post_where_both_are_allowed(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    with nothing_arrives(imds):
        for target in (RAW_EVENTS, b"/Metadata/ScheduledEvents/", b"/metadata/identity/issuecredential"):
            (answer,) = converse(proxy.port, request(target, HOST, TRUE, method=b"DELETE"))
            assert_refused(answer, 405, "method")
            assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize("target", [b"*", b"http://evil.example/", b"/metadata/../x", b"evil.example:80"])
def test_options_reaches_no_upstream(proxy: ProxyProcess, imds: EmulatorServer, target: bytes) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(target, HOST, CLOSE, method=b"OPTIONS"))
    assert answer.status in {400, 405}
    assert_refused(answer, answer.status, "method", "malformed")


@pytest.mark.parametrize(
    ("method", "status", "reason"),
    [
        *((word, 405, "method") for word in (b"FOO", b"get", b"GETT")),
        *((word, 400, "malformed") for word in (b"G\x00T", b"", b"A" * 100_000)),
    ],
)
def test_invalid_method_ends_the_connection(
    proxy: ProxyProcess, imds: EmulatorServer, method: bytes, status: int, reason: str
) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(RAW_TOKEN, HOST, TRUE, method=method) + SMUGGLED)
    assert_refused(answer, status, reason)
    assert answer.headers.get("allow") == ("GET" if status == 405 else None)


# --- other protocols


@pytest.mark.attack(7)
@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0", b"HTTP/2.0", b"h2c, websocket"])
def test_upgrade_is_ignored(proxy: ProxyProcess, imds: EmulatorServer, protocol: bytes) -> None:
    fields = (
        *(HOST, b"Connection: Upgrade, HTTP2-Settings\r\n", b"Upgrade: " + protocol + b"\r\n"),
        *(b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        b"Sec-WebSocket-Version: 13\r\n",
    )
    answers = until_closed(proxy.port, request(INSTANCE.encode(), *fields))
    assert [answer.status for answer in answers] == [200]
    with nothing_arrives(imds):
        # What follows is in whatever protocol: it must not be taken for a request on the quiet.
        answers = until_closed(proxy.port, request(b"/-/healthy", *fields) + SMUGGLED)
        assert [answer.status for answer in answers] == [200]
        answers = until_closed(proxy.port, request(RAW_TOKEN, *fields) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert_refused(answers[0], 400, "metadata-header")
        assert len(answers) == 1


@pytest.mark.attack(7)
def test_body_behind_an_upgrade_is_refused(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    """Java's client offers h2c with every request, and the parser takes the body for the other protocol."""
    fields = (HOST, TRUE, b"Connection: Upgrade, HTTP2-Settings\r\n", b"Upgrade: h2c\r\n", b"Content-Length: 2\r\n")
    with nothing_arrives(imds):
        answers = until_closed(proxy.port, request(RAW_EVENTS, *fields, method=b"POST", body=b"{}"))
    assert_refused(answers[0], 400, "upgrade-with-body")


@pytest.mark.attack(8)
@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\x05\x01\x00",
        b"\x04\x01\x00\x50\xa9\xfe\xa9\xfe\x00",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + SMUGGLED,
        b"\r\n\r\n\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c" + bytes(12) + SMUGGLED,
        b"\x00" * 100,
        b"\xff" * 100,
        b"\n\n\n\x00",
        b"GET\r\n\r\n",
        b"GET /metadata/instance HTTP/1.1\r\r\n\n",
        b"GET /metadata/instance HTTP/11\r\n\r\n",
        b"GET /metadata/instance HTTP/3.0\r\n\r\n",
        b"GET /metadata/instance http/1.1\r\n\r\n",
        b"GET /metadata/instance HTTP/1.1 \r\nHost: localhost\r\n\r\n",
        b"GET\t/metadata/instance HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metadata/instance\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metadata/instance /other HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=repr,
)
def test_bytes_that_are_not_http_are_answered_and_disconnected(
    proxy: ProxyProcess, imds: EmulatorServer, sent: bytes
) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, sent)
    assert_refused(answer, 400, "malformed")


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9", b"RTSP/1.1", b"ICE/1.0"])
def test_another_protocol_version_is_refused(proxy: ProxyProcess, imds: EmulatorServer, version: bytes) -> None:
    """Only HTTP/1.0 may do without Host; what is not HTTP/1 is not to be served as if it were."""
    with nothing_arrives(imds):
        answers = until_closed(proxy.port, b"GET " + RAW_TOKEN + b" " + version + b"\r\n" + TRUE + CLOSE + b"\r\n")
    assert [answer.status for answer in answers] == [400]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((TRUE,), 200),
        ((TRUE, HOST), 200),
        ((TRUE, b"Connection: keep-alive\r\n", HOST), 200),
        ((), 400),
        ((HOST,), 400),
        ((TRUE, b"Host: evil.example\r\n"), 403),
        ((TRUE, HOST, HOST), 400),
        ((TRUE, FORWARDED_FOR), 400),
    ],
)
def test_http_1_0_obeys_the_same_rules(proxy: ProxyProcess, fields: tuple[bytes, ...], status: int) -> None:
    answers = until_closed(proxy.port, request(RAW_TOKEN, *fields, version=b"1.0"))
    assert [answer.status for answer in answers] == [status]
