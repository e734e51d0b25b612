"""An unread log, a full disk, closed standard streams: the proxy continues to serve, and ends as it should."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.kit import ROOT, environment, free_port, get, talk, wait_until
from tests.size import size
from tests.targets import INSTANCE

pytestmark = [
    pytest.mark.process,
    pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals and pipes"),
]
HIT = f"GET {INSTANCE} HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n".encode()
MALFORMED = b"\x16\x03\x01\r\n"
END_SECONDS = 15.0
PROXY = size(short=("tests.altered", f"log_waiting={1 << 16}"), full=("imdsproxy",))
HITS = size(short=2_500, full=12_000)
"""More than the pipe and the queue have room for."""


@contextlib.contextmanager
def started(port: int, stderr: int, **settings: object) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [sys.executable, "-m", *PROXY], env=environment(port=port, **settings), cwd=ROOT, stderr=stderr
    )
    try:
        wait_until(lambda: healthy(port))
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)
        if process.stderr is not None:
            process.stderr.close()


def healthy(port: int) -> bool:
    with contextlib.suppress(OSError):
        return get(port, "/-/healthy").status == 200
    return False


def assert_serves_and_ends(process: subprocess.Popen[bytes], port: int) -> None:
    assert healthy(port)
    process.send_signal(signal.SIGTERM)
    assert process.wait(END_SECONDS) == 0


def dropped(port: int) -> float:
    text = get(port, "/-/metrics").body.decode()
    return float(re.findall(r"^imdsproxy_log_dropped_total (\S+)$", text, re.MULTILINE)[0])


def hit_many_times(port: int, count: int) -> None:
    """Ask so often over one connection, one answer before the next question."""
    with socket.create_connection(("127.0.0.1", port), timeout=END_SECONDS) as connection:
        for _ in range(count):
            connection.sendall(HIT)
            received = b""
            while b"\r\n\r\n" not in received:
                received += connection.recv(65536)
            head, _, body = received.partition(b"\r\n\r\n")
            length = int(re.findall(rb"(?i)content-length: (\d+)", head)[0])
            while len(body) < length:
                body += connection.recv(65536)


@pytest.mark.attack(19)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_unread_access_log_delays_no_hit_and_the_loss_is_reported(imds: EmulatorServer, log_format: str) -> None:
    port = free_port()
    settings = {"access_log": "true", "log_format": log_format, "upstream": imds.url, "header_timeout": 60}
    with started(port, subprocess.PIPE, **settings) as process:
        assert get(port, INSTANCE).status == 200
        hit_many_times(port, HITS)
        lost = dropped(port)
        assert lost > 0
        assert healthy(port)
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=END_SECONDS)
        assert process.returncode == 0
        reports = {"json": rb'"log lines dropped", "count": (\d+)', "text": rb"log lines dropped count=(\d+)"}
        assert sum(map(int, re.findall(reports[log_format], log))) >= lost
        assert all(line.startswith(b"{" if log_format == "json" else b"20") for line in log.splitlines())


@pytest.mark.attack(19)
def test_process_with_an_unread_log_ends_in_time(imds: EmulatorServer) -> None:
    port = free_port()
    with started(port, subprocess.PIPE, access_log="true", upstream=imds.url) as process:
        assert get(port, INSTANCE).status == 200
        hit_many_times(port, HITS)
        assert_serves_and_ends(process, port)


def connect(address: int | str) -> socket.socket:
    if isinstance(address, int):
        return socket.create_connection(("127.0.0.1", address), timeout=END_SECONDS)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(END_SECONDS)
    connection.connect(address)
    return connection


def test_malformed_requests_write_one_line_per_interval_on_any_listener(imds: EmulatorServer, tmp_path: Path) -> None:
    port, admin, path, log = free_port(), free_port(), str(tmp_path / "socket"), tmp_path / "log"
    settings = {"uds": path, "admin_host": "127.0.0.1", "admin_port": admin, "upstream": imds.url}
    with log.open("wb") as stderr, started(port, stderr.fileno(), **settings) as process:
        for address in (port, path, admin):
            for _ in range(400):
                with connect(address) as connection:
                    connection.sendall(MALFORMED)
                    assert connection.recv(65536).startswith(b"HTTP/1.1 400 ")
        assert_serves_and_ends(process, port)
        lines = log.read_text(encoding="utf-8").splitlines()
        # The 1,200 connections take a few seconds; one line in five of them is allowed.
        refused = [line for line in lines if "request is not readable" in line]
        assert 1 <= len(refused) <= 12
        assert ' client=127.0.0.1 because="Invalid method encountered"' in refused[0]
        assert len(lines) <= 20


def test_malformed_requests_do_not_stop_a_proxy_with_an_unread_log(imds: EmulatorServer) -> None:
    port = free_port()
    with started(port, subprocess.PIPE, access_log="true", upstream=imds.url) as process:
        for _ in range(1_000):
            assert talk(port, MALFORMED).startswith(b"HTTP/1.1 400 ")
        assert_serves_and_ends(process, port)


@pytest.mark.attack(19)
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_full_disk_loses_only_log_lines(imds: EmulatorServer) -> None:
    port = free_port()
    with (
        Path("/dev/full").open("wb") as full,
        started(port, full.fileno(), access_log="true", upstream=imds.url) as process,
    ):
        assert get(port, INSTANCE).status == 200
        hit_many_times(port, 100)
        wait_until(lambda: dropped(port) >= 100)
        assert_serves_and_ends(process, port)


def shell(line: str, **settings: object) -> subprocess.Popen[bytes]:
    command = line.replace("imdsproxy", f"exec '{sys.executable}' -m imdsproxy")
    return subprocess.Popen(["/bin/sh", "-c", command], env=environment(**settings), cwd=ROOT)


@pytest.mark.attack(19)
@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&-", ">&-", "2>&-", "<&- 2>&-"])
def test_closed_standard_descriptors_do_not_affect_serving(closed: str, imds: EmulatorServer) -> None:
    port = free_port()
    process = shell(f"imdsproxy {closed}", port=port, upstream=imds.url, access_log="true")
    try:
        wait_until(lambda: healthy(port))
        assert get(port, INSTANCE).status == 200
        assert talk(port, MALFORMED).startswith(b"HTTP/1.1 400 ")
        assert_serves_and_ends(process, port)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("imdsproxy --version >&-", 0),
        ("imdsproxy config <&- >&- 2>&-", 0),
        ("imdsproxy serve --help 2>&-", 0),
        ("imdsproxy nonsense 2>&-", 2),
        ("imdsproxy --port x <&- >&- 2>&-", 2),
        ("imdsproxy redirect --remove >&-", 0),
    ],
)
def test_closed_standard_descriptors_do_not_change_exit_statuses(line: str, status: int) -> None:
    assert shell(line).wait(60) == status


@pytest.mark.parametrize(
    ("arguments", "status"), [(["config"], 1), (["--version"], 1), (["nonsense"], 2), (["--port", "x"], 2)]
)
def test_pipe_without_a_reader_ends_without_a_traceback(arguments: list[str], status: int, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    errors = tmp_path / "errors"
    command = [sys.executable, "-m", "imdsproxy", *arguments]
    with errors.open("wb") as stderr:  # where the output has no reader, the errors are looked at
        ended = subprocess.run(command, env=environment(), cwd=ROOT, stdout=writing, stderr=stderr, check=False)
    assert ended.returncode == status
    ended = subprocess.run(command, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=writing, check=False)
    assert ended.returncode == (2 if status == 2 else 0)
    os.close(writing)
    assert b"Traceback" not in errors.read_bytes()
    assert b"Exception ignored" not in errors.read_bytes()


def test_closed_descriptor_does_not_affect_the_emulator() -> None:
    port = free_port()
    process = subprocess.Popen(
        ["/bin/sh", "-c", f"exec '{sys.executable}' -m imdsproxy.emulator --port {port} <&- >&- 2>&-"],
        env=environment(),
        cwd=ROOT,
    )

    def answers() -> bool:
        with contextlib.suppress(OSError):
            return get(port, "/metadata/versions").status == 200
        return False

    try:
        wait_until(answers)
        process.send_signal(signal.SIGTERM)
        assert process.wait(END_SECONDS) == 0
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)
