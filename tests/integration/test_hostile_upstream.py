"""An upstream that breaks every rule, and an upstream that is the proxy itself.

The client gets the documented error, no other client's answer is affected, no permit is lost, and the log has neither a
traceback nor an access token.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import gzip
import itertools
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import h11
import pytest

from imdsproxy.ops.metric_labels import ATTEMPT_STATUSES
from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import Failure, FailureKind
from imdsproxy.upstream.client import UpstreamClient
from tests.kit import Answer, ProxyProcess, free_port, get, refused_start, running_proxy, talk, wait_for_log, wait_until
from tests.servers import Server, forbidden_port, ok, read_head

pytestmark = [pytest.mark.any_python, pytest.mark.process]

SECRET = "eyJ0eXAiOiJKV1QiLCJhbGciOiJub25lIn0.secret"
GOOD = b'{"compute":{"own":true},"access_token":"x"}'
"""What the endpoints of an instance and of tokens can both have said."""
READ_TIMEOUT = 0.4
MOST = 100_000
AT_ONCE = 5

Script = Callable[[socket.socket, bytes], bool]
"""Answers one request; says whether the connection goes on."""


class Upstream(Server):
    """A server that does to each request what its script says; `/metadata/versions` it always answers."""

    def __init__(self) -> None:
        super().__init__()
        self.heads: list[bytes] = []
        self.script: Script = sends(ok(GOOD))

    def serve(self, connection: socket.socket) -> None:
        connection.settimeout(20)
        with connection.makefile("rb") as stream:
            while head := read_head(stream):
                target = head.split(b" ")[1]
                if target == b"/metadata/versions":
                    connection.sendall(ok(b'{"apiVersions":[]}'))
                    continue
                self.heads.append(head)
                if not self.script(connection, target):
                    return


def sends(raw: bytes, *, then_closes: bool = True) -> Script:
    def script(connection: socket.socket, _target: bytes) -> bool:
        connection.sendall(raw)
        return not then_closes

    return script


def sends_and_holds(raw: bytes) -> Script:
    def script(connection: socket.socket, _target: bytes) -> bool:
        connection.sendall(raw)
        connection.recv(1)  # until the proxy gives up
        return False

    return script


def sends_for_ever(raw: bytes, piece: bytes, pause: float = 0.0) -> Script:
    def script(connection: socket.socket, _target: bytes) -> bool:
        connection.sendall(raw)
        while True:
            connection.sendall(piece)
            time.sleep(pause)

    return script


def sends_and_resets(raw: bytes) -> Script:
    def script(connection: socket.socket, _target: bytes) -> bool:
        connection.sendall(raw)
        time.sleep(0.05)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    return script


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with Upstream() as server:
        yield server


@pytest.fixture(scope="module")
def shared(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    with running_proxy(
        tmp_path_factory.mktemp("proxy"),
        upstream=upstream.url,
        read_timeout=READ_TIMEOUT,
        connect_timeout=0.1,
        max_body_bytes=MOST,
        retry_max=0,
        max_wait=3,
        budget_requests=AT_ONCE,
        budget_window=0.02,
        log_level="debug",
        access_log="true",
    ) as process:
        yield process


@pytest.fixture
def unhurt(shared: ProxyProcess) -> Iterator[ProxyProcess]:
    """Run the proxy of all these tests, which must survive each of them."""
    seen = len(shared.log)
    yield shared
    assert shared.process.poll() is None
    log = shared.log[seen:]
    assert "Traceback" not in log, log[-3000:]
    assert "eyJ0eXAi" not in log
    assert all(re.match(r"\d{4}-\d\d-\d\dT\S+Z [a-z]+ [a-z.]+ ", line) for line in log.splitlines())


@pytest.fixture
def proxy(unhurt: ProxyProcess, upstream: Upstream) -> Iterator[ProxyProcess]:
    """Return that proxy, whose whole budget must be available after the test."""
    yield unhurt
    wait_until(lambda: at_once(unhurt, upstream) == AT_ONCE)  # on a busy machine five may not start together


_numbers = itertools.count()


def target(path: str = "/metadata/instance") -> str:
    """Return an unused target."""
    return f"{path}?api-version=2021-02-01&number={next(_numbers)}"


def token_target() -> str:
    return target("/metadata/identity/oauth2/token") + "&resource=https://vault.azure.net"


def at_once(process: ProxyProcess, upstream: Upstream) -> int:
    """Ask for a few things together and say how many of the requests are upstream at the same time."""
    arrived: list[bytes] = []
    everyone = threading.Barrier(AT_ONCE)

    def script(connection: socket.socket, asked: bytes) -> bool:
        with contextlib.suppress(threading.BrokenBarrierError):
            everyone.wait(READ_TIMEOUT * 0.8)
            arrived.append(asked)
        connection.sendall(ok(GOOD))
        return True

    upstream.script = script
    time.sleep(0.03)  # the last token rests for a window
    threads = [threading.Thread(target=get, args=(process.port, target())) for _ in range(AT_ONCE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    return len(arrived)


def assert_failed(answer: Answer, status: int, reason: str) -> None:
    assert answer.status == status, answer
    assert answer.headers["cache-status"] == f"imdsproxy; detail={reason}"
    assert answer.headers["content-type"].startswith("application/json")
    assert int(answer.headers["retry-after"]) >= 1
    document = json.loads(answer.body)
    assert set(document) == {"error", "error_description"}
    assert document["error"] == reason.replace("-", "_")
    assert document["error_description"]


UNREADABLE, RESET, TIMEOUT, TOO_LARGE, UNEXPECTED = (
    *("upstream-unreadable", "upstream-reset", "upstream-timeout", "upstream-too-large", "upstream-unexpected"),
)


@pytest.mark.attack(10)
@pytest.mark.parametrize(
    ("script", "status", "reason"),
    [
        pytest.param(sends(b""), 502, UNREADABLE, id="closes"),
        pytest.param(sends_and_resets(b""), 502, RESET, id="resets"),
        pytest.param(sends_and_resets(b"HTTP/1.1 200 OK\r\nConte"), 502, RESET, id="resets-in-the-head"),
        pytest.param(sends_and_resets(ok(b"{", length=20)), 502, RESET, id="resets-in-the-body"),
        pytest.param(sends_and_holds(b""), 504, TIMEOUT, id="says-nothing"),
        pytest.param(sends_and_holds(b"HTTP/1.1 200 O"), 504, TIMEOUT, id="stops-in-the-head"),
        pytest.param(sends_and_holds(ok(b"{", length=20)), 504, TIMEOUT, id="stops-in-the-body"),
        pytest.param(sends_for_ever(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n", 0.05), 504, TIMEOUT, id="head-trickles"),
        pytest.param(sends_for_ever(ok(b"", length=90_000), b"x", 0.05), 504, TIMEOUT, id="body-trickles"),
        pytest.param(sends_for_ever(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.01), 504, TIMEOUT, id="100-for-ever"),
        pytest.param(sends(ok(b"{}", length=20)), 502, UNREADABLE, id="shorter"),
        pytest.param(
            sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}"),
            502,
            UNREADABLE,
            id="part-of-a-chunk",
        ),
        pytest.param(
            sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"),
            502,
            UNREADABLE,
            id="no-last-chunk",
        ),
        pytest.param(
            sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n"),
            502,
            UNREADABLE,
            id="bad-chunk",
        ),
        pytest.param(
            sends(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n{}"), 502, UNREADABLE, id="unknown-coding"
        ),
        pytest.param(sends(ok(b"{}", b"Content-Length: 3")), 502, UNREADABLE, id="two-lengths"),
        pytest.param(sends(b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}"), 502, UNREADABLE, id="negative-length"),
        pytest.param(sends(b"HTTP/1.1 200 OK\r\nContent-Length: 0x2\r\n\r\n{}"), 502, UNREADABLE, id="hex-length"),
        pytest.param(sends_for_ever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536), 502, TOO_LARGE, id="endless-body"),
        pytest.param(
            sends_for_ever(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1000\r\n" + b"x" * 4096 + b"\r\n"
            ),
            *(502, TOO_LARGE),
            id="endless-chunks",
        ),
        pytest.param(sends_for_ever(ok(b"", length=2**30), b"x" * 65_536), 502, TOO_LARGE, id="1-GiB"),
        pytest.param(sends(ok(b"x" * (MOST + 1))), 502, TOO_LARGE, id="one-byte-too-many"),
        pytest.param(sends_for_ever(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n" * 1000), 502, UNREADABLE, id="endless-head"),
        pytest.param(sends_for_ever(b"", b"x" * 65_536), 502, UNREADABLE, id="endless-line"),
        pytest.param(sends(b"\x00\xff\xfeNothing here is HTTP\x00\r\n\r\n"), 502, UNREADABLE, id="garbage"),
        pytest.param(sends(b"{}\r\n\r\n"), 502, UNREADABLE, id="only-a-body"),
        pytest.param(sends(b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), 502, UNREADABLE, id="another-protocol"),
        pytest.param(sends(bytes.fromhex("000000040000000000")), 502, UNREADABLE, id="http2"),
        pytest.param(sends(b"\x15\x03\x01\x00\x02\x02\x0a"), 502, UNREADABLE, id="tls"),
        pytest.param(sends(ok(b"{}", b"Bad Name: 1")), 502, UNREADABLE, id="bad-name"),
        pytest.param(sends(ok(b"{}", b"X: a\x00b")), 502, UNREADABLE, id="nul-in-a-field"),
        pytest.param(sends(ok(b"{}", b"X: a\x01b")), 502, UNREADABLE, id="control-in-a-field"),
        pytest.param(sends(ok(b"{}", b"X: a\x7fb")), 502, UNREADABLE, id="delete-in-a-field"),
        pytest.param(sends(ok(b"{}", b"X: a\rSet-Cookie: b")), 502, UNREADABLE, id="cr-in-a-field"),
        pytest.param(sends(ok(b"{}", status=b"099 Low")), 502, UNREADABLE, id="status-099"),
        pytest.param(sends(ok(b"{}", status=b"600 High")), 502, UNREADABLE, id="status-600"),
        pytest.param(sends(ok(b"{}", status=b"999 High")), 502, UNREADABLE, id="status-999"),
        pytest.param(sends(ok(b"{}", status=b"20 Short")), 502, UNREADABLE, id="status-20"),
        pytest.param(sends(ok(b"{}", status=b"2000 Long")), 502, UNREADABLE, id="status-2000"),
        pytest.param(sends(ok(b"{}", status=b"abc Words")), 502, UNREADABLE, id="status-abc"),
        pytest.param(
            sends(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n"),
            502,
            UNREADABLE,
            id="101",
        ),
    ],
)
def test_unusable_answer_is_502_or_504_and_not_stored(
    proxy: ProxyProcess, upstream: Upstream, script: Script, status: int, reason: str
) -> None:
    upstream.script = script
    asked = (target(), token_target(), target("/metadata/unknown"))
    with ThreadPoolExecutor(len(asked)) as clients:
        for answer in clients.map(lambda one: get(proxy.port, one), asked):
            assert_failed(answer, status, reason)
    upstream.script = sends(ok(GOOD))
    for one in asked:
        answer = get(proxy.port, one)
        assert (answer.status, answer.body) == (200, GOOD)


@pytest.mark.attack(10)
def test_announced_gibibyte_is_502_or_504(proxy: ProxyProcess, upstream: Upstream) -> None:
    upstream.script = sends_and_holds(ok(b"{", length=2**30))
    answer = get(proxy.port, target())
    assert answer.status in {502, 504}
    assert_failed(answer, answer.status, TOO_LARGE if answer.status == 502 else TIMEOUT)


def test_refused_bodies_do_not_grow_the_memory(proxy: ProxyProcess, upstream: Upstream) -> None:
    scripts = [
        sends_for_ever(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536),
        sends_for_ever(b"", b"x" * 65_536),
        sends_for_ever(b"HTTP/1.1 200 OK\r\n", b"X: 1\r\n" * 1000),
        sends_for_ever(ok(b"", length=2**30), b"x" * 65_536),
    ]

    def grown(times: int) -> int:
        before = proxy.resident_bytes()
        for upstream.script in scripts * times:
            assert get(proxy.port, target()).status == 502
        return proxy.resident_bytes() - before

    grown(1)
    # On a busy machine one read may bring megabytes, once. A leak would come back each time.
    assert any(grown(9) < 4_000_000 for _ in range(3))


def test_connection_with_an_unreadable_answer_is_freed_at_once(upstream: Upstream) -> None:
    """A cycle would keep its buffer, up to 100 kB, until the garbage collector runs."""
    upstream.script = sends_and_resets(b"no HTTP\r\n\r\n")
    client = UpstreamClient(Address("127.0.0.1", int(upstream.url.rpartition(":")[2])))

    async def ask() -> None:
        answer = await client.send("GET", target().encode(), ())
        assert isinstance(answer, Failure)
        assert answer.kind is FailureKind.UNREADABLE
        await client.close()

    gc.collect()
    gc.disable()
    try:
        asyncio.run(ask())
        assert not [each for each in gc.get_objects() if isinstance(each, h11.Connection)]
    finally:
        gc.enable()


@pytest.mark.attack(10)
@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified", b"205 Reset Content"])
def test_answer_without_a_body_is_passed_on(proxy: ProxyProcess, upstream: Upstream, status: bytes) -> None:
    asked = target()
    lengths = (b"Content-Length: 0\r\n", b"") if status[:3] in {b"204", b"304"} else (b"Content-Length: 0\r\n",)
    for length in lengths:
        upstream.script = sends(b"HTTP/1.1 " + status + b"\r\nServer: IMDS/1\r\n" + length + b"\r\n")
        answer = get(proxy.port, asked)
        assert (answer.status, answer.body) == (int(status[:3]), b"")
        assert answer.headers["server"] == "IMDS/1"
        assert answer.headers.get("content-length", "0") == "0"
    upstream.script = sends(ok(GOOD))
    assert get(proxy.port, asked).body == GOOD


def test_body_after_a_204_is_never_served(proxy: ProxyProcess, upstream: Upstream) -> None:
    for status in (b"204 No Content", b"304 Not Modified"):
        upstream.script = sends(ok(ok(b'{"of":"another"}'), status=status), then_closes=False)
        assert get(proxy.port, target()).status in {204, 304, 502}
        upstream.script = sends(ok(GOOD), then_closes=False)
        assert get(proxy.port, target()).body == GOOD


@pytest.mark.attack(10)
def test_interim_responses_are_skipped(proxy: ProxyProcess, upstream: Upstream) -> None:
    interim = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 199 Odd\r\n\r\n"
    upstream.script = sends(interim + ok(GOOD), then_closes=False)
    answer = get(proxy.port, target())
    assert (answer.status, answer.body) == (200, GOOD)
    assert "link" not in answer.headers


@pytest.mark.attack(10)
def test_unrequested_gzip_is_passed_on_unchanged(proxy: ProxyProcess, upstream: Upstream) -> None:
    packed = gzip.compress(b'{"access_token":"%b","expires_in":"86399"}' % SECRET.encode())
    for asked in (target(), token_target()):
        upstream.script = sends(ok(packed, b"Content-Encoding: gzip"))
        answer = get(proxy.port, asked)
        assert (answer.status, answer.headers["content-encoding"], answer.body) == (200, "gzip", packed)
    assert all(b"accept-encoding: identity" in head.lower() for head in upstream.heads[-2:])
    # A token whose life cannot be read is not kept.
    upstream.script = sends(ok(GOOD))
    assert get(proxy.port, asked).body == GOOD


@pytest.mark.attack(10)
@pytest.mark.parametrize(
    "document",
    [
        b'{"access_token":"%b"}',
        b'{"access_token":"%b","expires_in":""}',
        b'{"access_token":"%b","expires_in":null}',
        b'{"access_token":"%b","expires_in":true}',
        b'{"access_token":"%b","expires_in":"abc"}',
        b'{"access_token":"%b","expires_in":"-5"}',
        b'{"access_token":"%b","expires_in":-86400}',
        b'{"access_token":"%b","expires_in":"0"}',
        b'{"access_token":"%b","expires_in":"299"}',
        b'{"access_token":"%b","expires_in":3600.5}',
        b'{"access_token":"%b","expires_in":"3600.0"}',
        b'{"access_token":"%b","expires_in":36e2}',
        b'{"access_token":"%b","expires_in":1e400}',
        b'{"access_token":"%b","expires_in":NaN}',
        b'{"access_token":"%b","expires_in":Infinity}',
        b'{"access_token":"%b","expires_in":"99999999999999999999"}',
        b'{"access_token":"%b","expires_in":999999999}',
        b'{"access_token":"%b","expires_in":' + b"9" * 5_000 + b"}",
        b'{"access_token":"%b","expires_in":"0x10000"}',
        b'{"access_token":"%b","expires_in":" 86399"}',
        b'{"access_token":"%b","expires_in":"86,399"}',
        b'{"access_token":"%b","expires_in":"\xd9\xa8\xd9\xa6\xd9\xa3\xd9\xa9\xd9\xa9"}',
        b'{"access_token":"%b","expires_in":["86399"]}',
        b'{"access_token":"%b","expires_in":{"expires_in":"86399"}}',
        b'{"access_token":"%b","x":{"expires_in":"86399"}}',
        b'{"access_token":"%b","expires_in":"86399","expires_in":"3600"}',
        b'{"access_token":"%b","expires_in":"86399","x":{"expires_in":"3600"}}',
        b'{"access_token":"%b","Expires_In":"86399"}',
        b'{"access_token":"%b\xff","expires_in":"86399"}',
    ],
    ids=lambda document: repr(document[:60]),
)
def test_token_with_a_doubtful_life_is_passed_on_and_not_stored(
    unhurt: ProxyProcess, upstream: Upstream, document: bytes
) -> None:
    body = document.replace(b"%b", SECRET.encode())
    upstream.script = sends(ok(body), then_closes=False)
    asked, before = token_target(), len(upstream.heads)
    for _ in range(2):
        answer = get(unhurt.port, asked)
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["cache-status"] == "imdsproxy; fwd=uri-miss; fwd-status=200"
    assert len(upstream.heads) == before + 2


@pytest.mark.attack(10, 21)
@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b'"%b"' % SECRET.encode(),
        b"[" * 90_000,
        b'{"access_token":' * 5_000,
        b'{"access_token":"%b","expires_in":"86399"',
        b'{"access_token":"%b","expires_in":"86399"}}',
        b'{"access_token":"%b","expires_in":"86399"}\x00',
        b'{"access_token":null,"expires_in":"86399"}',
        b'{"access_token":["%b"],"expires_in":"86399"}',
        b'{"expires_in":"86399"}',
        b'[{"access_token":"%b","expires_in":"86399"}]',
        b"access_token=%b&expires_in=86399",
        b"<!DOCTYPE html><html>%b</html>",
        b'{"access_token":"%b","client_id":"another","expires_in":"86399"}',
    ],
    ids=lambda document: repr(document[:60]),
)
def test_malformed_token_is_a_failure_and_its_bytes_are_not_served(
    proxy: ProxyProcess, upstream: Upstream, document: bytes
) -> None:
    asked, good = token_target() + "&client_id=mine", b'{"access_token":"good","client_id":"mine","expires_in":"86399"}'
    upstream.script = sends(ok(document.replace(b"%b", SECRET.encode())))
    answer = get(proxy.port, asked)
    assert_failed(answer, 502, UNEXPECTED)
    assert SECRET.encode() not in answer.body
    upstream.script = sends(ok(good))
    assert get(proxy.port, asked).body == good
    upstream.script = sends(ok(document.replace(b"%b", SECRET.encode())))
    assert get(proxy.port, asked + "&bypass_cache=true").status == 502
    assert get(proxy.port, asked).body.startswith(b'{"access_token":"good"')


@pytest.mark.attack(21)
@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n" + GOOD[:-7],
        b"HTTP/1.0 200 OK\r\n\r\n" + GOOD[:3],
        b"HTTP/1.0 200 OK\r\n\r\n",
        ok(b""),
        ok(b"<html><body>Log in</body></html>"),
        b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\nLog in",
        ok(b'{"error":"try later"}'),
    ],
    ids=["half", "hardly-begun", "nothing", "empty", "page-as-JSON", "page", "another-document"],
)
def test_impossible_answer_replaces_no_entry(proxy: ProxyProcess, upstream: Upstream, raw: bytes) -> None:
    asked = target()
    upstream.script = sends(raw)
    answer = get(proxy.port, asked)
    assert_failed(answer, 502, UNEXPECTED)
    assert b"Log in" not in answer.body
    upstream.script = sends(ok(GOOD))
    assert get(proxy.port, asked).body == GOOD
    upstream.script = sends(raw)
    assert get(proxy.port, asked + "&bypass_cache=true").status == 502
    assert get(proxy.port, asked).body == GOOD


def test_complete_body_without_a_length_is_accepted(proxy: ProxyProcess, upstream: Upstream) -> None:
    upstream.script = sends(b"HTTP/1.0 200 OK\r\n\r\n" + GOOD)
    assert get(proxy.port, target()).body == GOOD


@pytest.mark.attack(7)
def test_redirect_is_never_followed(proxy: ProxyProcess, upstream: Upstream) -> None:
    with forbidden_port() as elsewhere:
        addresses = [
            f"http://127.0.0.1:{elsewhere}/metadata/instance",
            f"{upstream.url}/metadata/elsewhere",
            f"{proxy.url}/metadata/instance",
            "/metadata/identity/oauth2/token",
            "//127.0.0.1/",
        ]
        for status in (b"301 Moved", b"302 Found", b"303 See Other", b"307 Temporary", b"308 Permanent"):
            for address in addresses:
                asked, before = target(), len(upstream.heads)
                upstream.script = sends(ok(b"", b"Location: " + address.encode(), status=status), then_closes=False)
                answer = get(proxy.port, asked)
                assert (answer.status, answer.headers["location"]) == (int(status[:3]), address)
                assert len(upstream.heads) == before + 1


@pytest.mark.attack(21)
def test_cookies_and_challenges_are_ignored(proxy: ProxyProcess, upstream: Upstream) -> None:
    upstream.script = sends(ok(GOOD, b"Set-Cookie: a=b; Path=/", b'Alt-Svc: h2=":1"'), then_closes=False)
    get(proxy.port, target())
    upstream.script = sends(
        ok(b"{}", b"WWW-Authenticate: Basic realm=x", status=b"401 Unauthorized"), then_closes=False
    )
    before = len(upstream.heads)
    assert get(proxy.port, target()).status == 401
    (head,) = upstream.heads[before:]
    assert b"cookie" not in head.lower()
    assert b"authorization" not in head.lower()


# --- one connection, two answers


@pytest.mark.attack(10, 21)
@pytest.mark.parametrize("gap", [0.0, 0.05], ids=["at-once", "later"])
def test_bytes_behind_an_answer_do_not_belong_to_the_next(proxy: ProxyProcess, upstream: Upstream, gap: float) -> None:
    """The surplus of a body must not become the next client's answer, such as another identity's token."""
    first = b'{"access_token":"first","expires_in":"86399"}'
    stray = b'{"access_token":"%b","expires_in":"86399"}' % SECRET.encode()

    def script(connection: socket.socket, _target: bytes) -> bool:
        connection.sendall(ok(first) + (b"" if gap else ok(stray)))
        if gap:
            time.sleep(gap)
            connection.sendall(ok(stray))
        return True

    own = b'{"access_token":"own","expires_in":"86399"}'
    for _ in range(5):
        upstream.script = script
        assert get(proxy.port, token_target()).body == first
        time.sleep(2 * gap)
        upstream.script = sends(ok(own), then_closes=False)
        for _ in range(3):
            answer = get(proxy.port, token_target())
            assert SECRET.encode() not in answer.body
            assert answer.status == 502 or answer.body == own


def test_surplus_piece_of_a_token_is_never_served(proxy: ProxyProcess, upstream: Upstream) -> None:
    """What cannot be read may be a piece of another client's token: it is neither logged nor quoted."""
    document = b'{"access_token":"%b"}' % SECRET.encode()
    for raw in (
        ok(document, length=2) + b"\r\n\r\n",
        ok(b"") + document + b"\r\n\r\n",
        document + b"\r\n\r\n",
        b"HTTP/1.1 " + SECRET.encode() + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + SECRET.encode() + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: \x00" + SECRET.encode() + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: " + SECRET.encode() + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: " + SECRET.encode() + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + SECRET.encode() + b"\r\n",
    ):
        for script in (sends(raw), sends(raw, then_closes=False)):
            upstream.script = script
            asked = target("/metadata/unknown")
            get(proxy.port, asked)
            upstream.script = sends(ok(GOOD), then_closes=False)
            for _ in range(2):
                answer = get(proxy.port, target())
                assert SECRET.encode() not in answer.body
            upstream.script = script
            failed = get(proxy.port, target())
            assert failed.status == 200 or SECRET.encode() not in failed.body
    assert SECRET not in proxy.log


def test_answer_is_stored_unchanged(proxy: ProxyProcess, upstream: Upstream) -> None:
    fields = (
        b"Age: 7",
        b"Cache-Status: node; hit",
        b"Connection: close, X-Hop",
        b"X-Hop: 1",
        b"Keep-Alive: 5",
        b"X-End: 1",
    )
    upstream.script = sends(ok(GOOD, *fields))
    asked = target()
    for _ in range(2):
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection:
            connection.sendall(f"GET {asked} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            with connection.makefile("rb") as stream:
                head = read_head(stream).lower()
        assert b"x-end: 1" in head
        assert b"x-hop" not in head
        assert b"keep-alive" not in head
        assert head.count(b"\r\nage:") <= 1  # RFC 9111 section 5.1: one value
        assert b"\r\ncache-status: node; hit, imdsproxy; " in head  # RFC 9211 section 2


# --- no upstream, and the proxy as its own upstream


@pytest.mark.attack(10)
def test_unreachable_upstream_is_502(tmp_path_factory: pytest.TempPathFactory) -> None:
    with running_proxy(
        tmp_path_factory.mktemp("proxy"), ready=False, upstream=f"http://127.0.0.1:{free_port()}", retry_max=0
    ) as process:
        for asked in (target(), token_target(), target("/metadata/unknown")):
            assert_failed(get(process.port, asked), 502, "upstream-unreachable")
        ready = get(process.port, "/-/ready")
        assert ready.status == 503
        assert "error_description" in json.loads(ready.body)
        assert "Traceback" not in process.log


def test_upstream_that_closes_idle_connections_loses_no_answer(proxy: ProxyProcess, upstream: Upstream) -> None:
    def script(connection: socket.socket, _target: bytes) -> bool:
        connection.sendall(ok(GOOD))
        return False

    for _ in range(40):
        upstream.script = script
        assert get(proxy.port, target()).body == GOOD


class Relay(Server):
    """Passes the bytes of its connections to a port that is named later."""

    def __init__(self) -> None:
        super().__init__()
        self.to = 0
        self.requests = 0

    def serve(self, near: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self.to)) as far:
            back = threading.Thread(target=self._pass, args=(far, near), daemon=True)
            back.start()
            self._pass(near, far)
            back.join()

    def _pass(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := one.recv(65_536):
                self.requests += data.count(b"GET /")
                other.sendall(data)
        for side in (one, other):
            with contextlib.suppress(OSError):
                side.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def relay() -> Iterator[Relay]:
    with Relay() as found:
        yield found


@pytest.mark.attack(12)
def test_proxy_as_its_own_upstream_reports_it_and_does_not_spin(
    relay: Relay, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with running_proxy(
        tmp_path_factory.mktemp("proxy"),
        ready=False,
        upstream=relay.url,
        log_level="debug",
        access_log="true",
    ) as process:
        relay.to = process.port
        for asked in (target(), token_target(), target("/metadata/unknown"), target("/metadata/scheduledevents")):
            line = f"GET {asked} HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\nConnection: close\r\n\r\n"
            head, body = talk(process.port, line.encode()).split(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 508 ")
            assert b"\r\ncache-status: imdsproxy; detail=loop\r\n" in head
            assert json.loads(body)["error"] == "loop_detected"
        wait_for_log(process, "leads back to this proxy itself")
        before = relay.requests
        assert before <= 4 + 3  # each once, and the proxy's own question as it starts
        time.sleep(1.2)
        assert relay.requests - before <= 2
        assert wait_for_log(process, "leads back to this proxy itself") == 1
        assert get(process.port, "/-/ready").status == 503
        assert "Traceback" not in process.log


@pytest.mark.attack(12)
def test_loop_of_two_proxies_is_reported(relay: Relay, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("proxy")
    with (
        running_proxy(folder, ready=False, read_timeout=1, upstream=relay.url) as first,
        running_proxy(folder, ready=False, read_timeout=1, upstream=first.url) as second,
    ):
        relay.to = second.port
        for process in (first, second):
            answer = get(process.port, target())
            assert answer.status == 508
        before = relay.requests
        time.sleep(0.7)
        assert relay.requests - before <= 4
        for process in (first, second):
            assert wait_for_log(process, "leads back to this proxy itself", times=0) <= 1


@pytest.mark.attack(12)
def test_own_address_as_upstream_stops_the_start() -> None:
    port = free_port()
    for upstream in (f"http://127.0.0.1:{port}", f"http://localhost:{port}"):
        assert "IMDSPROXY_UPSTREAM" in refused_start(port=port, upstream=upstream)


@pytest.mark.attack(13)
def test_failures_are_counted_under_bounded_labels(proxy: ProxyProcess, upstream: Upstream) -> None:
    for status in range(200, 600, 7):
        upstream.script = sends(ok(GOOD, status=b"%d Odd" % status))
        answer: Any = get(proxy.port, target())
        assert answer.status == status
    text = get(proxy.port, "/-/metrics").body.decode()
    statuses = set(re.findall(r'status="([^"]*)"', text))
    assert {status for status in statuses if not re.fullmatch(r"[2-5]\d\d", status)} <= {*ATTEMPT_STATUSES}
