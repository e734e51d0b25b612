"""The stated bound of the process's memory, under each kind of flood.

The bound is `server.memory_bound.most_memory` for as many connections as the flood has.
Its peak is what counts (VmHWM).
"""

from __future__ import annotations

import contextlib
import functools
import resource
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from imdsproxy.config import Config
from tests.integration.attacks.kit import HOST, RAW_TOKEN, TRUE, Starter, read_answer, request
from tests.integration.attacks.listeners import listening_everywhere
from tests.integration.attacks.memory import MAX_BODY, flood, holds, settled_peak
from tests.kit import ProxyProcess, get
from tests.servers import AnsweringServer, ok
from tests.size import size
from tests.targets import INSTANCE, TOKEN

pytestmark = [
    pytest.mark.any_python,
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    # The memory of a process says something only if the others leave it time.
    pytest.mark.xdist_group("memory"),
]

DEFAULT = Config().cache_max_bytes
LONG_BODY = 900_000
TOKEN_BODY = (
    b'{"access_token":"a.b.c","client_id":"c","expires_in":"86399","expires_on":"4102444800",'
    b'"ext_expires_in":"86399","not_before":"1","resource":"https://vault.azure.net","token_type":"Bearer"}'
)
SETTINGS = {
    # So short a window that all of a flood waits for its turn, and is not refused.
    "budget_requests": 5,
    "budget_window": 0.01,
    "identity_budget_requests": 20,
    "max_wait": 60,
    "header_timeout": 60,
    "read_timeout": 60,
    "log_level": "info",
    "access_log": "false",
}


def _fields(count: int, length: int) -> bytes:
    return b"".join(b"x-%d: %s\r\n" % (number, b"a" * length) for number in range(count))


def _target(number: int, rest: bytes = b"") -> bytes:
    return b"%s&n=%d%s" % (INSTANCE.encode(), number, rest)


def _unfinished(target: bytes, fields: bytes) -> bytes:
    return request(target, HOST, fields)[:-2]


def _long(batch: int, number: int) -> bytes:
    return request(_target(number, b"&batch=%d&x=%s" % (batch, b"[" * 50_000)), HOST)


def _post(number: int) -> bytes:
    fields = TRUE + b"Content-Length: 65000\r\n"
    target = b"/metadata/scheduledevents?api-version=2020-07-01&n=%d" % number
    return request(target, HOST, fields, method=b"POST", body=b"x" * 64_000)


FLOODS: dict[str, tuple[int, Callable[[int], bytes]]] = {
    # As many connections as exceed the bound if each keeps what it was sent.
    "heads of many fields": (1500, lambda _: _unfinished(b"/-/healthy", _fields(95, 670))),
    "heads of one field": (1500, lambda _: b"GET / HTTP/1.1\r\nx: " + b"a" * 65_000),
    "whole heads, then silence": (1500, lambda _: request(b"/-/healthy", HOST, _fields(90, 670))),
    "waiting clients": (1500, lambda number: request(_target(number), HOST)),
    "waiting clients, each character escaped": (
        300,
        lambda number: request(_target(number, b"&x=%F0%9F%98%80" + b'"' * 60_000), HOST),
    ),
    "waiting clients, hundreds of parameters": (
        1500,
        lambda number: request(_target(number, b"".join(b"&%d=" % each for each in range(500))), HOST),
    ),
    "waiting clients, long heads": (1500, lambda number: request(_target(number), HOST, _fields(90, 600))),
    "requests ahead of answers": (1500, lambda number: request(_target(number), HOST) + request(b"/-/x", HOST) * 500),
    "unfinished bodies": (1500, _post),
}


@pytest.fixture(scope="module", autouse=True)
def _files() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.fixture
def holding() -> Iterator[str]:
    """Serve an IMDS that answers tokens and versions, and keeps instance documents back until the test ends."""
    let_go = threading.Event()

    def answer(head: bytes) -> bytes:
        if b"/instance" in head.partition(b"\r\n")[0]:
            let_go.wait(60)
        return ok(TOKEN_BODY if b"oauth2" in head else b'{"apiVersions":["2021-02-01"]}')

    with AnsweringServer(answer) as server:
        try:
            yield server.url
        finally:
            let_go.set()


def _end(process: ProxyProcess) -> None:
    """End a proxy whose requests wait for IMDS; it would see them out for ten seconds."""
    process.process.kill()
    process.process.wait(60)


@pytest.mark.attack(9, 14)
@pytest.mark.parametrize("kind", FLOODS)
def test_flood_of_connections_stays_within_the_stated_bound(
    holding: str, start: Starter, tmp_path: Path, kind: str
) -> None:
    count, sent = FLOODS[kind]
    with listening_everywhere(
        start, holding, tmp_path, cache_max_bytes=1, max_body_bytes=MAX_BODY, **SETTINGS
    ) as everywhere:
        with contextlib.ExitStack() as stack:
            flood(stack, everywhere, count, sent)
            holds(everywhere.process, 1, count)
        holds(everywhere.process, 1, count)
        _end(everywhere.process)


@pytest.mark.large
@pytest.mark.parametrize("kind", FLOODS)
def test_flood_of_very_many_connections_stays_within_the_bound_of_the_defaults(
    holding: str, start: Starter, tmp_path: Path, kind: str
) -> None:
    _, sent = FLOODS[kind]
    count = size(short=1500, full=4000)
    settings: dict[str, object] = {**SETTINGS, "header_timeout": 120}
    with listening_everywhere(start, holding, tmp_path, **settings) as everywhere, contextlib.ExitStack() as stack:
        flood(stack, everywhere, count, sent)
        holds(everywhere.process, DEFAULT, count, Config().max_body_bytes)
        _end(everywhere.process)


def test_crowd_of_hits_that_begins_at_once_stays_within_the_stated_bound(holding: str, start: Starter) -> None:
    count = 1500
    with start(holding, max_body_bytes=MAX_BODY, **SETTINGS) as process, contextlib.ExitStack() as stack:
        assert get(process.port, TOKEN).status == 200
        process.signal(signal.SIGSTOP)
        connections = flood(stack, process, count, lambda _: request(RAW_TOKEN, HOST, TRUE))
        process.signal(signal.SIGCONT)
        for connection in connections:
            connection.settimeout(20)
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        holds(process, DEFAULT, count)


@pytest.mark.attack(9)
@pytest.mark.parametrize("cache", [1, DEFAULT])
def test_clients_that_read_nothing_stay_within_the_stated_bound(start: Starter, tmp_path: Path, cache: int) -> None:
    """By a Unix socket, because the kernel takes little there; over TCP it takes megabytes off the proxy's hands."""
    path = tmp_path / "proxy.sock"
    count = 200

    def answer(head: bytes) -> bytes:
        return ok(TOKEN_BODY if b"oauth2" in head else b'{"compute":"%s"}' % (b"x" * LONG_BODY))

    with (
        AnsweringServer(answer) as upstream,
        start(upstream.url, cache_max_bytes=cache, uds=path, **SETTINGS) as process,
        contextlib.ExitStack() as stack,
    ):
        for number in range(count):
            connection = stack.enter_context(socket.socket(socket.AF_UNIX))
            connection.connect(str(path))
            connection.sendall(request(_target(number if cache == 1 else 0), HOST))
        holds(process, cache, count, Config().max_body_bytes)


@pytest.mark.parametrize("cache", [1, DEFAULT])
def test_many_long_targets_stay_within_the_stated_bound(start: Starter, cache: int) -> None:
    parameters = b"".join(b"&name%d=%d" % (number, number) for number in range(320))
    with (
        AnsweringServer(
            lambda head: ok(TOKEN_BODY if b"oauth2" in head else b'{"apiVersions":[],"compute":{}}')
        ) as upstream,
        start(upstream.url, cache_max_bytes=cache, max_body_bytes=MAX_BODY, **SETTINGS) as process,
        socket.create_connection(("127.0.0.1", process.port), timeout=30) as connection,
        connection.makefile("rb") as stream,
    ):
        for number in range(600):
            connection.sendall(request(_target(number, parameters), HOST))
            answer = read_answer(stream)
            assert answer is not None
            assert answer.status == 200
        holds(process, cache, 1)
        assert process.metric("imdsproxy_cache_bytes") <= cache


@pytest.mark.attack(14)
@pytest.mark.large
def test_cache_full_of_small_answers_stays_within_the_stated_bound(start: Starter) -> None:
    cache = size(short=DEFAULT // 8, full=DEFAULT)
    with (
        AnsweringServer(
            lambda head: ok(TOKEN_BODY if b"oauth2" in head else b'{"apiVersions":[],"compute":{}}')
        ) as upstream,
        start(
            upstream.url, cache_max_bytes=cache, max_body_bytes=MAX_BODY, ttl="/metadata/instance=3600", **SETTINGS
        ) as process,
        socket.create_connection(("127.0.0.1", process.port), timeout=30) as connection,
        connection.makefile("rb") as stream,
    ):
        for number in range(cache // 1400):
            connection.sendall(request(_target(number), HOST))
            assert read_answer(stream) is not None
        assert process.metric("imdsproxy_cache_bytes") > cache * 3 / 4
        holds(process, cache, 1)


@pytest.mark.attack(9)
@pytest.mark.parametrize("cache", [1, DEFAULT])
def test_clients_that_disconnect_while_waiting_do_not_fill_the_memory(holding: str, start: Starter, cache: int) -> None:
    """A fetch may outlive its client, so connections do not bound how many there are."""
    count = 50
    with start(holding, cache_max_bytes=cache, max_body_bytes=MAX_BODY, **SETTINGS) as process:
        for batch in range(8):
            with contextlib.ExitStack() as stack:
                sent = functools.partial(_long, batch)
                for connection in flood(stack, process, count, sent):
                    # So that it is reset when it is closed, which the proxy notices at once.
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                assert get(process.port, "/-/healthy").status == 200
        holds(process, cache, count)
        _end(process)


def test_ordinary_requests_are_served_while_the_pool_is_used_up(holding: str, start: Starter) -> None:
    with start(holding, max_body_bytes=MAX_BODY, **SETTINGS) as process, contextlib.ExitStack() as stack:
        connections = flood(stack, process, 600, FLOODS["heads of many fields"][1])
        settled_peak(process)
        refused = 0
        for connection in connections:
            with contextlib.suppress(BlockingIOError, ConnectionError):
                refused += b"detail=memory" in connection.recv(1000)
        assert refused > 100
        assert process.metric("imdsproxy_requests_total") >= refused
        with socket.create_connection(("127.0.0.1", process.port), timeout=10) as connection:
            fields = _fields(15, 60) + b"User-Agent: azsdk-python-identity/1.15.0 Python/3.11.7 (Linux)\r\n"
            connection.sendall(request(RAW_TOKEN, HOST, TRUE, fields))
            with connection.makefile("rb") as stream:
                answer = read_answer(stream)
        assert answer is not None
        assert answer.status == 200
