"""Answers that IMDS would never send, on every way of an answer: none of them reaches a second client.

`tests/integration/test_hostile_upstream.py` has more answers, and what they cost. Here a few of each kind are sent to
every server and listener, with the fast path and without it, because the fast path serves what was stored.
"""

from __future__ import annotations

import gzip
import itertools
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.attacks.kit import CLOSE, HOST, TRUE, Starter, read_answer, request
from tests.integration.attacks.ways import SERVERS, Running, honest, running
from tests.kit import Answer
from tests.servers import Server, ok, read_head
from tests.targets import INSTANCE, TOKEN

pytestmark = [pytest.mark.any_python, pytest.mark.process]

MOST = 50_000
GOOD = b'{"compute":{"own":true},"access_token":"x","expires_in":"86399"}'
UNREADABLE, UNEXPECTED = "upstream-unreadable", "upstream-unexpected"
MINE = "&client_id=mine"
_numbers = itertools.count()


class Upstream(Server):
    """Answers GOOD, or `hostile` to a target that says so, and closes. It counts those."""

    def __init__(self) -> None:
        super().__init__()
        self.hostile = b""
        self.count = 0

    def serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            head = read_head(stream)
        target = head.split(b" ")[1]
        if b"&hostile=" in target:
            self.count += 1
            connection.sendall(self.hostile)
        else:
            connection.sendall(ok(b'{"apiVersions":[]}' if target == b"/metadata/versions" else GOOD))


@dataclass(frozen=True)
class Hostile:
    """What the upstream sends, and what becomes of it."""

    number: int
    name: str
    sent: bytes
    status: int = 502
    reason: str = UNREADABLE
    target: str = INSTANCE
    stored: bool = False


def _token(name: str, document: object, *, passed_on: bool = False) -> Hostile:
    sent = ok(document if isinstance(document, bytes) else json.dumps(document).encode())
    outcome = (200, "") if passed_on else (502, UNEXPECTED)
    return Hostile(10, name, sent, *outcome, target=TOKEN + MINE)


_LIFE = {"access_token": "x", "client_id": "mine"}
HOSTILE = (
    Hostile(10, "closes", b""),
    Hostile(10, "shorter than its length", ok(GOOD, length=len(GOOD) + 9)),
    Hostile(10, "longer than its length", ok(GOOD) + ok(b'{"of":"stray"}'), 200, "", stored=True),
    Hostile(10, "stray token behind an answer", ok(b"") + GOOD, 502, UNEXPECTED),
    Hostile(10, "too long", ok(b"x" * (MOST + 1)), 502, "upstream-too-large"),
    Hostile(10, "cut chunks", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\n{}"),
    Hostile(10, "garbage", b"\x00\xff\xfe nothing\r\n\r\n"),
    Hostile(10, "interim answers first", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3 + ok(GOOD), 200, "", stored=True),
    Hostile(10, "101", b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
    Hostile(10, "204", b"HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
    Hostile(10, "304", b"HTTP/1.1 304 Not Modified\r\n\r\n", 304, ""),
    Hostile(10, "gzip", ok(gzip.compress(GOOD), b"Content-Encoding: gzip"), 200, ""),
    _token("malformed token", b'{"access_token":"x"'),
    _token("token without a life", _LIFE, passed_on=True),
    _token("negative life", {**_LIFE, "expires_in": "-5"}, passed_on=True),
    _token("endless life", {**_LIFE, "expires_in": "9" * 30}, passed_on=True),
    _token("life that is no number", {**_LIFE, "expires_in": "soon"}, passed_on=True),
    Hostile(21, "page as JSON", ok(b"<html><body>Log in</body></html>"), 502, UNEXPECTED),
    Hostile(
        *(21, "page", b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\nLog in", 502, UNEXPECTED)
    ),
    Hostile(21, "empty", ok(b""), 502, UNEXPECTED),
    Hostile(21, "cut", ok(GOOD[:-9]), 502, UNEXPECTED),
    Hostile(21, "half without a length", b"HTTP/1.0 200 OK\r\n\r\n" + GOOD[:9], 502, UNEXPECTED),
    Hostile(
        *(
            21,
            "token of another identity",
            ok(json.dumps({**_LIFE, "client_id": "other", "expires_in": "9999"}).encode()),
        ),
        *(502, UNEXPECTED, TOKEN + MINE),
    ),
    Hostile(21, "Vary: *", ok(GOOD, b"Vary: *"), 200, ""),
    Hostile(21, "Set-Cookie", ok(GOOD, b"Set-Cookie: a=b"), 200, ""),
    # IMDS sends no Cache-Control, so the policy decides whatever one says.
    Hostile(21, "no-store", ok(GOOD, b"Cache-Control: no-store"), 200, "", stored=True),
    Hostile(21, "redirect", ok(b"", b"Location: http://127.0.0.1:1/", status=b"302 Found"), 302, ""),
)


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module", params=SERVERS)
def server(
    request: pytest.FixtureRequest, upstream: Upstream, start: Starter, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Running]:
    settings = {"ttl": "/metadata/instance=600", "max_body_bytes": MOST, "access_log": "false", "log_level": "info"}
    with running(request.param, start, upstream.url, tmp_path_factory.mktemp("hostile"), **settings) as server:
        yield server


def ask(server: Running, kind: str, sent: bytes) -> Answer:
    with server.everywhere.connect(kind) as connection, connection.makefile("rb") as stream:
        connection.sendall(sent)
        answer = read_answer(stream)
    assert answer is not None
    return answer


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=pytest.mark.attack(case.number), id=f"case-{case.number} {case.name}")
        for case in HOSTILE
    ],
)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_answer_of_a_hostile_upstream_is_refused_on_every_way(
    server: Running, upstream: Upstream, kind: str, case: Hostile
) -> None:
    upstream.hostile, upstream.count = case.sent, 0
    sent = request(f"{case.target}&hostile={next(_numbers)}".encode(), HOST, TRUE, CLOSE)
    for _ in range(2):
        answer = ask(server, kind, sent)
        status = answer.headers["cache-status"]
        assert (answer.status, status.partition("; detail=")[2]) == (case.status, case.reason), answer
        assert b"Log in" not in answer.body
        assert b"stray" not in answer.body
    assert upstream.count == (1 if case.stored else 2)
    if not case.stored:  # nothing of it stays
        upstream.hostile = ok(GOOD.replace(b"{", b'{"client_id":"mine",', 1))
        assert b'"own":true' in ask(server, kind, sent).body
    assert ask(server, kind, honest(kind)).status == 200
