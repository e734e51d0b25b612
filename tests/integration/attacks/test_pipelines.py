"""Endless requests and heads, and clients that end their sending (attack cases 15 and 16)."""

from __future__ import annotations

import contextlib
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, Fault, run_in_thread
from imdsproxy.server.held_bytes import POOL
from tests.integration.attacks.kit import HOST, RAW_EVENTS, RAW_TOKEN, TRUE, Starter, check_log, read_answer, request
from tests.integration.attacks.listeners import KINDS, Everywhere, listening_everywhere, read_all
from tests.kit import Arrivals, wait_until
from tests.size import size
from tests.targets import INSTANCE

pytestmark = pytest.mark.process

MEBIBYTE = 1 << 20
LEAST = b"GET / HTTP/1.1\r\n\r\n"
every_listener = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def everywhere(imds: EmulatorServer, start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everywhere]:
    folder = tmp_path_factory.mktemp("everywhere")
    with listening_everywhere(start, imds.url, folder, access_log="false", log_level="info") as proxy:
        yield proxy
        check_log(proxy.process.log)


def _send_without_reading(connection: socket.socket, data: bytes, most: int, seconds: float) -> int:
    """Send again and again until so many bytes went out or none could for some seconds; return how many went."""
    sent = 0
    connection.settimeout(seconds)
    with contextlib.suppress(TimeoutError, ConnectionError):
        while sent < most:
            sent += connection.send(data)
    return sent


@pytest.mark.attack(15)
@every_listener
def test_endless_pipelining_takes_no_memory(everywhere: Everywhere, kind: str) -> None:
    before = everywhere.process.resident_bytes()
    with everywhere.connect(kind) as connection:
        _send_without_reading(connection, LEAST * 4000, 10 * MEBIBYTE, 1.0)
        assert everywhere.process.resident_bytes() - before < 8 * MEBIBYTE
    assert everywhere.healthy(kind)


@pytest.mark.attack(15)
@every_listener
def test_endless_pipelining_with_read_answers_takes_no_memory(everywhere: Everywhere, kind: str) -> None:
    before = everywhere.process.resident_bytes()
    most, end = 0, time.monotonic() + 2
    with everywhere.connect(kind) as connection:
        connection.setblocking(False)  # noqa: FBT003  # the standard library's signature
        while time.monotonic() < end:
            try:
                with contextlib.suppress(BlockingIOError):
                    connection.send(LEAST * 4000)
                with contextlib.suppress(BlockingIOError):
                    if not connection.recv(1 << 16):
                        break
            except ConnectionError:
                break  # the proxy has had enough
            most = max(most, everywhere.process.resident_bytes())
    assert most - before < 8 * MEBIBYTE
    assert everywhere.healthy(kind)


@pytest.mark.attack(8, 15)
@every_listener
@pytest.mark.parametrize("count", [2, 3, 40, 900])
def test_pipelined_requests_are_answered_in_order(everywhere: Everywhere, kind: str, count: int) -> None:
    paths = [b"/-/%d" % number if number % 3 else b"/-/healthy" for number in range(count)]
    with everywhere.connect(kind) as connection, connection.makefile("rb") as stream:
        connection.sendall(b"".join(request(path, HOST) for path in paths))
        statuses = [answer.status for _ in paths if (answer := read_answer(stream))]
    assert statuses == [404 if number % 3 else 200 for number in range(count)]


def test_pipelined_bodies_and_hits_are_not_confused(everywhere: Everywhere, imds: EmulatorServer) -> None:
    post = (
        b"POST "
        + RAW_EVENTS
        + b" HTTP/1.1\r\n"
        + HOST
        + TRUE
        + b"Content-Length: 28\r\n\r\n"
        + b'{"StartRequests":[]}\r\n\r\n    '
    )
    get = request(INSTANCE.encode(), HOST)
    sent = [get, post, get, post, request(RAW_TOKEN, HOST, TRUE), get]
    with everywhere.connect("tcp") as connection, connection.makefile("rb") as stream:
        connection.sendall(b"".join(sent))
        answers = [read_answer(stream) for _ in sent]
    kinds = ["compute" if answer and b'"compute"' in answer.body else "other" for answer in answers]
    assert kinds == ["compute", "other", "compute", "other", "other", "compute"]
    assert answers[4] is not None
    assert b"access_token" in answers[4].body


@pytest.mark.attack(8, 15)
@every_listener
def test_head_of_endless_fields_is_refused_at_the_101st(everywhere: Everywhere, kind: str) -> None:
    before = everywhere.process.resident_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(80):
            connection = stack.enter_context(everywhere.connect(kind))
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 16000)
            assert read_all(connection).startswith(b"HTTP/1.1 431 ")
        assert everywhere.process.resident_bytes() - before < 8 * MEBIBYTE
    assert everywhere.healthy(kind)


@every_listener
@pytest.mark.parametrize(("fields", "status"), [(99, 404), (100, 431)])
def test_hundred_fields_are_allowed(everywhere: Everywhere, kind: str, fields: int, status: int) -> None:
    with everywhere.connect(kind) as connection, connection.makefile("rb") as stream:
        connection.sendall(request(b"/-/x", HOST, *(b"a: b\r\n" for _ in range(fields))))
        answer = read_answer(stream)
    assert answer is not None
    assert answer.status == status


@pytest.mark.attack(15)
@every_listener
def test_empty_lines_between_requests_are_no_request(everywhere: Everywhere, kind: str) -> None:
    with everywhere.connect(kind) as connection, connection.makefile("rb") as stream:
        for _ in range(2):
            connection.sendall(request(b"/-/healthy", HOST) + b"\r\n")
            answer = read_answer(stream)
            assert answer is not None
            assert answer.status == 200
        connection.settimeout(3.0)  # longer than the header timeout of this process
        with pytest.raises(TimeoutError):
            connection.recv(1)


@pytest.mark.attack(15)
@every_listener
@pytest.mark.parametrize(
    ("begin", "rest"),
    [
        (b"GET / HTTP/1.1\r\n", b"\r\n"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999\r\n\r\n", b"\r\n"),
        (b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
        (b"GET /-/healthy HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    ],
    ids=["empty lines", "a body of empty lines", "chunks of a byte", "chunks to a page"],
)
def test_flood_on_one_connection_takes_no_memory_and_others_are_served(
    everywhere: Everywhere, kind: str, begin: bytes, rest: bytes
) -> None:
    before = everywhere.process.resident_bytes()
    with everywhere.connect(kind) as connection:
        connection.sendall(begin)
        _send_without_reading(connection, rest * 10_000, 4 * MEBIBYTE, 0.5)
        assert everywhere.healthy(kind)
        assert everywhere.process.resident_bytes() - before < 8 * MEBIBYTE


@every_listener
@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nx: " + b"a" * 65_000,
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 65000\r\n\r\n" + b"\r\n" * 30_000,
    ],
    ids=["heads", "bodies"],
)
def test_unfinished_requests_of_disconnected_clients_free_their_memory(
    everywhere: Everywhere, kind: str, sent: bytes
) -> None:
    for _ in range(POOL // 65_000):
        with everywhere.connect(kind) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(sent)
    long = request(b"/-/healthy?x=" + b"a" * 60_000, HOST, b"Connection: close\r\n")
    with everywhere.connect(kind) as connection:
        connection.sendall(long)
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


# --- Clients that end their sending


@pytest.fixture(scope="module")
def slow(start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Everywhere, EmulatorServer]]:
    """Run a proxy in front of an IMDS that takes 0.3 s for every request."""
    emulator = Emulator(rate=0, identity_rate=0, identity_concurrency=0, latency=0.3)
    with (
        run_in_thread(emulator) as imds,
        listening_everywhere(start, imds.url, tmp_path_factory.mktemp("slow"), ttl="/metadata/instance=0") as proxy,
    ):
        yield proxy, imds


def _pipelined_behind_a_miss(number: int, count: int) -> bytes:
    return request(INSTANCE.encode() + b"&behind=%d" % number, HOST) + LEAST * count


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_client_that_pipelines_very_much_is_slowed_down_and_not_refused(
    slow: tuple[Everywhere, EmulatorServer], kind: str
) -> None:
    proxy, _ = slow
    count = size(short=6_000, full=16_000)  # more than the proxy reads ahead in any case
    last = request(b"/-/healthy", HOST, b"Connection: close\r\n")
    with proxy.connect(kind, timeout=60.0) as connection:  # for all of them together, on a busy machine
        sender = threading.Thread(target=connection.sendall, args=(_pipelined_behind_a_miss(0, count) + last,))
        sender.start()
        received = read_all(connection)
        sender.join(60)
    assert received.count(b"HTTP/1.1 404 ") + received.count(b"HTTP/1.1 400 ") == count
    assert received.count(b"detail=pipelined") == 0
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 2


def test_many_clients_that_pipeline_very_much_take_little_memory(
    slow: tuple[Everywhere, EmulatorServer],
) -> None:
    proxy, imds = slow
    imds.emulator.faults.add(Fault(latency=3, path="/metadata/instance"))
    before = proxy.process.resident_bytes()
    count = 100
    with contextlib.ExitStack() as stack:
        for number in range(1, count):
            connection = stack.enter_context(proxy.connect("tcp"))
            connection.setblocking(False)  # noqa: FBT003  # the standard library's signature
            with contextlib.suppress(BlockingIOError):
                connection.send(_pipelined_behind_a_miss(number, 12_000))
        assert proxy.healthy("tcp")
        assert proxy.process.resident_bytes() - before < count * 64 * 1024
    imds.emulator.faults.clear()


WANTED = {
    "a miss": request(INSTANCE.encode(), HOST),
    "a token": request(RAW_TOKEN, HOST, TRUE),
    "HTTP/1.0": request(INSTANCE.encode(), HOST, version=b"1.0"),
    "two, pipelined": request(b"/metadata/versions", HOST) + request(INSTANCE.encode(), HOST, b"Connection: close\r\n"),
    "an approval": request(
        RAW_EVENTS, HOST, TRUE, b"Content-Length: 20\r\n", method=b"POST", body=b'{"StartRequests":[]}'
    ),
}


@pytest.mark.attack(16)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
@pytest.mark.parametrize("what", WANTED)
def test_client_that_ended_its_sending_gets_its_answer(
    slow: tuple[Everywhere, EmulatorServer], kind: str, what: str
) -> None:
    proxy, imds = slow
    before = len(imds.emulator.arrivals)
    with proxy.connect(kind) as connection:
        connection.sendall(WANTED[what])
        connection.shutdown(socket.SHUT_WR)
        received = read_all(connection)
    count = 2 if "two" in what else 1
    assert received.count(b"HTTP/1.1 200 OK\r\n") == count, received
    if "approval" in what:
        assert [each.method for each in imds.emulator.arrivals[before:]] == ["POST"]


@pytest.mark.attack(16)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "sent", [b"", b"GET /metadata/inst", request(RAW_EVENTS, HOST, TRUE, b"Content-Length: 20\r\n", method=b"POST")]
)
def test_client_that_ended_its_sending_too_early_is_closed(
    slow: tuple[Everywhere, EmulatorServer], kind: str, sent: bytes
) -> None:
    proxy, imds = slow
    before = len(imds.emulator.arrivals)
    with proxy.connect(kind) as connection:
        connection.sendall(sent)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(1.5)  # less than the header timeout
        read_all(connection)
    assert len(imds.emulator.arrivals) == before


def test_disconnect_at_a_unix_socket_ends_the_wait(slow: tuple[Everywhere, EmulatorServer]) -> None:
    proxy, imds = slow
    imds.emulator.faults.add(Fault(latency=1.5, path="/metadata/loadbalancer"))
    before = len(imds.emulator.arrivals)
    for number in range(20):
        with proxy.connect("unix") as connection:
            connection.sendall(request(b"/metadata/loadbalancer?api-version=2020-10-01&x=%d" % number, HOST))
            wait_until(lambda: len(imds.emulator.arrivals) > before)
    assert proxy.healthy("unix")
    imds.emulator.faults.clear()


@pytest.mark.attack(16)
@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_disconnect_after_a_half_close_is_noticed(slow: tuple[Everywhere, EmulatorServer], kind: str) -> None:
    proxy, imds = slow
    imds.emulator.faults.add(Fault(latency=25, path="/metadata/loadbalancer"))
    target = f"/metadata/loadbalancer?api-version=2020-10-01&leaves={kind}"
    arrived, others = Arrivals(imds, target), proxy.process.sockets()
    with proxy.connect(kind) as connection:
        connection.sendall(request(b"/-/healthy", HOST))
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 ")
        opened = proxy.process.sockets() - others  # the client's: this answer needs no connection to IMDS
        assert opened
        connection.sendall(request(target.encode(), HOST))
        connection.shutdown(socket.SHUT_WR)
        wait_until(arrived)
        if kind == "tcp":  # a reset, as of a process that ends with an answer unread
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: not opened <= proxy.process.sockets(), 6.0)  # long before IMDS's time is over
    imds.emulator.faults.clear()


DATE = re.compile(rb"\r\ndate: [A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\r\n")


@pytest.mark.attack(9)
@every_listener
@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (request(b"/-/healthy", HOST, b"Connection: close\r\n"), 200),
        (request(b"/-/metrics", HOST, b"Connection: close\r\n"), 200),
        (request(b"/-/nothing", HOST, b"Connection: close\r\n"), 404),
        (b"GET / HTTP/1.1\r\nno field\r\n\r\n", 400),
        (b"BREW / HTTP/1.1\r\n\r\n", 405),
        (request(b"/-/healthy", *[b"a: b\r\n"] * 200), 431),
        (b"GET /-/healthy HT", 408),
    ],
)
def test_every_own_answer_has_one_date(everywhere: Everywhere, kind: str, sent: bytes, status: int) -> None:
    with everywhere.connect(kind) as connection:
        connection.sendall(sent)
        received = read_all(connection)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert len(DATE.findall(received.partition(b"\r\n\r\n")[0] + b"\r\n")) == 1


@every_listener
def test_head_returns_a_page_without_its_body(everywhere: Everywhere, kind: str) -> None:
    with everywhere.connect(kind) as connection:
        connection.sendall(request(b"/-/healthy", HOST, b"Connection: close\r\n", method=b"HEAD"))
        head, _, body = read_all(connection).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 OK\r\n")
    assert body == b""
