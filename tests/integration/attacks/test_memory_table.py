"""The stated bound of the process's memory under floods that go on and on, as one table.

`test_memory` has the floods of connections that keep what they have sent.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from imdsproxy.config import Config
from tests.integration.attacks.kit import HOST, RAW_TOKEN, TRUE, Starter, read_answer, request
from tests.integration.attacks.memory import MAX_BODY, flood, holds
from tests.kit import ROOT, ProxyProcess, environment, free_port, get, wait_until
from tests.servers import AnsweringServer, ok
from tests.size import size
from tests.targets import INSTANCE

pytestmark = [
    pytest.mark.any_python,
    pytest.mark.process,
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.xdist_group("memory"),
    pytest.mark.attack(9),
]

CACHE = 1 << 18
BIG = b"x" * 900_000
LANES = 8
"""Connections over which a flood asks and reads its answers."""
TRACE = b"traceparent: 00-%032x-%016x-01\r\n"
STATES = {
    length: b",".join(b"k%02d=%s" % (number, b"v" * (length // 32 - 5)) for number in range(32))
    for length in (512, 8192)
}
"""Trace states of the most entries, by their length: the longest that is kept, and the longest that is read."""
TOKEN_BODY = (
    b'{"access_token":"a.b.c","client_id":"c","expires_in":"86399","expires_on":"4102444800",'
    b'"ext_expires_in":"86399","not_before":"1","resource":"%s","token_type":"Bearer"}'
)
RULES = """
default = "deny"
[[rule]]
name = "python"
executable = ["%s"]
allow = ["/metadata"]
"""
# Processes of their own, one after the other, that each ask once.
PROCESSES = """
import os, socket, sys
port, count, raw = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3].encode()
for number in range(count):
    if not os.fork():
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(raw)
            # A busy machine may not find the process within the time of a search. Then the rules refuse it.
            os._exit(connection.recv(12) not in {b"HTTP/1.1 200", b"HTTP/1.1 403"})
    assert os.wait()[1] == 0, number
"""


@dataclass(frozen=True)
class Scene:
    """A proxy under a flood."""

    process: ProxyProcess
    uds: Path
    stack: contextlib.ExitStack

    def connect(self, *, unix: bool = False) -> socket.socket:
        if unix:
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(self.uds))
        else:
            connection = socket.create_connection(("127.0.0.1", self.process.port))
        connection.settimeout(60)
        return self.stack.enter_context(connection)

    def ask(self, requests: Iterator[bytes], *, at_once: int = 5, unix: bool = False) -> None:
        """Send the requests over some connections, so many ahead on each, and read each answer, which is a 200."""
        lanes = [self.connect(unix=unix) for _ in range(LANES)]
        streams = [self.stack.enter_context(lane.makefile("rb")) for lane in lanes]
        while batch := list(itertools.islice(requests, LANES * at_once)):
            parts = [batch[number::LANES] for number in range(LANES)]
            for lane, part in zip(lanes, parts, strict=True):
                lane.sendall(b"".join(part))
            for stream, part in zip(streams, parts, strict=True):
                for _ in part:
                    answer = read_answer(stream)
                    assert answer is not None
                    assert answer.status == 200, answer

    def keep(self, count: int, sent: bytes) -> None:
        """Send the same on so many connections, which stay open."""
        flood(self.stack, self.process, count, lambda _: sent)


@dataclass(frozen=True)
class Case:
    """A flood: what it sends, in how many connections, and the settings of the proxy that differ."""

    send: Callable[[Scene], None]
    connections: int = LANES
    settings: dict[str, object] = field(default_factory=dict)

    @property
    def cache(self) -> int:
        return int(str(self.settings.get("cache_max_bytes", CACHE)))

    @property
    def max_body(self) -> int:
        return int(str(self.settings.get("max_body_bytes", MAX_BODY)))


def _targets(count: int, rest: bytes = b"", *fields: bytes) -> Iterator[bytes]:
    return (request(b"%s&n=%d%b" % (INSTANCE.encode(), number, rest), HOST, TRUE, *fields) for number in range(count))


def _tokens(count: int) -> Iterator[bytes]:
    target = RAW_TOKEN.replace(b"vault.azure.net", b"%d.example")
    return (request(target % number, HOST, TRUE) for number in range(count))


def _forged(count: int) -> Iterator[bytes]:
    for number in range(count):
        miss = b"&forged=%d" % number if number % 4 == 0 else b""
        yield request(INSTANCE.encode() + miss, HOST, TRUE, b"Imdsproxy-Via: %032x\r\n" % number)


def _traced(count: int, length: int) -> Iterator[bytes]:
    target = INSTANCE.encode().replace(b"?", b"/%b?" % (b"a" * 300))
    state = b"tracestate: %b\r\n" % STATES[length]
    return (request(target, HOST, TRUE, TRACE % (number, number), state) for number in range(1, count + 1))


def _processes(scene: Scene) -> None:
    raw = request(INSTANCE.encode(), HOST, TRUE).decode()
    count = str(size(short=60, full=500))
    command = [sys.executable, "-ISc", PROCESSES, str(scene.process.port), count, raw]
    subprocess.run(command, check=True, timeout=300)


FLOODS: dict[str, Case] = {
    "distinct keys": Case(lambda scene: scene.ask(_targets(size(short=800, full=5000)))),
    "distinct keys, long": Case(
        lambda scene: scene.ask(_targets(size(short=200, full=1500), b"&x=" + b"y" * 8000), at_once=1)
    ),
    "tokens of many resources": Case(lambda scene: scene.ask(_tokens(size(short=500, full=3000)))),
    "big documents": Case(
        lambda scene: scene.ask(_targets(size(short=40, full=150), b"&big"), at_once=1),
        settings={"cache_max_bytes": 1 << 22, "max_body_bytes": 1 << 20},
    ),
    "forged ids of proxies": Case(lambda scene: scene.ask(_forged(size(short=2000, full=8000)), unix=True)),
    "pipelining without end": Case(
        lambda scene: scene.ask(
            itertools.repeat(request(INSTANCE.encode(), HOST, TRUE), size(short=8000, full=100_000)), at_once=500
        )
    ),
    "idle connections": Case(lambda scene: scene.keep(size(short=1500, full=4000), b""), size(short=1500, full=4000)),
    "10,000 fields in a head": Case(
        lambda scene: scene.keep(300, b"GET /metadata/versions HTTP/1.1\r\n" + HOST + b"x:y\r\n" * 10_000), 300
    ),
    "3,000 parameters": Case(
        lambda scene: scene.keep(300, request(INSTANCE.encode() + b"".join(b"&%d=" % n for n in range(3000)), HOST)),
        300,
    ),
    **{
        f"sampled traces with a state of {length}, a collector that is away": Case(
            lambda scene, length=length: scene.ask(_traced(size(short=2500, full=8000), length)),  # type: ignore[misc]
            settings={"traces": True},
        )
        for length in STATES
    },
    "access rules, many processes": Case(_processes, settings={"access_file": "rules"}),
}


@pytest.fixture
def imds() -> Iterator[str]:
    """Serve an IMDS that answers at once: a small document, a big one, a token."""

    def answer(head: bytes) -> bytes:
        target = head.split(b" ", 2)[1]
        if b"oauth2" in target:
            return ok(TOKEN_BODY % target.partition(b"resource=")[2].replace(b"%3A", b":").replace(b"%2F", b"/"))
        return ok(b'{"apiVersions":[],"compute":"%s"}' % (BIG if b"&big" in target else b"small"))

    with AnsweringServer(answer) as server:
        yield server.url


@pytest.mark.parametrize("name", FLOODS)
def test_flood_stays_within_the_stated_bound(
    imds: str, start: Starter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    case = FLOODS[name]
    traces = bool(case.settings.get("traces"))
    if traces:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{free_port()}")
    settings: dict[str, object] = {
        "cache_max_bytes": CACHE,
        "max_body_bytes": MAX_BODY,
        "header_timeout": 60,
        "log_level": "info",
        "uds": tmp_path / "proxy.sock",
        **case.settings,
    }
    if "access_file" in settings:
        settings["access_file"] = tmp_path / "rules.toml"
        (tmp_path / "rules.toml").write_text(RULES % Path(sys.executable).resolve(), encoding="utf-8")
        (tmp_path / "rules.toml").chmod(0o600)
    with start(imds, **settings) as process, contextlib.ExitStack() as stack:
        case.send(Scene(process, tmp_path / "proxy.sock", stack))
        holds(process, case.cache, case.connections, case.max_body, traces=traces)


def test_unread_log_stays_within_the_stated_bound(imds: str, tmp_path: Path) -> None:
    port = free_port()
    settings = {"upstream": imds, "port": port, "access_log": "true", "max_body_bytes": MAX_BODY}
    command = [sys.executable, "-m", "imdsproxy"]
    log = tmp_path / "log"
    log.write_text("", encoding="utf-8")
    with (
        subprocess.Popen(command, env=environment(**settings), cwd=ROOT, stderr=subprocess.PIPE, text=True) as running,
        contextlib.ExitStack() as stack,
    ):
        stack.callback(running.kill)
        process = ProxyProcess(running, log, port)
        wait_until(lambda: _healthy(port))
        scene = Scene(process, tmp_path, stack)
        agent = b"User-Agent: %s\r\n" % (b"a" * 500)
        scene.ask(
            itertools.repeat(request(INSTANCE.encode(), HOST, TRUE, agent), size(short=6000, full=30_000)), at_once=100
        )
        assert process.metric("imdsproxy_log_dropped_total") > 0
        holds(process, Config().cache_max_bytes, LANES)


def _healthy(port: int) -> bool:
    with contextlib.suppress(OSError):
        return get(port, "/-/healthy").status == 200
    return False
