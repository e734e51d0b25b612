"""New connections over real sockets: crowds, shutdown, and lack of descriptors."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.attacks.kit import CLOSE, HOST, read_answer
from tests.integration.attacks.kit import request as request_for
from tests.integration.attacks.listeners import read_all
from tests.kit import ProxyProcess, descriptors_of, get, running_proxy, wait_for_log
from tests.targets import INSTANCE

if sys.platform != "win32":
    import resource

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="the limit of another process is Linux' alone"),
]

LAST = request_for(b"/-/healthy", HOST, CLOSE)
PAGE, HIT = b"/-/healthy", INSTANCE.encode()


class Listener(NamedTuple):
    """One of the listeners, and what is requested there."""

    connect: Callable[[], socket.socket]
    request: bytes
    last: bytes
    """The same, after which the connection ends."""


LISTENERS = {
    "port": ("port", PAGE),
    "socket": ("socket", PAGE),
    "admin port": ("admin port", PAGE),
    # A fresh hit that comes with its connection is answered before there is a transport.
    "port, hit": ("port", HIT),
    "socket, hit": ("socket", HIT),
}


@pytest.fixture
def proxy(imds: EmulatorServer, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[ProxyProcess]:
    """Run a proxy; the fixture's parameter is what `tests.altered` changes in it."""
    alterations = getattr(request, "param", ())
    with running_proxy(
        tmp_path,
        module="tests.altered",
        arguments=alterations,
        upstream=imds.url,
        uds=tmp_path / "socket",
        admin_port=0,
    ) as process:
        assert get(process.port, INSTANCE).status == 200
        yield process


@pytest.fixture(params=LISTENERS)
def listener(request: pytest.FixtureRequest, proxy: ProxyProcess, tmp_path: Path) -> Iterator[Listener]:
    """Connect to one of the listeners; every connection is closed after the test."""
    name, target = LISTENERS[request.param]
    admin = int(proxy.log.partition("serves=/-/")[0].rpartition("http://127.0.0.1:")[2].split()[0])
    with contextlib.ExitStack() as stack:

        def connected() -> socket.socket:
            by_path = name == "socket"
            new = stack.enter_context(socket.socket(socket.AF_UNIX if by_path else socket.AF_INET))
            new.settimeout(20)
            new.connect(
                str(tmp_path / "socket") if by_path else ("127.0.0.1", admin if name == "admin port" else proxy.port)
            )
            return new

        yield Listener(connected, request_for(target, HOST), request_for(target, HOST, CLOSE))


def _status(connection: socket.socket) -> int | None:
    with connection.makefile("rb") as stream:
        answer = read_answer(stream)
    return None if answer is None else answer.status


@contextlib.contextmanager
def _stopped(proxy: ProxyProcess) -> Iterator[None]:
    """Hold the process, so that everything comes at once for it."""
    proxy.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        proxy.signal(signal.SIGCONT)


def test_connections_that_arrive_together_are_all_answered(proxy: ProxyProcess, listener: Listener) -> None:
    with _stopped(proxy):
        clients = [listener.connect() for _ in range(300)]
        for number, client in enumerate(clients):
            if number % 2:  # the others say nothing yet
                client.sendall(listener.request)
    assert {_status(client) for client in clients[1::2]} == {200}
    for client in clients:
        client.sendall(listener.request)
    assert {_status(client) for client in clients} == {200}


def test_request_in_any_pieces_is_answered_once(proxy: ProxyProcess, listener: Listener) -> None:
    body = b"x" * 40_000  # more than one read takes
    whole = request_for(b"/-/healthy", HOST, b"X-Pad: " + body + b"\r\n") + listener.request
    for cut in (1, 20, len(listener.request), 16_384, 16_385, 33_000, len(whole)):
        with _stopped(proxy):
            client = listener.connect()
            client.sendall(whole[:cut])
        client.sendall(whole[cut:])
        with client.makefile("rb") as stream:
            answers = [read_answer(stream), read_answer(stream)]
        assert [answer and answer.status for answer in answers] == [200, 200]


def test_client_that_closes_or_resets_before_accept_does_no_harm(proxy: ProxyProcess, listener: Listener) -> None:
    with _stopped(proxy):
        ended = listener.connect()
        ended.sendall(listener.request)
        ended.shutdown(socket.SHUT_WR)
        silent = listener.connect()
        silent.shutdown(socket.SHUT_WR)
        gone = listener.connect()
        gone.sendall(listener.request)
        if gone.family == socket.AF_INET:
            gone.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        gone.close()
    assert read_all(ended).startswith(b"HTTP/1.1 200 OK")
    assert read_all(silent) == b""
    client = listener.connect()
    client.sendall(listener.last)
    assert read_all(client).startswith(b"HTTP/1.1 200 OK")
    assert "Traceback" not in proxy.log


def test_all_that_come_at_once_for_one_answer_get_it_and_the_end(proxy: ProxyProcess, listener: Listener) -> None:
    with _stopped(proxy):
        clients = [listener.connect() for _ in range(300)]
        for client in clients:
            client.sendall(listener.last)
    for client in clients:
        answer = read_all(client)
        assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
        assert b"\r\nconnection: close\r\n" in answer
    assert len(proxy.descriptors()) < 100


# A client has a second for its first bytes then, and a busy machine may not let this one send them in time.
@pytest.mark.parametrize("proxy", [["first_bytes=15"]], indirect=True, ids=[""])
def test_connection_accepted_before_shutdown_is_answered(proxy: ProxyProcess, listener: Listener) -> None:
    with _stopped(proxy):
        clients = [listener.connect() for _ in range(100)]
        for client in clients[::2]:
            client.sendall(listener.request)
        proxy.signal(signal.SIGTERM)
    for client in clients[1::2]:
        client.sendall(listener.request)
    assert {_status(client) for client in clients} == {200}
    assert proxy.process.wait(30) == 0
    assert "Traceback" not in proxy.log


@pytest.mark.attack(19)
def test_clients_wait_without_descriptors_and_are_answered_later(proxy: ProxyProcess, listener: Listener) -> None:
    pid = proxy.process.pid
    _, hard = before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    most = max(descriptors_of(pid))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most + 1, hard))
    taken = [socket.create_connection(("127.0.0.1", proxy.port), timeout=10) for _ in range(most)]  # gaps, too
    try:
        clients = [listener.connect() for _ in range(20)]
        for client in clients:
            client.sendall(listener.request)
        wait_for_log(proxy, "no connection can be accepted")
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
    assert {_status(client) for client in clients} == {200}
    for each in taken:
        each.sendall(LAST)
        assert read_all(each).startswith(b"HTTP/1.1 200 OK")
        each.close()
    ended = wait_for_log(proxy, "connections are accepted again")
    assert ended == wait_for_log(proxy, "no connection can be accepted")
    assert "Traceback" not in proxy.log
    assert get(proxy.port, "/-/healthy").status == 200


def test_shutdown_without_descriptors_ends_in_time(proxy: ProxyProcess) -> None:
    pid = proxy.process.pid
    most = max(descriptors_of(pid))
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most + 1, most + 1))
    with contextlib.ExitStack() as stack:
        for _ in range(most):
            stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=10))
        wait_for_log(proxy, "no connection can be accepted")
        proxy.signal(signal.SIGTERM)
        assert proxy.process.wait(15) == 0
    assert "Traceback" not in proxy.log
