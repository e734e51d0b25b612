"""Every listener reads a request alike, with the fast path and without.

The other attack tests send most of their requests to the TCP port. What they show there holds at the Unix socket and at
the admin port as well, because the same bytes get the same answer: the same status and the same reason. There are two
differences. The admin port has nothing but the pages under `/-/`, and the Unix socket accepts every host name.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.attacks.kit import (
    CLOSE,
    FORWARDED_FOR,
    HOST,
    RAW_EVENTS,
    RAW_TOKEN,
    TRUE,
    Starter,
    check_log,
    nothing_arrives,
    read_answer,
    request,
)
from tests.integration.attacks.listeners import KINDS, Everywhere, listening_everywhere, read_all
from tests.targets import INSTANCE

pytestmark = pytest.mark.process

PLAIN = INSTANCE.encode()
PAGE = b"/-/healthy"
LENGTH = b"Content-Length: 4\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"
ADMIN_ONLY = "imdsproxy; detail=admin-only"

# Each is refused, or its connection is closed, and never reaches IMDS.
REFUSED = {
    "two lengths": request(PLAIN, HOST, LENGTH, LENGTH, body=b"abcd"),
    "length and chunks": request(PLAIN, HOST, LENGTH, CHUNKED, body=b"0\r\n\r\n"),
    "signed length": request(PLAIN, HOST, b"Content-Length: +4\r\n", body=b"abcd"),
    "unknown coding": request(PLAIN, HOST, b"Transfer-Encoding: gzip, chunked\r\n", body=b"0\r\n\r\n"),
    "broken chunk": request(RAW_EVENTS, HOST, TRUE, CHUNKED, method=b"POST", body=b"zz\r\n\r\n"),
    "bare line feeds": b"GET " + PLAIN + b" HTTP/1.1\nHost: localhost\n\n",
    "folded field": request(PLAIN, HOST, b" folded\r\n"),
    "space before the colon": request(PLAIN, b"Host : localhost\r\n"),
    "control character": request(PLAIN, HOST, b"X: \x00\r\n"),
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "small letters": b"get " + PLAIN + b" http/1.1\r\n\r\n",
    "no method": b"FETCH " + PLAIN + b" HTTP/1.1\r\n" + HOST + b"\r\n",
    "CONNECT": request(b"localhost:22", HOST, method=b"CONNECT"),
    "101 fields": request(PLAIN, HOST, *(b"X: 1\r\n" for _ in range(100))),
    "long head": request(PLAIN, HOST, b"X: " + b"a" * 70_000 + b"\r\n"),
    "long target": request(b"/" + b"a" * 70_000, HOST),
    "many parameters": request(PLAIN + b"&" * 600, HOST),
    "many escapes": request(PLAIN + b"&x=" + b"%2C" * 5_000, HOST),
    "backslash": request(rb"/metadata\identity\oauth2\token", HOST, TRUE),
    "escaped slash": request(b"/metadata%2Finstance", HOST, TRUE),
    "dots": request(b"/metadata/instance/../identity/oauth2/token", HOST, TRUE),
    "duplicated name": request(PLAIN + b"&api-version=2", HOST),
    "fragment": request(PLAIN + b"#x", HOST),
    "no host": request(PLAIN),
    "two hosts": request(PLAIN, HOST, HOST),
    "host that is no name": request(PLAIN, b"Host: a b\r\n"),
    "decimal address": request(PLAIN, b"Host: 2852039166\r\n"),
    "other host": request(b"http://attacker.example" + PLAIN, HOST),
    "X-Forwarded-For": request(PLAIN, HOST, FORWARDED_FOR),
    "page of a browser": request(PLAIN, HOST, TRUE, b"Origin: null\r\n"),
    "other method": request(PLAIN, HOST, method=b"PUT"),
    "HEAD": request(PLAIN, HOST, method=b"HEAD"),
    "empty line alone, then nothing": b"\r\n",
}
# These differ at the admin port, which has no metadata.
SERVED = {
    "hit": request(PLAIN, HOST),
    "hit that is closed": request(PLAIN, HOST, CLOSE),
    "hit by HTTP/1.0": request(PLAIN, HOST, TRUE, version=b"1.0"),
    "token": request(RAW_TOKEN, HOST, TRUE),
    "token without the header": request(RAW_TOKEN, HOST),
    "addressed to IMDS": request(PLAIN, b"Host: 169.254.169.254\r\n"),
    "wrong header": request(PLAIN, HOST, b"Metadata: false\r\n"),
    "body on GET": request(PLAIN, HOST, LENGTH, body=b"abcd"),
    "chunks on GET": request(PLAIN, HOST, CHUNKED, body=b"4\r\nabcd\r\n0\r\n\r\n"),
    "upgrade": request(PLAIN, HOST, b"Connection: upgrade\r\nUpgrade: h2c\r\n"),
    "empty lines before": b"\r\n\r\n" + request(PLAIN, HOST),
    "spelt otherwise": request(b"//metadata/%69nstance/?api-version=2021-02-01", HOST),
    "outside": request(b"/elsewhere", HOST),
    "approval without the header": request(RAW_EVENTS, HOST, LENGTH, method=b"POST", body=b"{  }"),
    "too long a body": request(
        RAW_EVENTS, HOST, TRUE, b"Content-Length: 70000\r\n", method=b"POST", body=b"x" * 70_000
    ),
}
PAGES = {
    "page": request(PAGE, HOST),
    "page by HEAD": request(PAGE, HOST, method=b"HEAD"),
    "no page": request(b"/-/nothing", HOST),
    "page of IMDS": request(PAGE, b"Host: 169.254.169.254\r\n"),
    "page for a page": request(PAGE, HOST, b"Sec-Fetch-Site: cross-site\r\n"),
    "page by POST": request(PAGE, HOST, LENGTH, method=b"POST", body=b"abcd"),
}


@pytest.fixture(scope="module")
def everywhere(imds: EmulatorServer, start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everywhere]:
    folder = tmp_path_factory.mktemp("everywhere")
    with listening_everywhere(start, imds.url, folder, log_level="info") as proxy:
        assert _answers(proxy, "tcp", request(PLAIN, HOST) * 2)[1][0] == 200  # from now on it is a hit
        _answers(proxy, "tcp", request(RAW_TOKEN, HOST, TRUE))
        yield proxy
        check_log(proxy.process.log)


def _answers(proxy: Everywhere, kind: str, sent: bytes) -> list[tuple[int, str | None]]:
    """Send these bytes, end the sending, and return status and reason of each answer."""
    with proxy.connect(kind) as connection:
        try:
            connection.sendall(sent)
            connection.shutdown(1)
        except OSError:  # what it had to say is said
            pass
        received = io.BytesIO(read_all(connection))
    found = []
    while answer := read_answer(received, head=sent.startswith(b"HEAD")):
        status = answer.headers.get("cache-status")
        found.append((answer.status, status if status and "detail=" in status else None))
    return found


@pytest.mark.parametrize("name", REFUSED)
def test_request_that_is_refused_at_one_listener_is_refused_at_every_listener(
    everywhere: Everywhere, imds: EmulatorServer, name: str
) -> None:
    with nothing_arrives(imds):
        at_tcp, *others = (_answers(everywhere, kind, REFUSED[name]) for kind in KINDS)
    assert others == [at_tcp, at_tcp]
    assert all(status >= 400 for status, _ in at_tcp)


@pytest.mark.parametrize("name", SERVED)
def test_request_is_answered_alike_by_socket_and_is_none_at_the_admin_port(everywhere: Everywhere, name: str) -> None:
    at_tcp, at_socket, at_admin = (_answers(everywhere, kind, SERVED[name]) for kind in KINDS)
    assert at_socket == at_tcp != []
    assert at_admin == [(404, ADMIN_ONLY)]


@pytest.mark.parametrize("name", PAGES)
def test_page_is_answered_alike_at_every_listener(everywhere: Everywhere, name: str) -> None:
    at_tcp, *others = (_answers(everywhere, kind, PAGES[name]) for kind in KINDS)
    assert others == [at_tcp, at_tcp]
    assert len(at_tcp) == 1
