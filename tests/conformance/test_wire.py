"""Each request of `wire_rules`, with the fast path and without it: the status of each answer until the end."""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, run_in_thread
from tests.conformance.wire_rules import WIRES, Wire
from tests.integration.attacks.kit import read_answer, request
from tests.kit import ProxyProcess, running_proxy
from tests.targets import INSTANCE

pytestmark = [pytest.mark.any_python, pytest.mark.process]


@pytest.fixture(scope="module")
def imds() -> Iterator[EmulatorServer]:
    with run_in_thread(Emulator(rate=0, identity_rate=0, identity_concurrency=0)) as server:
        yield server


@pytest.fixture(scope="module", params=["fast path", "without fast path"])
def proxy(
    request: pytest.FixtureRequest, imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ProxyProcess]:
    altered: dict[str, Any] = (
        {} if request.param == "fast path" else {"module": "tests.altered", "arguments": ["without_fast_path"]}
    )
    settings: dict[str, Any] = {"budget_requests": 1000, "budget_window": 0.01, "retry_max": 0, "header_timeout": 2}
    settings |= {"upstream": imds.url, "ttl": "/metadata/instance=600"}
    with running_proxy(tmp_path_factory.mktemp("wire"), **altered, **settings) as process:
        yield process
        assert "Traceback" not in process.log


def answers(proxy: ProxyProcess, wire: Wire) -> list[int]:
    """Send an honest request, which the fast path soon knows, and then the rule's. Return the latter's statuses."""
    honest = request(INSTANCE.encode(), b"Host: localhost\r\n")
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        received = b""
        with contextlib.suppress(ConnectionError):
            connection.sendall(honest)
            while b'"compute"' not in received:
                part = connection.recv(65536)
                assert part, "the honest request got no answer"
                received += part
            connection.sendall(wire.sent[: wire.pause_at])
            if wire.pause_at:
                time.sleep(0.001)
            connection.sendall(wire.sent[wire.pause_at :])
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                received += part
    stream = io.BytesIO(received)
    found = []
    while answer := read_answer(stream):
        found.append(answer.status)
    assert found[0] == 200
    return found[1:]


@pytest.mark.parametrize("wire", [pytest.param(wire, id=f"{wire.rule.suite} {wire.rule.name}") for wire in WIRES])
def test_server_keeps_the_rule(proxy: ProxyProcess, imds: EmulatorServer, wire: Wire) -> None:
    before = len(imds.emulator.arrivals)
    assert tuple(answers(proxy, wire)) == wire.statuses
    arrived = [each for each in imds.emulator.arrivals[before:] if each.target != INSTANCE.encode()]
    assert len(arrived) == wire.arrives
    for each in arrived:
        names = [name for name, _ in each.headers]
        assert b"transfer-encoding" not in names
        assert names.count(b"content-length") == (1 if each.method == "POST" else 0)
