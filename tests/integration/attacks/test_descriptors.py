"""More connections than the process may have open files (attack case 19)."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from imdsproxy.emulator import EmulatorServer
from imdsproxy.server.connection_limit import ADMIN_RESERVE, ANSWERED, RESERVE
from tests.integration.attacks.kit import HOST, read_answer, request
from tests.integration.attacks.listeners import KINDS, Everywhere, read_all
from tests.kit import ProxyProcess, free_port, get, running_proxy, wait_until
from tests.targets import INSTANCE

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(shutil.which("prlimit") is None, reason="prlimit (util-linux) is not on this machine"),
]

FILES = 200
LIMITED = ("prlimit", f"--nofile={FILES}:{FILES}")
ROOM = FILES - RESERVE - ANSWERED
"""Connections that this limit leaves room for, as `server.connection_limit` reckons it."""


@pytest.fixture(scope="module")
def everywhere(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everywhere]:
    """Run a proxy with few files and every kind of listener. Each test closes all of its connections."""
    folder, admin = tmp_path_factory.mktemp("files"), free_port()
    socket_path = folder / "p.sock"
    never = "/metadata/instance=0"
    with running_proxy(
        folder, upstream=imds.url, prefix=LIMITED, uds=socket_path, admin_port=admin, ttl=never, retry_max=0
    ) as process:
        yield Everywhere(process, socket_path, admin)


def _connect(stack: contextlib.ExitStack, proxy: ProxyProcess) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=10))


def _ask(connection: socket.socket, target: bytes = b"/-/healthy") -> int | None:
    connection.sendall(request(target, HOST))
    with connection.makefile("rb") as stream:
        answer = read_answer(stream)
    return None if answer is None else answer.status


def _ask_once(proxy: ProxyProcess | Everywhere, kind: str = "tcp", target: bytes = b"/-/healthy") -> int | None:
    with contextlib.ExitStack() as stack:
        if isinstance(proxy, Everywhere):
            return _ask(stack.enter_context(proxy.connect(kind)), target)
        return _ask(_connect(stack, proxy), target)


@pytest.mark.attack(9, 19)
@pytest.mark.parametrize("kind", KINDS)
def test_idle_connections_make_room_for_new_ones(everywhere: Everywhere, kind: str) -> None:
    time.sleep(0.2)  # after a test that let it find no idle connection, it looks for one again
    seen = len(everywhere.process.log)
    with contextlib.ExitStack() as stack:
        for _ in range(3 * ROOM):
            assert _ask(stack.enter_context(everywhere.connect(kind))) == 200
        for other in KINDS[:2]:
            assert _ask_once(everywhere, other, INSTANCE.encode()) == 200, "and a descriptor is left for IMDS"
    assert "too many connections" not in everywhere.process.log[seen:]


@pytest.mark.attack(19)
@pytest.mark.parametrize("kind", KINDS)
def test_connection_beyond_the_limit_is_503_if_none_is_idle(everywhere: Everywhere, kind: str) -> None:
    seen = len(everywhere.process.log)
    with contextlib.ExitStack() as stack:
        for _ in range(ROOM + (ADMIN_RESERVE if kind == "admin" else 0)):
            # The beginning of a request is no idleness.
            stack.enter_context(everywhere.connect(kind)).sendall(b"GET /-/healthy HT")
        wait_until(lambda: _ask_once(everywhere, kind) == 503)
        assert {_ask_once(everywhere, kind) for _ in range(20)} == {503}
        assert {_ask_once(everywhere, other) for other in KINDS[:2]} == {503}
    for other in KINDS:
        wait_until(lambda other=other: _ask_once(everywhere, other) == 200)
    assert _ask_once(everywhere, "tcp", INSTANCE.encode()) == 200
    log = everywhere.process.log[seen:]
    assert log.count("too many connections") == 1
    assert "IMDS fails" not in log


@pytest.mark.attack(9, 19)
def test_every_connection_of_a_flood_is_answered(imds: EmulatorServer, tmp_path: Path) -> None:
    with (
        running_proxy(tmp_path, upstream=imds.url, prefix=LIMITED, header_timeout=60) as proxy,
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
    with running_proxy(tmp_path, upstream=imds.url, prefix=LIMITED, admin_port=0) as process:
        admin = int(process.log.partition("serves=/-/")[0].rpartition("http://127.0.0.1:")[2].split()[0])
        with contextlib.ExitStack() as stack:
            for _ in range(ROOM):
                _connect(stack, process).sendall(b"GET /-/healthy HT")
            wait_until(lambda: get(admin, "/-/healthy").status == 200)
