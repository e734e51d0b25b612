"""Slow, silent, unreading, many and disconnected clients: each is ended in time, and none delays another."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from imdsproxy.emulator import EmulatorServer, Fault
from tests.kit import ROOT, ProxyProcess, environment, get, running_proxy, wait_until
from tests.targets import EVENTS, INSTANCE, TOKEN

pytestmark = [pytest.mark.process, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]
# Half of the time of this file, with proxies of their own.
LEAVING = pytest.mark.xdist_group("clients that leave")

HEADER_TIMEOUT = 0.4
KEEP_ALIVE = 0.5
LATE = 5
"""Seconds that a busy machine may take; whatever else would end a wait takes longer."""
HEAD = f"GET {INSTANCE} HTTP/1.1\r\nHost: localhost\r\n".encode()
APPROVAL = f"POST {EVENTS} HTTP/1.1\r\nHost: localhost\r\n".encode()


@pytest.fixture(scope="module")
def shared(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    with running_proxy(
        tmp_path_factory.mktemp("proxy"),
        upstream=imds.url,
        header_timeout=HEADER_TIMEOUT,
        budget_requests=1000,
        retry_max=0,
        log_level="debug",
        access_log="true",
    ) as process:
        assert get(process.port, INSTANCE).status == 200
        yield process


@pytest.fixture(scope="module")
def shared_impatient(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """Run a proxy that closes idle connections, and times out heads, after `KEEP_ALIVE` seconds."""
    log = tmp_path_factory.mktemp("impatient") / "log"
    settings = {"port": 0, "upstream": imds.url, "header_timeout": HEADER_TIMEOUT, "budget_requests": 1000}
    with log.open("w", encoding="utf-8") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.altered", f"keep_alive={KEEP_ALIVE}"],
            env=environment(**settings),
            cwd=ROOT,
            stderr=stderr,
            text=True,
        )
    try:
        wait_until(lambda: " listening " in log.read_text(encoding="utf-8"))
        port = int(log.read_text(encoding="utf-8").partition("address=http://127.0.0.1:")[2].split()[0])
        wait_until(lambda: get(port, "/-/ready").status == 200)
        assert get(port, INSTANCE).status == 200
        yield ProxyProcess(process, log, port)
    finally:
        process.kill()
        process.wait(60)


def _unhurt(process: ProxyProcess) -> Iterator[ProxyProcess]:
    seen = len(process.log)
    yield process
    assert process.process.poll() is None
    began = time.monotonic()
    assert get(process.port, INSTANCE).status == 200
    assert time.monotonic() - began < LATE
    assert "Traceback" not in process.log[seen:], process.log[-3000:]


@pytest.fixture
def proxy(shared: ProxyProcess) -> Iterator[ProxyProcess]:
    yield from _unhurt(shared)


@pytest.fixture
def impatient(shared_impatient: ProxyProcess) -> Iterator[ProxyProcess]:
    yield from _unhurt(shared_impatient)


@contextlib.contextmanager
def connected(process: ProxyProcess, *, receive_buffer: int = 0) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.settimeout(10)
        connection.connect(("127.0.0.1", process.port))
        yield connection


def statuses_until_closed(connection: socket.socket) -> tuple[list[int], float]:
    """Return the statuses of all answers and the seconds until the proxy closed."""
    began, received = time.monotonic(), b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65_536):
            received += part
    seconds = time.monotonic() - began
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", received)], seconds


def held(process: ProxyProcess, connection: socket.socket) -> bool:
    """Return whether the process still has this connection open."""
    try:
        near, far = (f":{address[1]:04X}" for address in (connection.getpeername(), connection.getsockname()))
    except OSError:
        return False  # it was reset
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(near) and fields[2].endswith(far):
            return fields[3] in {"01", "08"}  # ESTABLISHED, CLOSE_WAIT
    return False


def descriptors(process: ProxyProcess) -> int:
    return len(process.descriptors())


@contextlib.contextmanager
def descriptor_limit(soft: int) -> Iterator[None]:
    """Raise the limit of open files of this process and its children."""
    before, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 5000:
        pytest.skip("the system allows too few open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, hard))


# --- too slow


UNFINISHED = [
    *(b"G", b"GET ", b"GET /metadata", HEAD, HEAD + b"X: ", HEAD + b"X: 1\r\n", HEAD + b"\r"),
    *(APPROVAL + b"Content-Length: 20\r\n\r\n", APPROVAL + b"Content-Length: 20\r\n\r\n{"),
    APPROVAL + b"Transfer-Encoding: chunked\r\n\r\n",
    APPROVAL + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n",
    APPROVAL + b"Content-Length: 20\r\nExpect: 100-continue\r\n\r\n",
]


@pytest.mark.attack(9)
def test_unfinished_request_is_408(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    before = len(imds.emulator.arrivals)

    def send(beginning: bytes) -> tuple[list[int], float]:
        with connected(proxy) as connection:
            connection.sendall(beginning)
            return statuses_until_closed(connection)

    with ThreadPoolExecutor(len(UNFINISHED)) as clients:
        for beginning, (statuses, seconds) in zip(UNFINISHED, clients.map(send, UNFINISHED), strict=True):
            assert statuses in ([408], [100, 408]), beginning
            assert HEADER_TIMEOUT * 0.9 <= seconds < HEADER_TIMEOUT + LATE, beginning
    assert len(imds.emulator.arrivals) == before


def test_answer_to_a_slow_request_has_the_proxys_form(proxy: ProxyProcess) -> None:
    with connected(proxy) as connection, connection.makefile("rb") as stream:
        connection.sendall(HEAD)
        head, _, body = stream.read().partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert b"\r\ncache-status: imdsproxy; detail=request-timeout" in head
    assert b"\r\nconnection: close" in head
    assert set(json.loads(body)) == {"error", "error_description"}


@pytest.mark.attack(9)
@pytest.mark.parametrize("piece", [b"a", b"X: 1\r\n"])
@pytest.mark.parametrize("beginning", [HEAD, APPROVAL + b"Content-Length: 60000\r\n\r\n"], ids=["head", "body"])
def test_trickling_request_is_408(proxy: ProxyProcess, beginning: bytes, piece: bytes) -> None:
    """The time counts from the first byte, whatever keeps coming."""
    began = time.monotonic()
    with connected(proxy) as connection:
        connection.sendall(beginning)
        connection.settimeout(0.05)
        received = None
        while received is None and time.monotonic() < began + HEADER_TIMEOUT + LATE:
            try:
                received = connection.recv(65_536)
            except TimeoutError:
                connection.sendall(piece)
    assert time.monotonic() - began < HEADER_TIMEOUT + LATE
    assert received is not None
    assert received.startswith(b"HTTP/1.1 408 ")


@pytest.mark.parametrize(
    "beginning", [b"GET", HEAD, APPROVAL + b"Content-Length: 9\r\n\r\n"], ids=["method", "head", "body"]
)
@pytest.mark.parametrize("together", [True, False], ids=["one-packet", "two-packets"])
def test_second_request_has_the_same_time_as_the_first(proxy: ProxyProcess, beginning: bytes, together: bool) -> None:
    whole = b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(proxy) as connection:
        connection.settimeout(HEADER_TIMEOUT + 2)
        if together:
            connection.sendall(whole + beginning)
        else:
            connection.sendall(whole)
            time.sleep(0.05)
            connection.sendall(beginning)
        statuses, _ = statuses_until_closed(connection)
    assert statuses == [200, 408]


def test_slow_request_behind_a_slow_answer_is_timed_from_that_answer(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    """The client's time does not run while it is the proxy that has not answered, and its answer is not lost."""
    imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=2 * HEADER_TIMEOUT, times=1))
    first = b"GET /metadata/loadbalancer?api-version=2021-02-01&behind=1 HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with connected(proxy) as connection:
        connection.sendall(first)
        time.sleep(0.05)
        connection.sendall(b"GET /-/healthy HTTP/1.1\r\n")
        statuses, _ = statuses_until_closed(connection)
    assert statuses[0] == 200
    assert statuses[1:] in ([], [408])


def test_slow_clients_do_not_delay_others(proxy: ProxyProcess) -> None:
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(connected(proxy)) for _ in range(300)]
        for connection in connections:
            connection.sendall(HEAD)
        began = time.monotonic()
        for _ in range(20):
            assert get(proxy.port, INSTANCE).status == 200
        assert time.monotonic() - began < LATE
        for connection in connections:
            assert statuses_until_closed(connection)[0] == [408]


# --- silent, idle, unreading


@pytest.mark.attack(9)
def test_silent_connection_counts_as_idle(proxy: ProxyProcess) -> None:
    """Several agents open a connection and send nothing for a while."""
    with connected(proxy) as connection:
        time.sleep(2 * HEADER_TIMEOUT)
        connection.sendall(HEAD + b"Connection: close\r\n\r\n")
        assert statuses_until_closed(connection)[0] == [200]


@pytest.mark.parametrize("sent", [b"", HEAD + b"\r\n"], ids=["silent", "idle"])
def test_idle_connection_is_closed_after_its_timeout(impatient: ProxyProcess, sent: bytes) -> None:
    with connected(impatient) as connection:
        connection.sendall(sent)
        statuses, seconds = statuses_until_closed(connection)
    assert statuses == ([200] if sent else [])
    assert KEEP_ALIVE * 0.9 < seconds < KEEP_ALIVE + LATE


@pytest.mark.attack(9)
@pytest.mark.parametrize(
    "sent",
    [
        (HEAD + b"\r\n") * 4000,
        (HEAD + b"\r\n") * 4000 + HEAD + b"Connection: close\r\n\r\n",
        (HEAD + b"\r\n") * 4000 + b"\x00\r\n\r\n",
        (HEAD + b"\r\n") * 4000 + HEAD,
    ],
    ids=["keep-alive", "close", "garbage", "unfinished"],
)
def test_client_that_never_reads_is_disconnected(impatient: ProxyProcess, sent: bytes) -> None:
    before = impatient.resident_bytes()
    with connected(impatient, receive_buffer=2048) as connection:
        connection.settimeout(0.5)
        with contextlib.suppress(OSError):
            connection.sendall(sent)
        assert impatient.resident_bytes() - before < 30_000_000
        began = time.monotonic()
        assert get(impatient.port, TOKEN).status == 200
        assert time.monotonic() - began < LATE
        wait_until(lambda: not held(impatient, connection), 6)


def test_many_clients_that_never_read_take_little_memory(impatient: ProxyProcess) -> None:
    before = impatient.resident_bytes()
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            connection = stack.enter_context(connected(impatient, receive_buffer=2048))
            connection.setblocking(False)  # noqa: FBT003  # the standard library's signature
            with contextlib.suppress(BlockingIOError):
                connection.send((HEAD + b"\r\n") * 2000)
        time.sleep(0.5)
        assert impatient.resident_bytes() - before < 100_000_000
        assert get(impatient.port, INSTANCE).status == 200


# --- many clients


@pytest.mark.attack(9)
@pytest.mark.parametrize("soft", [1024, 4096])
def test_two_thousand_idle_connections_are_held(imds: EmulatorServer, tmp_path: Path, soft: int) -> None:
    """1024 open files are what most systems start a process with; the hard limit is far above it."""
    with contextlib.ExitStack() as stack:
        with descriptor_limit(soft):
            process = stack.enter_context(running_proxy(tmp_path, upstream=imds.url, header_timeout=HEADER_TIMEOUT))
        assert get(process.port, INSTANCE).status == 200
        before, resident = descriptors(process), process.resident_bytes()
        with descriptor_limit(4096), contextlib.ExitStack() as crowd:
            connections = [crowd.enter_context(connected(process)) for _ in range(2000)]
            wait_until(lambda: descriptors(process) >= before + 1990, 5)  # one of those before may just have closed
            began = time.monotonic()
            assert get(process.port, INSTANCE).status == 200
            assert get(process.port, TOKEN).status == 200
            assert time.monotonic() - began < LATE
            for connection in connections[::100]:
                connection.sendall(HEAD + b"Connection: close\r\n\r\n")
                assert statuses_until_closed(connection)[0] == [200]
            assert process.resident_bytes() - resident < 60_000_000
        wait_until(lambda: descriptors(process) <= before + 3)
        assert "Traceback" not in process.log


@LEAVING
@pytest.mark.attack(9)
@pytest.mark.parametrize("asked", ["one-thing", "many-things", "uncached", "posts"])
def test_thousand_waiting_clients_that_disconnect_leave_nothing(
    imds: EmulatorServer, tmp_path: Path, asked: str
) -> None:
    line = {
        "one-thing": b"GET /metadata/loadbalancer?api-version=2021-02-01 HTTP/1.1\r\n",
        "many-things": b"GET /metadata/loadbalancer?api-version=2021-02-01&x=%d HTTP/1.1\r\n",
        "uncached": b"GET /metadata/loadbalancer-%d HTTP/1.1\r\n",
        "posts": b"POST /metadata/scheduledevents?api-version=2020-07-01 HTTP/1.1\r\nContent-Length: 0\r\n",
    }[asked]
    first = len(imds.emulator.arrivals)
    with running_proxy(
        tmp_path, upstream=imds.url, max_wait=2, retry_max=0, budget_window=0.5, log_level="debug", access_log="true"
    ) as process:
        imds.emulator.faults.add(Fault(latency=0.5))
        before, resident = descriptors(process), process.resident_bytes()
        with descriptor_limit(4096):
            connections = [socket.create_connection(("127.0.0.1", process.port), timeout=5) for _ in range(1000)]
            for number, connection in enumerate(connections):
                connection.sendall(line.replace(b"%d", b"%d" % number) + b"Host: localhost\r\n\r\n")
            time.sleep(0.3)
            for number, connection in enumerate(connections):
                if number % 2:  # closing then resets the connection
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                connection.close()
        imds.emulator.faults.clear()
        wait_until(lambda: descriptors(process) <= before + 5, 5)
        # No client waits any more, so the next one is soon answered.
        end = time.monotonic() + 6
        while get(process.port, TOKEN).status != 200:
            assert time.monotonic() < end
            time.sleep(0.2)
        assert process.resident_bytes() - resident < 40_000_000
        # The shared target is requested once, and no more of the others than the budget allows meanwhile.
        arrived = len(imds.emulator.arrivals) - first
        assert arrived <= (4 if asked == "one-thing" else 100)
        assert "Traceback" not in process.log, process.log[-3000:]
        assert get(process.port, INSTANCE).status == 200


@LEAVING
@pytest.mark.parametrize("path", ["loadbalancer", "scheduledevents", "identity/unknown"])
def test_short_lived_connections_take_little_memory(imds: EmulatorServer, tmp_path: Path, path: str) -> None:
    """Each asks for something else and does not wait: what is queued for them is bounded all the same."""
    imds.emulator.faults.add(Fault(latency=0.5))
    with running_proxy(tmp_path, upstream=imds.url, retry_max=0) as process:
        resident = process.resident_bytes()
        for number in range(1500):
            with connected(process) as connection:
                connection.sendall(
                    b"GET /metadata/%s?x=%d HTTP/1.1\r\nHost: localhost\r\n\r\n" % (path.encode(), number)
                )
        wait_until(lambda: get(process.port, "/-/healthy").status == 200)
        assert process.resident_bytes() - resident < 3_500_000
        imds.emulator.faults.clear()


def test_last_client_is_answered_after_the_first_disconnected(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=0.4, times=1))
    target = b"/metadata/loadbalancer?api-version=2021-02-01&last=1"
    line = b"GET " + target + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    before = len(imds.emulator.arrivals)
    with connected(proxy) as last:
        for _ in range(100):
            with connected(proxy) as gone:
                gone.sendall(line)
        last.sendall(line)
        assert statuses_until_closed(last)[0] == [200]
    assert len(imds.emulator.arrivals) == before + 1


def test_shutdown_ends_in_time_for_any_client_behaviour(imds: EmulatorServer, tmp_path: Path) -> None:
    with contextlib.ExitStack() as crowd:
        with running_proxy(tmp_path, upstream=imds.url, header_timeout=HEADER_TIMEOUT) as process:
            assert get(process.port, INSTANCE).status == 200
            for sent in (b"", HEAD, HEAD + b"\r\n", APPROVAL + b"Content-Length: 20\r\n\r\n"):
                crowd.enter_context(connected(process)).sendall(sent)
            began = time.monotonic()
            process.process.terminate()
            assert process.process.wait(14) == 0
        assert time.monotonic() - began < 5
        assert "Traceback" not in process.log
