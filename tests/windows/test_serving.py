"""The proxy on Windows' own event loop, with clients inside and outside Wine."""

from __future__ import annotations

import contextlib
import resource
import socket
import struct
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from imdsproxy.emulator import EmulatorServer, Fault
from imdsproxy.testing.counting import most_in_a_second
from tests.kit import Arrivals, cache_status, get, is_hit, talk, unused, wait_until
from tests.targets import INSTANCE, TOKEN
from tests.windows.process import Process
from tests.windows.wine import Windows

pytestmark = [pytest.mark.process, pytest.mark.windows]

CONNECTIONS = 2_000
HEAD = f"GET {INSTANCE} HTTP/1.1\r\nHost: 127.0.0.1\r\nMetadata: true\r\n\r\n".encode()


@pytest.mark.attack(23)
def test_event_loop_is_the_windows_loop(windows: Windows) -> None:
    done = windows.run_python(
        "-c",
        "import asyncio\nfrom imdsproxy.server.windows_loop import WindowsLoop\n"
        "print(type(asyncio.new_event_loop()) in WindowsLoop.__bases__)",
    )
    assert done.stdout == "True", done.stderr


def test_repeated_request_is_a_hit(proxy: Process, imds: EmulatorServer) -> None:
    port = proxy.port()
    first = get(port, INSTANCE)
    arrivals = Arrivals(imds)
    again = [get(port, INSTANCE) for _ in range(4)]  # parsed, seen twice, known by its bytes
    assert first.status == 200
    assert [(one.status, one.body, is_hit(one)) for one in again] == [(200, first.body, True)] * 4
    assert arrivals() == []


@pytest.mark.attack(23)
def test_split_and_pipelined_heads_are_answered(proxy: Process) -> None:
    port = proxy.port()
    get(port, INSTANCE)
    ending = HEAD.replace(b"Metadata", b"Connection: close\r\nMetadata")
    for pieces, count in (([HEAD[:20], HEAD[20:] + ending], 2), ([HEAD * 3 + ending], 4), ([HEAD, HEAD, ending], 3)):
        assert talk(port, pieces, pause=0.05).count(b"HTTP/1.1 200 OK\r\n") == count
    assert talk(port, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert talk(port, HEAD[:-2] + b"X: " + b"x" * 70_000 + b"\r\n\r\n").startswith(b"HTTP/1.1 431 ")


def test_token_is_stored(proxy: Process, imds: EmulatorServer) -> None:
    arrivals = Arrivals(imds, "/metadata/identity")
    answers = [get(proxy.port(), TOKEN) for _ in range(3)]
    assert [is_hit(one) for one in answers] == [False, True, True]
    assert all(b"access_token" in one.body for one in answers)
    assert len(arrivals()) == 1


def test_concurrent_requests_are_collapsed(proxy: Process, imds: EmulatorServer) -> None:
    arrivals, target, port = Arrivals(imds), unused(INSTANCE), proxy.port()
    with ThreadPoolExecutor(40) as clients:
        answers = list(clients.map(lambda _: get(port, target), range(40)))
    assert {one.status for one in answers} == {200}
    assert len(arrivals()) == 1


def test_imds_gets_five_requests_a_second(proxy: Process, imds: EmulatorServer) -> None:
    arrivals, port = Arrivals(imds), proxy.port()
    with ThreadPoolExecutor(25) as clients:
        answers = list(clients.map(lambda target: get(port, target), [unused(INSTANCE) for _ in range(25)]))
    assert {one.status for one in answers} == {200}
    assert len(arrivals()) == 25
    assert most_in_a_second([arrival.at for arrival in arrivals()]) <= 5


def test_stale_entry_is_served_while_imds_fails(windows: Windows, imds: EmulatorServer) -> None:
    with windows.proxy(upstream=imds.url, ttl="/metadata/instance=0.2") as process:
        process.wait_for("readiness ready")
        port = process.port()
        assert get(port, INSTANCE).status == 200
        fault = Fault(status=500)
        imds.emulator.faults.add(fault)
        try:
            wait_until(lambda: int(cache_status(get(port, INSTANCE)).get("ttl", "0")) < 0)
            answer = get(port, INSTANCE)
        finally:
            imds.emulator.faults.clear()
        assert answer.status == 200
        assert is_hit(answer)


@contextlib.contextmanager
def _many_descriptors(number: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= number
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, number), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_two_thousand_connections_are_served(proxy: Process) -> None:
    """Four times what a loop that selects could hold on Windows."""
    port = proxy.port()
    get(port, INSTANCE)
    with _many_descriptors(CONNECTIONS + 500), contextlib.ExitStack() as open_ones:
        connections = [
            open_ones.enter_context(socket.create_connection(("127.0.0.1", port), timeout=60))
            for _ in range(CONNECTIONS)
        ]
        for _ in range(2):
            for connection in connections:
                connection.sendall(HEAD)
            for connection in connections:
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += connection.recv(65536)
                assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
                length = int(answer.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                left = length - len(answer.partition(b"\r\n\r\n")[2])
                while left:
                    left -= len(connection.recv(left))


@pytest.mark.parametrize("sent", [b"", HEAD[:30], HEAD, HEAD * 200])
def test_reset_of_a_client_does_no_harm(proxy: Process, sent: bytes) -> None:
    port = proxy.port()
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(sent)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    assert get(port, INSTANCE).status == 200, "the listener is closed"


@pytest.mark.attack(23)
def test_second_proxy_cannot_share_the_port(proxy: Process, windows: Windows) -> None:
    port = proxy.port()
    second = windows.run("serve", "--port", str(port))
    assert second.returncode == 2
    assert f"IMDSPROXY_PORT={port} on 127.0.0.1 cannot be listened on" in second.stderr
    # Wine never shares a port, so the options of the socket are checked.
    asked = windows.run_python(
        "-c",
        "import socket\nfrom imdsproxy.server.listeners import _tcp\nlistening = _tcp('127.0.0.1', 0).socket\n"
        "rules = socket.SO_EXCLUSIVEADDRUSE, socket.SO_REUSEADDR\n"
        "print(*(listening.getsockopt(socket.SOL_SOCKET, rule) for rule in rules))",
    )
    assert asked.stdout == "1 0", "another program may listen there, and take the clients"


def test_port_can_be_reused_at_once(windows: Windows, imds: EmulatorServer) -> None:
    with windows.proxy(upstream=imds.url) as first:
        port = first.port()
        get(port, INSTANCE)
    with windows.proxy(upstream=imds.url, port=port) as second:
        assert second.port() == port
        assert get(port, INSTANCE).status == 200


def test_permits_are_counted_by_a_clock_without_steps(windows: Windows) -> None:
    done = windows.run_python(
        "-c",
        "from imdsproxy.clock import SystemClock\nnow = SystemClock.monotonic\nfirst = now()\n"
        "while (second := now()) == first: pass\nprint(second - first < 0.001)",
    )
    assert done.stdout == "True", done.stderr
