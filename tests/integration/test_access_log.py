"""The access log of a running proxy: every way of an answer logs the same fields."""

from __future__ import annotations

import json
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import EmulatorServer
from imdsproxy.emulator.faults import Fault
from tests.kit import get, running_proxy, wait_until
from tests.targets import INSTANCE, TOKEN

pytestmark = pytest.mark.process
PARENT = "00-0af7651916cd43dd8448eb211c80319c-{:016x}-01"
HEAD = (
    f"GET {INSTANCE} HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\nUser-Agent: test/1 (a \\ b)\r\n"
    "x-ms-client-request-id: request-{0}\r\ntraceparent: {1}\r\n\r\n"
)
SAME = ("method", "path", "api_version", "status", "endpoint", "user_agent", "x_ms_request_id")


def ask(connection: socket.socket, number: int) -> bytes:
    connection.sendall(HEAD.format(number, PARENT.format(number)).encode())
    received = b""
    while b"\r\n\r\n" not in received:
        received += connection.recv(65536)
    head, _, body = received.partition(b"\r\n\r\n")
    length = int(next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")).split()[1])
    while len(body) < length:
        body += connection.recv(65536)
    return head


def lines(log: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.splitlines() if "imdsproxy.access" in line]


def connect(address: int | Path) -> socket.socket:
    if isinstance(address, int):
        return socket.create_connection(("127.0.0.1", address), timeout=10)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(10)
    connection.connect(str(address))
    return connection


@pytest.mark.skipif(sys.platform == "win32", reason="needs a Unix socket")
def test_every_way_of_an_answer_logs_the_same_fields(
    imds: EmulatorServer, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("s") / "s"  # such a path must be short
    settings: dict[str, Any] = {"upstream": imds.url, "uds": path, "access_log": "true", "log_format": "json"}
    count = 0
    with running_proxy(tmp_path, **settings) as process:
        for address in (process.port, path):
            with connect(address) as kept:
                for _ in range(5):  # a miss, a parsed head, known ones
                    ask(kept, count)
                    count += 1
            for _ in range(5):  # answered before there is a transport
                with connect(address) as connection:
                    ask(connection, count)
                    count += 1
        wait_until(lambda: len(lines(process.log)) == count)
        found = lines(process.log)
    assert [line["outcome"] for line in found] == ["miss"] + ["hit"] * (count - 1)
    assert [line["x_ms_client_request_id"] for line in found] == [f"request-{number}" for number in range(count)]
    assert [line["traceparent"] for line in found] == [PARENT.format(number) for number in range(count)]
    assert found[0]["upstream_status"] == "200"
    assert found[0]["permit_wait_milliseconds"] >= 0
    assert all("age" in line and "upstream_status" not in line for line in found[1:])
    first, *others = [{name: line.get(name) for name in SAME} for line in found]
    assert all(other == first for other in others)
    assert first["user_agent"] == "test/1 (a \\ b)"
    assert first["api_version"] == INSTANCE.partition("api-version=")[2]
    assert len({line["client"] for line in found[:10]}) == len({line["client"] for line in found[10:]}) == 1


def test_failure_and_wait_for_a_permit_are_logged(imds: EmulatorServer, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"upstream": imds.url, "access_log": "true", "log_format": "json", "retry_max": 0}
    with running_proxy(tmp_path, **settings, budget_requests=1) as process:
        imds.emulator.faults.add(Fault(path="/metadata/identity", status=503, times=1))
        assert get(process.port, TOKEN).status == 503
        wait_until(lambda: len(lines(process.log)) == 1)
        (line,) = lines(process.log)
    assert (line["outcome"], line["upstream_status"]) == ("error", "503")
    assert line["permit_wait_milliseconds"] > 100, "one permit a second, and the start has just spent it"
