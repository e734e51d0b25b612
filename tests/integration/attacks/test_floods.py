"""Floods: keys and refusals without end, many slow requests, clients that send much and disconnect."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, Fault, run_in_thread
from tests.integration.attacks.kit import (
    HOST,
    RAW_EVENTS,
    RAW_TOKEN,
    TRUE,
    Starter,
    check_labels,
    check_log,
    read_answer,
    request,
)
from tests.kit import get
from tests.servers import AnsweringServer, ok
from tests.targets import EVENTS, INSTANCE, TOKEN

pytestmark = [pytest.mark.any_python, pytest.mark.process]


def _flood(port: int, requests: Iterator[bytes], batch: int = 50) -> None:
    """Send batch after batch, and count the answers by their status lines, because parsing them costs too much."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        while pieces := list(itertools.islice(requests, batch)):
            connection.sendall(b"".join(pieces))
            received = b""
            while received.count(b"HTTP/1.1 2") + received.count(b"HTTP/1.1 4") < len(pieces):
                part = connection.recv(1 << 16)
                assert part, "the connection was closed"
                received += part


def _flood_together(port: int, floods: Sequence[Iterator[bytes]]) -> None:
    threads = [threading.Thread(target=_flood, args=(port, flood)) for flood in floods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def _new_keys(connection: int, numbers: range) -> Iterator[bytes]:
    return (request(INSTANCE.encode() + b"&x=%d-%d" % (connection, number), HOST) for number in numbers)


def _refused_keys(connection: int, count: int) -> Iterator[bytes]:
    for number in range(count):
        mark = b"%d-%d" % (connection, number)
        yield request(b"/elsewhere/" + mark, HOST)
        yield request(RAW_TOKEN + mark, HOST)
        yield request(RAW_TOKEN, b"Host: h" + mark + b"\r\n", TRUE)
        yield request(RAW_TOKEN + b"%zz" + mark, HOST)
        yield request(b"/-/" + mark, HOST)


@pytest.mark.attack(14)
def test_flood_of_keys_stays_within_the_configured_bound(start: Starter) -> None:
    bound = 250_000
    with (
        AnsweringServer(lambda _head: ok(b'{"apiVersions":[],"compute":"' + b"x" * 500 + b'"}')) as upstream,
        start(upstream.url, cache_max_bytes=bound, access_log="false", log_level="info") as process,
    ):
        # Misses are what takes time here, so the tables are small enough to be full after a few.
        _flood_together(process.port, [_new_keys(connection, range(60)) for connection in range(4)])
        _flood_together(process.port, [_refused_keys(connection, 200) for connection in range(4)])
        warm = process.resident_bytes()
        _flood_together(process.port, [_new_keys(connection, range(60, 190)) for connection in range(4)])
        _flood_together(process.port, [_refused_keys(connection, 500) for connection in range(4)])
        assert process.resident_bytes() - warm < 1_000_000  # 2 kB a key; it is about 0.3
        assert 0 < process.metric("imdsproxy_cache_bytes") <= bound
        assert get(process.port, INSTANCE).status == 200
        assert process.metric("imdsproxy_requests_total") > 10_000
        check_labels(process)


@pytest.mark.attack(14, 18)
def test_one_clients_flood_does_not_starve_another(imds: EmulatorServer, start: Starter) -> None:
    """A client floods with ever new questions about the instance; another wants one token."""
    stop = threading.Event()

    def flood(port: int, connection: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            get(port, f"{INSTANCE}&flood={connection}-{number}")

    with start(imds.url, budget_requests=5, budget_window=1, max_wait=1, access_log="false") as process:
        threads = [threading.Thread(target=flood, args=(process.port, number)) for number in range(20)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(1.5)
            end = time.monotonic() + 8
            statuses = []
            while time.monotonic() < end and 200 not in statuses:
                answer = get(process.port, TOKEN)
                statuses.append(answer.status)
                time.sleep(0.2)
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)
        assert statuses[-1] == 200, f"{len(statuses)} tries, every one turned away"


# A process of its own that sends standard input to a Unix socket, and prints the status line of the answer.
_OTHER_PROCESS = """
import socket, sys
with socket.socket(socket.AF_UNIX) as client:
    client.settimeout(10)
    client.connect(sys.argv[1])
    client.sendall(sys.stdin.buffer.read())
    print(client.makefile("rb").readline().decode())
"""


@pytest.mark.attack(18)
@pytest.mark.skipif(sys.platform != "linux", reason="processes are told apart on Linux only")
def test_many_loopback_addresses_do_not_starve_another_process(
    imds: EmulatorServer, start: Starter, tmp_path: Path
) -> None:
    uds = tmp_path / "socket"
    waiting = []
    settings: dict[str, Any] = {"budget_requests": 5, "budget_window": 1, "max_wait": 3, "uds": uds}
    with start(imds.url, **settings) as process, contextlib.ExitStack() as stack:
        for number in range(60):
            connection = stack.enter_context(socket.socket())
            connection.bind((f"127.0.1.{number + 1}", 0))
            connection.connect(("127.0.0.1", process.port))
            connection.sendall(request(INSTANCE.encode() + b"&flood=%d" % number, HOST))
            waiting.append(connection)
        # The queue is full as soon as one of them is refused.
        refused = False
        while not refused:
            answered, _, _ = select.select(waiting, [], [], 10)
            assert answered, "all of the flood waits"
            for connection in answered:
                waiting.remove(connection)
                answer = read_answer(stack.enter_context(connection.makefile("rb")))
                assert answer is not None
                refused |= answer.status == 429
        other = subprocess.run(
            [sys.executable, "-I", "-c", _OTHER_PROCESS, str(uds)],
            input=request(INSTANCE.encode() + b"&mine=1", HOST),
            capture_output=True,
            check=True,
        )
        assert other.stdout.split()[:2] == [b"HTTP/1.1", b"200"]


@pytest.mark.attack(18)
def test_slow_scheduled_events_do_not_hold_the_whole_budget(start: Starter) -> None:
    """The first such request may take IMDS two minutes; five of them must not keep everyone from a token."""
    with (
        run_in_thread(Emulator(rate=0, identity_rate=0, enable_delay=2.5)) as slow,
        start(slow.url, budget_requests=5, budget_window=1, max_wait=1) as process,
    ):
        threads = [threading.Thread(target=get, args=(process.port, f"{EVENTS}&x={number}")) for number in range(5)]
        for thread in threads:
            thread.start()
        time.sleep(1.2)
        status = get(process.port, TOKEN).status
        for thread in threads:
            thread.join(20)
        assert status == 200


def test_slow_scheduled_events_delay_no_client_beyond_max_wait(start: Starter) -> None:
    """A flood of them: each is answered or turned away within MAX_WAIT, and the next client's turn comes."""
    with (
        run_in_thread(Emulator(rate=0, identity_rate=0, latency=0.2)) as slow,
        start(slow.url, budget_requests=5, budget_window=1, max_wait=1) as process,
        contextlib.ExitStack() as stack,
    ):
        streams = []
        began = time.monotonic()
        for number in range(100):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", process.port), timeout=4))
            connection.sendall(request(RAW_EVENTS + b"&x=%d" % number, HOST))
            streams.append(stack.enter_context(connection.makefile("rb")))
        answers = [read_answer(stream) for stream in streams]
        assert {answer.status for answer in answers if answer} == {200, 429}
        assert time.monotonic() - began < 4
        time.sleep(1.2)  # the window of those that were answered
        assert get(process.port, EVENTS).status == 200


@pytest.mark.parametrize("waiting", [True, False], ids=["imds-is-slow", "client-reads-nothing"])
def test_pipelining_client_that_hangs_up_leaves_no_traceback(
    imds: EmulatorServer, start: Starter, waiting: bool
) -> None:
    slow = request(b"/metadata/loadbalancer?api-version=2021-02-01&gone=1", HOST)
    quick = request(INSTANCE.encode(), HOST)
    with start(imds.url) as process:
        assert get(process.port, INSTANCE).status == 200
        imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=0.3))
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", process.port), timeout=0.3) as connection:
                with contextlib.suppress(OSError):
                    connection.sendall(slow + quick * 20 if waiting else quick * 4000)
                time.sleep(0.1)
        time.sleep(0.4)
        imds.emulator.faults.clear()
        assert get(process.port, INSTANCE).status == 200
        check_log(process.log)
