"""More connections than the process may have open files (attack case 19)."""

from __future__ import annotations

import contextlib
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from imdsproxy.emulator import EmulatorServer
from imdsproxy.server.crowd import ANSWERED, RESERVE
from tests.integration.attacks.kit import HOST, read_answer, request
from tests.integration.attacks.listeners import read_all
from tests.kit import ProxyProcess, get, running_proxy, wait_until
from tests.targets import INSTANCE

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (util-linux) is not on this machine"),
]

FILES = 200
ROOM = FILES - RESERVE - ANSWERED
"""Connections that this limit leaves room for, as `server.crowd` reckons it."""


@pytest.fixture
def proxy(imds: EmulatorServer, tmp_path: Path) -> Iterator[ProxyProcess]:
    limited = ("prlimit", f"--nofile={FILES}:{FILES}")
    with running_proxy(tmp_path, upstream=imds.url, prefix=limited, ttl="/metadata/instance=0", retry_max=0) as process:
        yield process


def _connect(stack: contextlib.ExitStack, proxy: ProxyProcess) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=10))


def _ask(connection: socket.socket, target: bytes = b"/-/healthy") -> int | None:
    connection.sendall(request(target, HOST))
    with connection.makefile("rb") as stream:
        answer = read_answer(stream)
    return None if answer is None else answer.status


def _ask_once(proxy: ProxyProcess) -> int | None:
    with contextlib.ExitStack() as stack:
        return _ask(_connect(stack, proxy))


def test_idle_connections_make_room_for_new_ones(proxy: ProxyProcess) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(3 * ROOM):
            assert _ask(_connect(stack, proxy)) == 200
        assert _ask(_connect(stack, proxy), INSTANCE.encode()) == 200, "and a descriptor is left for IMDS"
    assert "too many connections" not in proxy.log


def test_connection_beyond_the_limit_is_503_if_none_is_idle(proxy: ProxyProcess) -> None:
    with contextlib.ExitStack() as stack:
        busy = [_connect(stack, proxy) for _ in range(ROOM)]
        for connection in busy:
            connection.sendall(b"GET /-/healthy HT")  # the beginning of a request is no idleness
        wait_until(lambda: _ask_once(proxy) == 503)
        assert {_ask_once(proxy) for _ in range(20)} == {503}
    wait_until(lambda: get(proxy.port, "/-/healthy").status == 200)
    assert get(proxy.port, INSTANCE).status == 200
    assert proxy.log.count("too many connections") == 1
    assert "IMDS fails" not in proxy.log


def test_every_connection_of_a_flood_is_answered(imds: EmulatorServer, tmp_path: Path) -> None:
    limited = ("prlimit", f"--nofile={FILES}:{FILES}")
    with (
        running_proxy(tmp_path, upstream=imds.url, prefix=limited, header_timeout=60) as proxy,
        contextlib.ExitStack() as stack,
    ):
        for _ in range(ROOM):
            _connect(stack, proxy).sendall(b"GET /-/healthy HT")
        wait_until(lambda: _ask_once(proxy) == 503)
        many = [_connect(stack, proxy) for _ in range(3 * FILES)]
        answers = []
        for connection in many:
            with contextlib.suppress(ConnectionError):  # the answer may have come before the request
                connection.sendall(request(b"/-/healthy", HOST))
            answers.append(read_all(connection))
        assert {answer.partition(b"\r\n")[0] for answer in answers} == {b"HTTP/1.1 503 Service Unavailable"}
        assert "Traceback" not in proxy.log


def test_admin_listener_has_connections_of_its_own(imds: EmulatorServer, tmp_path: Path) -> None:
    limited = ("prlimit", f"--nofile={FILES}:{FILES}")
    with running_proxy(tmp_path, upstream=imds.url, prefix=limited, admin_port=0) as process:
        admin = int(process.log.partition("serves=/-/")[0].rpartition("http://127.0.0.1:")[2].split()[0])
        with contextlib.ExitStack() as stack:
            for _ in range(ROOM):
                _connect(stack, process).sendall(b"GET /-/healthy HT")
            wait_until(lambda: get(admin, "/-/healthy").status == 200)
