"""The fast path changes no answer: the same bytes get the same answers with it and without it.

Two proxies in the same virtual time, one with the fast path and one without, get the same history. After every step
their connections, their requests to IMDS, their metrics and their logs must be equal, byte for byte and in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import random
import socket
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, Self, TypeVar, cast

import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.server import ServerState

from imdsproxy.access.subject import UNKNOWN_SUBJECT, Subject
from imdsproxy.app import assemble
from imdsproxy.cache.freshness import Entry, Freshness, lookup, make_entry
from imdsproxy.cache.rendered_hit import RenderedHit, write
from imdsproxy.ops.metrics import _Answers
from imdsproxy.parts.parts import build
from imdsproxy.peers.lookup import PeerLookup
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.messages import Failure, Headers, Key, Response
from imdsproxy.protocol.peer import Peer
from imdsproxy.proxy import warmup
from imdsproxy.records import Outcome
from imdsproxy.server.application import Application
from imdsproxy.server.arrivals import Arrivals
from imdsproxy.server.connection import Connection
from imdsproxy.server.connection_limit import ConnectionLimit
from imdsproxy.server.fast_path import FastPathConnection, connection_class
from imdsproxy.server.first_request import FirstRequests
from imdsproxy.server.known_heads import LONGEST_KNOWN, KnownHeads
from imdsproxy.server.run import uvicorn_config
from tests.kit import ROOT
from tests.scripted import DOWN, NOWHERE, SLOW, Imds, Sent, ok, status
from tests.size import examples, size
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS
from tests.virtual import VirtualClock
from tests.wire import Accepted, SteppedLoop, Wire

# Measuring coverage would double its time, and other tests reach the same branches.
pytestmark = pytest.mark.no_cover

LEAF = "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text"
NETWORK = "/metadata/instance/network?api-version=2021-02-01"
BIG = "/metadata/instance?api-version=2021-12-13"
ATTESTED = "/metadata/attested/document?api-version=2020-09-01"
HOST = b"Host: 127.0.0.1"
METADATA = b"Metadata: true"
OWN_NAME = b"0123456789abcdef"
"""Stands for the proxy's own name among the hops, which is another one in every proxy."""
CONNECTIONS = 3

Drawn = TypeVar("Drawn")

_TICK = 2**-20
"""About a microsecond; the shortest time that there is here."""

# --- Requests


def head(
    target: str = INSTANCE,
    *fields: bytes,
    method: str = "GET",
    version: str = "1.1",
    common: tuple[bytes, ...] = (HOST, METADATA),
    end: bytes = b"\r\n",
) -> bytes:
    lines = [f"{method} {target} HTTP/{version}".encode("latin-1"), *common, *fields]
    return end.join([*lines, b"", b""])


def of_length(size: int, target: str = INSTANCE) -> bytes:
    """Return a head of so many bytes."""
    plain = head(target, b"X-Pad: ")
    return head(target, b"X-Pad: " + b"x" * (size - len(plain)))


def with_body(target: str, body: bytes, *fields: bytes, method: str = "GET") -> bytes:
    return head(target, *fields, b"Content-Length: %d" % len(body), method=method) + body


CHUNKS = b"4\r\nabcd\r\n0\r\n\r\n"

HITS = [
    head(INSTANCE),
    head(TOKEN),
    head(LEAF),
    head(VERSIONS),
    head(BIG),
    head(NETWORK, b"X-Ms-Client-Request-Id: 1"),
    head(EVENTS),
    head(INSTANCE, common=(METADATA, HOST)),
    head(TOKEN, common=(b"metadata: TRUE", b"hOST: localhost:8254", b"User-Agent: curl/8")),
    head(INSTANCE, common=(HOST,)),
    head(INSTANCE, b"Connection: keep-alive"),
    of_length(LONGEST_KNOWN),
]
LAST_HITS = [
    head(INSTANCE, b"Connection: close"),
    head(TOKEN, b"X-Ms-Client-Request-Id: 2", b"connection: Close"),
    head(LEAF, version="1.0"),
    head(BIG, b"Connection: close"),
]
"""The connection ends with the answer."""
HITS += LAST_HITS

WISHES = [
    *(head(target, b"Cache-Control: no-cache") for target in (INSTANCE, TOKEN, BIG, VERSIONS)),
    *(head(target + "&bypass_cache=true") for target in (INSTANCE, TOKEN, LEAF)),
    with_body(EVENTS, b"{}", method="POST"),
]
"""Each of them causes a new request to IMDS."""

OTHERS = [
    head(INSTANCE, b"Connection: close"),
    head(INSTANCE, b"connection: Keep-Alive, Close"),
    head(TOKEN, b"Connection: close"),
    head(INSTANCE, b"Proxy-Connection: close"),
    head(INSTANCE, b"Connection: x-other"),
    head(INSTANCE, version="1.0"),
    head(INSTANCE, b"Connection: keep-alive", version="1.0"),
    head(INSTANCE, version="1.0", common=(METADATA,)),
    head(INSTANCE, version="1.2"),
    head(INSTANCE, version="2.0"),
    head("http://169.254.169.254" + INSTANCE),
    head("HTTP://127.0.0.1:9" + TOKEN),
    head("http://example.com" + INSTANCE),
    head("https://169.254.169.254" + INSTANCE),
    head("169.254.169.254:80", method="CONNECT"),
    head("*", method="OPTIONS"),
    head(INSTANCE, method="HEAD"),
    head(INSTANCE, method="POST"),
    head(INSTANCE, method="get"),
    head(INSTANCE, method="BREW"),
    head(INSTANCE, method="PROPFIND"),
    with_body(INSTANCE, b"GET / HTTP/1.1\r\n\r\n"),
    with_body(TOKEN, b"abc"),
    with_body(INSTANCE, b""),
    with_body(EVENTS, b'{"StartRequests":[]}', method="POST"),
    with_body(EVENTS, b"x" * 66_000, method="POST"),
    with_body(EVENTS, b"{}", b"Expect: 100-continue", method="POST"),
    head(INSTANCE, b"Transfer-Encoding: chunked") + CHUNKS,
    head(EVENTS, b"Transfer-Encoding: chunked", method="POST") + CHUNKS,
    head(INSTANCE, b"Transfer-Encoding: chunked") + b"0\r\nX-Trailer: 1\r\n\r\n",
    head(INSTANCE, b"Transfer-Encoding: gzip, chunked") + CHUNKS,
    head(INSTANCE, b"Transfer-Encoding: chunked", b"Content-Length: 3") + CHUNKS,
    head(INSTANCE, b"Content-Length: 5"),
    head(INSTANCE, b"Content-Length: -1"),
    head(INSTANCE, b"Expect: 100-continue"),
    head(TOKEN, b"Expect: 100-Continue"),
    head(INSTANCE, b"Expect: something"),
    head(INSTANCE, b"Upgrade: websocket", b"Connection: Upgrade"),
    head(INSTANCE, b"Upgrade: h2c"),
    with_body(INSTANCE, b"abc", b"Upgrade: h2c", b"Connection: upgrade"),
    head(TOKEN, b"cache-control: max-age=0, No-Cache"),
    head(INSTANCE, b"Cache-Control: max-age=0"),
    head(TOKEN + "&bypass_cache=false"),
    head(INSTANCE, b"X-Forwarded-For: 10.0.0.1"),
    head(TOKEN, b"x-forwarded-for:"),
    head(INSTANCE, b"X-Forwarded-Host: a"),
    head(INSTANCE, b"Imdsproxy-Via: " + OWN_NAME),
    head(INSTANCE, b"Imdsproxy-Via: 00000000000000ff"),
    head(INSTANCE, HOST),
    head(INSTANCE, METADATA),
    head(TOKEN, METADATA),
    head(INSTANCE, common=(METADATA,)),
    head(TOKEN, common=(HOST,)),
    head(TOKEN, common=(HOST, b"Metadata: false")),
    head(INSTANCE, common=(b"Host: example.com", METADATA)),
    head(INSTANCE, common=(b"Host: [::1]:80", METADATA)),
    head(INSTANCE, common=(b"Host: a b", METADATA)),
    head(INSTANCE, common=(b"Host: unix",)),
    head(TOKEN, common=(b"Host: unix", METADATA)),
    head(INSTANCE, common=(b"Host: 2852039166", METADATA)),
    head(INSTANCE, common=(b"Host: 169.254.169.254",)),
    head(INSTANCE, common=(b"Host: 169.254.169.254", METADATA)),
    head(INSTANCE, common=(b"Host: [::ffff:a9fe:a9fe]:80",)),
    head("http://unix" + INSTANCE, common=(b"Host: unix",)),
    head("http://169.254.169.254" + INSTANCE, common=(HOST,)),
    head(INSTANCE, version="1.0", common=()),
    head(INSTANCE, common=(HOST, b"Metadata: false")),
    head(INSTANCE, common=(HOST, b"Metadata:")),
    head(INSTANCE, b"Origin: http://a.example"),
    head(TOKEN, b"Origin: null"),
    head(INSTANCE, b"Sec-Fetch-Site: cross-site"),
    head(INSTANCE, b"Sec-Fetch-Site: same-origin"),
    head(INSTANCE, b"Sec-Fetch-Site: none"),
    with_body(EVENTS, b"{}", b"Origin: null", method="POST"),
    head(EVENTS, common=(HOST, b"Content-Length: 0"), method="POST"),
    head("/" + INSTANCE),
    head("/" + TOKEN),
    head(INSTANCE + "&x=%41;%3b"),
    head(INSTANCE + "&x=A%3b;"),
    head(INSTANCE + "#fragment"),
    head(INSTANCE + "&api-version=2021-02-01"),
    head("/metadata/instance/?api-version=2021-02-01"),
    head("/Metadata/Instance?api-version=2021-02-01"),
    head("/metadata/%69nstance?api-version=2021-02-01"),
    head("/metadata//instance?api-version=2021-02-01"),
    head("/metadata/instance/../instance?api-version=2021-02-01"),
    head(INSTANCE + "&format=json"),
    head("/metadata/instance?format=json&api-version=2021-02-01"),
    head(NETWORK),
    head("/metadata/instance/compute?api-version=2021-02-01"),
    head("/metadata/instance/compute/name?api-version=2021-12-13&format=text"),
    head("/metadata/instance/absent?api-version=2021-02-01"),
    head("/metadata/instance"),
    head(ATTESTED),
    head(ATTESTED + "&nonce=1234567890"),
    head("/metadata/identity/info?api-version=2018-02-01"),
    head("/metadata/identity/other?api-version=2018-02-01"),
    head("/metadata/denied"),
    head("/metadata/unknown"),
    head("/-/healthy"),
    head("/-/ready"),
    head("/-/nothing"),
    head("/favicon.ico"),
    head("/"),
    of_length(LONGEST_KNOWN - 1),
    of_length(LONGEST_KNOWN + 1),
    of_length(65_000),
    of_length(66_000),
    head(INSTANCE, *(b"X-%d: 1" % number for number in range(98))),
    head(INSTANCE, *(b"X-%d: 1" % number for number in range(99))),
    head(INSTANCE, end=b"\n"),
    b"\r\n" + head(INSTANCE),
    head(INSTANCE) + b"\r\n",
    b"\r\n\r\n",
    b"\n",
    head(INSTANCE, b"X-Folded: a\r\n b"),
    head(INSTANCE, b"X-Odd: a\x00b"),
    head(INSTANCE, b"X-Latin: \xe4\xf6"),
    head(INSTANCE, b"No colon"),
    head(INSTANCE, b"Space : 1"),
    head(INSTANCE, b": 1"),
    head("/metadata/ä"),
    head("/metadata/instance?api-version=2021-02-01 x"),
    b"GET " + INSTANCE.encode() + b"\r\n\r\n",
    b"nonsense\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"GET",
]

# --- Events


class Send(NamedTuple):
    """A client sends, each piece a read of its own, the next when all is done that the one before brought about."""

    connection: int
    reads: tuple[bytes, ...]
    pause: float = 0.0
    """Seconds after each."""


class Repeat(NamedTuple):
    """A client sends the same again and again."""

    connection: int
    data: bytes
    times: int
    pause: float


class Visit(NamedTuple):
    """Clients connect one after another, each with its first request, whether or not the one before has gone."""

    connection: int
    data: bytes
    times: int
    pause: float


class Pass(NamedTuple):
    """Time passes."""

    seconds: float


class Sky(NamedTuple):
    """What IMDS does from now on."""

    weather: str
    latency: float
    life: str
    document: int


class Take(NamedTuple):
    """A client reads so many bytes more, and then no more."""

    connection: int
    size: float


class Leave(NamedTuple):
    """A client sends no more, or is gone altogether."""

    connection: int
    vanishes: bool


class Told(NamedTuple):
    """The server gets a command: drop all entries, end a connection, stop."""

    word: str
    connection: int = 0


EXAMPLE = ROOT / "config" / "access.toml"

Step = Send | Repeat | Visit | Pass | Sky | Take | Leave | Told


class House(NamedTuple):
    """The settings of both proxies."""

    derive: bool = False
    access_log: bool = True
    warm: bool = False
    latency: float = 0.0
    budget_requests: int = 100
    cache_max_bytes: int = 1 << 24
    require_metadata_header: str = "credentials"
    unix: bool = False
    rules: bool = False
    """Whether the example of access rules is in force, by which a client gets the instance document and no tokens."""

    def settings(self) -> dict[str, Any]:
        values = self._asdict()
        del values["warm"], values["latency"], values["unix"]
        values["access_file"] = str(EXAMPLE) if values.pop("rules") else None
        return values


LIVES = {
    **{str(life): f'"{life}"' for life in (0, 1, 299, 300, 301, 302, 303, 333, 400, 601, 602, 3599, 86399, 604800)},
    **{f"bare {life}": f"{life}" for life in (305, 700, 86400)},
    **dict.fromkeys(("604801", "-1", "1e3", "700.5", "0700"), '"{}"'),
    "null": "null",
    "text": '"soon"',
    "spaced": ' "900" ',
    "zeros": '"0900"',
}
WEATHERS = ["fine"] * 14 + ["gone", "broken", "busy", "down", "slow", "absent", "bad", "forbidden", "aged", "odd"]


def imds_answers(sky: Sky, sent: Sent, count: int) -> Response | Failure:
    failures: dict[str, Response | Failure] = {
        "gone": status(410),
        "broken": status(500),
        "busy": status(429),
        "down": DOWN,
        "slow": SLOW,
    }
    refusals = {"absent": status(404), "bad": status(400), "forbidden": status(403)}
    if sky.weather in failures:
        return failures[sky.weather]
    if sky.weather in refusals:
        return refusals[sky.weather]
    headers: Headers = ()
    if sky.weather == "aged":
        headers = ((b"age", b"7"), (b"cache-status", b"other; hit; ttl=3"))
    elif sky.weather == "odd":
        headers = ((b"date", b"Mon, 01 Jan 2024 00:00:00 GMT"), (b"x-ms-odd", b""), (b"x-ms-odd", b"\xe4 b"))
    if "absent" in sent.target:
        return status(404)
    if "oauth2/token" in sent.target:
        life = LIVES[sky.life].format(sky.life)
        return ok(f'{{"access_token":"t{count}","expires_in":{life},"token_type":"Bearer"}}', headers=headers)
    if "format=text" in sent.target:
        return Response(200, ((b"content-type", b"text/plain; charset=utf-8"), *headers), b"leaf %d" % sky.document)
    compute = {"vmId": f"id {sky.document}", "name": "vm", "tags": "x" * (30_000 if "2021-12-13" in sent.target else 9)}
    return ok(json.dumps({"compute": compute, "network": {"n": count}}, separators=(",", ":")), headers=headers)


# --- The two proxies


class _CountedHeads(KnownHeads):
    def __init__(self, application: _Counted, max_bytes: int) -> None:
        super().__init__(application.proxy, max_bytes)
        self._ways = application.ways

    def find(self, head: bytes, now: float, unix: bool, /) -> tuple[RenderedHit, bool] | None:
        found = super().find(head, now, unix)
        self._ways["repeated"] += found is not None
        return found


class _NoKernel:
    """Looks up clients that have no sockets: nothing is known of any of them but the address."""

    def find(self, connection: Accepted, _client: tuple[str, int] | None = None) -> Peer:
        return _peer_at(connection._peer)

    def can_find_process(self, _peer: Peer) -> bool:
        return False

    def close(self) -> None:
        return


def _peer_at(address: tuple[str, int] | None) -> Peer:
    return Peer(address=None if address is None else address[0], unknown="there is no socket")


def _peer(connection: Connection) -> Peer:
    """Return the client of a connection without a socket."""
    return _peer_at(connection.transport.get_extra_info("peername"))


class _Counted(Application):
    """An application that knows by which way it was asked how often."""

    def __init__(self, **parts: Any) -> None:
        super().__init__(**parts)
        self.ways: Counter[str] = Counter()
        self.known_heads = _CountedHeads(self, parts["shares"].heads)
        self.peers = cast("PeerLookup", _NoKernel())

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.ways["full"] += 1
        await super().__call__(scope, receive, send)

    def fresh_hit(
        self,
        raw: bytes,
        headers: Sequence[tuple[bytes, bytes]],
        now: float,
        accepted_hosts: AcceptedHosts,
        http_version: str = "1.1",
        *,
        subject: Subject = UNKNOWN_SUBJECT,
    ) -> tuple[RenderedHit, Key] | None:
        found = super().fresh_hit(raw, headers, now, accepted_hosts, http_version, subject=subject)
        self.ways["at once"] += found is not None
        return found


class _Log(logging.Handler):
    """Keeps what was logged, but for how long anything took."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[tuple[object, ...]] = []

    def emit(self, record: logging.LogRecord) -> None:
        fields = {name: value for name, value in getattr(record, "fields", {}).items() if name != "milliseconds"}
        error = record.exc_info[0] if record.exc_info else None
        self.lines.append((record.name, record.levelname, record.getMessage(), fields, error))


@contextlib.contextmanager
def logged() -> Iterator[_Log]:
    """Capture the log of the proxies."""
    log = _Log()
    loggers = [logging.getLogger(name) for name in ("imdsproxy", "uvicorn.error", "asyncio")]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(log)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield log
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(log)
            logger.setLevel(level)
            logger.propagate = propagate


class Line(NamedTuple):
    """What can be seen of one connection."""

    received: list[tuple[float, bytes]]
    closing: bool
    end: tuple[float, str] | None
    reading: bool
    silent: bool


class Seen(NamedTuple):
    """What a step brought about."""

    lines: list[Line]
    asked: list[tuple[float, str, str, bytes]]
    log: list[tuple[object, ...]]
    answers: dict[tuple[str, Outcome, int, str | None], tuple[tuple[int, ...], float]]
    served: int
    connections: int
    tasks: int
    entries: int
    bytes: int


async def _nothing_to_close() -> None:
    return


class World:
    """A proxy with its clients and its IMDS."""

    def __init__(self, way: type[Connection], house: House, log: _Log, *, accepts: bool = False) -> None:
        """With `accepts`, the first bytes of a connection arrive before it is accepted, and `Arrivals` takes it."""
        self.log = log
        self.sky = Sky("fine", house.latency, "86399", 0)
        self.loop = SteppedLoop()
        self.imds = Imds(self._answer, house.latency)
        config = replace(NOWHERE, deny=("/metadata/denied",), **house.settings())
        clock = VirtualClock()
        self.application = assemble(config, build(config, self.imds, clock), clock, _nothing_to_close, _Counted)
        self.proxy = self.application.proxy
        if not issubclass(way, FastPathConnection):
            self._write_every_hit_anew()
        collectors = self.application.metrics.registry._collector_to_names
        self._answers = next(one for one in collectors if isinstance(one, _Answers))
        self.state = ServerState()
        self.ways = self.application.ways
        connection_limit = ConnectionLimit(10_000)
        way = type(way.__name__, (way,), {"unix": house.unix, "connection_limit": connection_limit, "peer": _peer})
        self.config = uvicorn_config(self.application, way)
        self.config.load()
        self.way = way
        self.arrivals = Arrivals(
            application=self.application,
            connection_limit=connection_limit,
            make=self._make,
            state=self.state,
            loop=self.loop,
            first=FirstRequests(self.application, unix=house.unix),
        )
        self.accepts = accepts
        self.wires: list[tuple[int, Wire | Accepted, Connection | None]] = []
        self._asked = 0
        # As the lifespan does it, or not at all: with the first request, readiness would ask after random pauses.
        become = self.application.readiness.become() if house.warm else asyncio.sleep(0)
        getting_ready = self.application.lifetime.getting_ready = self.loop.create_task(become)
        self.loop.run_on(1.0 if house.warm else 0.0)
        assert getting_ready.done(), "from here on it would ask again after pauses of any length"

    def _answer(self, sent: Sent) -> Response | Failure:
        return imds_answers(self.sky, sent, self.imds.count)

    def _write_every_hit_anew(self) -> None:
        """Forget every rendered hit, so that the full path renders again too."""
        find, store = self.proxy.hit, self.proxy.store

        def hit(key: Key, endpoint: str, now: float) -> RenderedHit | None:
            kept = store.peek(key)
            if find(key, endpoint, now) is None or kept is None or kept.entry is None:
                return None
            return write(kept.entry, endpoint, now)

        self.proxy.hit = hit  # type: ignore[method-assign]

    def perform(self, step: Step) -> Seen:
        """Take a step, to the end of all that follows from it at once."""
        match step:
            case Send() | Repeat() | Visit():
                self._perform_sending(step)
            case Pass(seconds):
                self.loop.run_on(seconds)
            case Sky():
                self.sky = step
                self.imds.latency = step.latency
            case Take(connection, size):
                if self._latest(connection) is None:
                    self._connect(connection)
                self._each(connection, lambda wire: wire.take(size))
            case Leave(connection, vanishes):
                self._each(connection, Wire.vanish if vanishes else Wire.finish)
            case Told(word, connection):
                self.loop.call_soon(self._hear, word, connection)
        self.loop.run_on()
        return self.loop.call(self._look)

    def _perform_sending(self, step: Send | Repeat | Visit) -> None:
        connect_or_send = self._connect if isinstance(step, Visit) else self._send
        for data in step.reads if isinstance(step, Send) else [step.data] * step.times:
            connect_or_send(step.connection, self._addressed(data))
            self.loop.run_on(step.pause)

    def figures(self) -> list[tuple[object, ...]]:
        """Return the proxy's figures, without those of the process, as the library is given them to write as text."""
        families = self.loop.call(lambda: list(self.application.metrics.registry.collect()))
        ours = [family for family in families if family.name.startswith("imdsproxy_")]
        assert ours
        return sorted(
            (family.name, family.type, family.documentation, name, tuple(labels.items()), repr(value))
            for family in ours
            for name, labels, value, *_ in family.samples
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        for _, wire, _ in self.wires:
            if isinstance(wire, Wire):
                self.loop.call_soon(wire.abort)
        self.loop.run_on()
        self.loop.end()

    def _each(self, connection: int, do: Callable[[Wire], None]) -> None:
        for number, wire, _ in self.wires:
            if number == connection and isinstance(wire, Wire):
                do(wire)

    def _send(self, connection: int, data: bytes) -> None:
        wire = self._latest(connection)
        if wire is None:
            self._connect(connection, data)
        else:
            wire.send(data)

    def _addressed(self, data: bytes) -> bytes:
        return data.replace(OWN_NAME, self.application.accepted_hosts(unix=False).instance.encode("ascii"))

    def _latest(self, connection: int) -> Wire | None:
        """Return the latest connection of that number, unless the server has ended it."""
        wire = next((wire for number, wire, _ in reversed(self.wires) if number == connection), None)
        return None if not isinstance(wire, Wire) or wire.is_closing() else wire

    def _connect(self, number: int, data: bytes = b"") -> None:
        """Connect, and send something if there is anything to be sent."""
        # By a Unix socket there is no address. Each other connection has one of its own, to sort the log by.
        count = len(self.wires)
        address = (f"127.0.{count}.{number}", 50_000) if number else None
        if self.accepts:
            self._arrive(number, Accepted(self.loop, address, data, share=[1, 0.5, 1, 0][count % 4]), address)
            return
        protocol = self._make()
        wire = Wire(self.loop, protocol, address)
        self.wires.append((number, wire, protocol))
        self.loop.run_on()
        if data:
            wire.send(data)
            self.loop.run_on()

    def _make(self) -> Connection:
        return self.way(config=self.config, server_state=self.state, app_state={}, _loop=self.loop)

    def _arrive(self, number: int, accepted: Accepted, address: tuple[str, int] | None) -> None:
        """Arrive as a connection that an `Acceptor` has accepted."""
        is_served = self.loop.call(lambda: self.arrivals.take(cast("socket.socket", accepted), address))
        self.wires.append((number, accepted.wire or accepted, accepted.protocol))
        if is_served:
            self.ways["first, last" if accepted.protocol is None else "first"] += 1

    def _hear(self, word: str, connection: int) -> None:
        match word:
            case "drop":  # SIGHUP
                self.application.drop_entries()
            case "end":
                for number, _, protocol in self.wires:
                    if number == connection and protocol in self.state.connections:
                        protocol.shutdown()
            case "stop":
                self.application.readiness.stopping = True
                for protocol in [one for _, _, one in self.wires if one in self.state.connections]:
                    protocol.shutdown()

    def _look(self) -> Seen:
        asked = self.imds.sent[self._asked :]
        self._asked += len(asked)
        lines = [_line(wire, protocol) for _, wire, protocol in self.wires]
        # What the server says of a read and what the application says of a request in it have no order of their own,
        # nor have requests of two connections that are answered, or that are sent to IMDS, at the same moment.
        log = sorted(self.log.lines, key=lambda line: (str(line[0]), _client_of(line)))
        self.log.lines.clear()
        return Seen(
            lines,
            sorted((sent.at, sent.method, sent.target, sent.body) for sent in asked),
            log,
            # What the metrics of answers are made from; `figures` compares all of them, at the end.
            {key: (tuple(times.within), times.seconds) for key, times in self._answers._tallies._times.items()},
            self.state.total_requests,
            len(self.state.connections),
            len(self.state.tasks),
            len(self.proxy.store),
            self.proxy.store.bytes,
        )


def _line(wire: Wire | Accepted, protocol: Connection | None) -> Line:
    """Return what can be seen of a connection since the last time."""
    received = wire.received[:]
    wire.received.clear()
    if isinstance(wire, Accepted) or protocol is None:
        return Line(received, closing=True, end=wire.end, reading=False, silent=False)
    return Line(received, wire.is_closing(), wire.end, wire.is_reading(), protocol.silent)


def _client_of(line: tuple[object, ...]) -> str:
    """Return the client that a line of the access log speaks of."""
    fields = line[3]
    return str(fields.get("client", "")) if isinstance(fields, dict) else ""


# --- Histories


def _weighted(*choices: tuple[int, st.SearchStrategy[Drawn]]) -> st.SearchStrategy[Drawn]:
    """Draw from one of them; `one_of` would pass over a strategy that is given twice."""
    return st.sampled_from([one for weight, one in choices for _ in range(weight)]).flatmap(lambda one: one)


_connections = st.sampled_from([0, 0, 0, 0, 1, 1, 2])


def _altered(data: bytes, at: int, byte: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([byte]) + data[at + 1 :]


def _pieces(messages: Sequence[bytes], cuts: Sequence[int]) -> tuple[bytes, ...]:
    data = b"".join(messages)
    ends = sorted({cut % (len(data) + 1) for cut in cuts} | {0, len(data)})
    return tuple(data[begin:end] for begin, end in pairwise(ends))


_built = st.builds(
    lambda target, fields, bare: head(target, common=tuple(fields), end=b"\n" if bare == 9 else b"\r\n"),
    st.sampled_from([INSTANCE, TOKEN, LEAF, VERSIONS, BIG, NETWORK]),
    st.lists(
        st.sampled_from(
            [
                *([HOST, METADATA] * 3),
                *(b"HOST: LOCALHOST", b"metadata:true", b"X-Id: 1", b"X-Id: 2", b"Accept: */*", b"Content-Length: 0"),
                *(b"Connection: keep-alive", b"Connection: close", b"Cache-Control: no-cache", b"Expect: 100-continue"),
                *(b"X-Forwarded-For: 1", b"Upgrade: h2c", b"Transfer-Encoding: chunked", b"Metadata: false"),
            ]
        ),
        max_size=5,
        unique=True,
    ),
    st.integers(0, 9),
)
_whole = _weighted((5, st.sampled_from(HITS)), (1, st.sampled_from(WISHES)), (3, st.sampled_from(OTHERS)), (1, _built))
_tracing = st.sampled_from(
    [
        *(b"X-Ms-Client-Request-Id: %d\r\n" % number for number in range(4)),
        *(b"traceparent: 00-a-b-01\r\n", b"TRACESTATE:\r\n", b"baggage: a\r\n folded\r\n", b"request-id: \xe4\r\n"),
        *(b"request-id: a\r\n\r\n", b"Request-Id: a\n", b" traceparent: 1\r\n", b"traceparent : 1\r\n", b"baggage: 1"),
        b"traceparent: 1\r\n" * 97,
    ]
)


def _with_line(data: bytes, line: bytes, number: int) -> bytes:
    """Insert bytes before one of the lines, or behind the last."""
    lines = data.split(b"\r\n")
    at = number % (len(lines) + 1)
    return b"\r\n".join(lines[:at]) + (b"\r\n" if 0 < at < len(lines) else b"") + line + b"\r\n".join(lines[at:])


_traced = st.builds(_with_line, st.sampled_from(HITS), _tracing, st.sampled_from([1, 1, 2, 3, 4, 5, 6]))
_messages = _weighted(
    (5, _whole),
    (3, _traced),
    (1, st.builds(_altered, st.sampled_from(HITS), st.integers(0, 200), st.integers(0, 255))),
    (1, st.builds(_altered, _whole, st.integers(0, 5000), st.integers(0, 255))),
)
_cuts: st.SearchStrategy[list[int]] = st.one_of(
    st.just([]), st.lists(st.integers(0, 300), max_size=3), st.lists(st.integers(0, 70_000), max_size=2)
)

_MOMENTS = [
    *(_TICK, 2 * _TICK, 0.001, 0.05, 0.25, 0.5, 1 - _TICK, 1.0, 1 + _TICK, 1.5, 2.0, 4.0, 5.0),
    *(9.9, 10 - _TICK, 10.0, 10.1, 29.0, 30.0, 31.0, 59.0, 60 - _TICK, 60.0, 61.0, 74.9, 75 - _TICK, 75.0, 75.1, 80.0),
    *(120.0, 150.0, 166.5, 200.0, 299.0, 300.0, 301.0, 600.0, 1800.0, 3599.0, 3600.0, 7200.0, 43_200.0, 86_399.0),
]
# Without any, all would be asked in the very moment in which Age and ttl move on, where no hit is given twice.
_pauses = st.sampled_from([*[0.004] * 6, 0.0, 0.0, _TICK, 0.25, 1 - _TICK, 1.0, 7.5, 30.0, 70.0])

_send = st.builds(
    lambda connection, messages, cuts, pause: Send(connection, _pieces(messages, cuts), pause),
    _connections,
    _weighted((1, _messages.map(lambda message: [message])), (1, st.lists(_messages, min_size=1, max_size=4))),
    _cuts,
    _pauses,
)
_repeat = st.builds(
    Repeat, _connections, _weighted((4, st.sampled_from(HITS)), (1, _messages)), st.integers(2, 8), _pauses
)
_visit = st.builds(
    Visit,
    st.sampled_from([1, 2]),
    _weighted((3, st.sampled_from(HITS)), (3, st.sampled_from(LAST_HITS)), (1, _messages)),
    st.integers(2, 8),
    _pauses,
)
_pass = st.builds(Pass, st.one_of(st.sampled_from(_MOMENTS), st.floats(_TICK, 100.0)))
_sky = st.builds(
    Sky,
    st.sampled_from(WEATHERS),
    st.sampled_from([0.0, 0.0, 0.05, 0.9, 7.0, 80.0]),
    st.sampled_from([*["86399"] * 20, *LIVES]),
    st.integers(0, 3),
)
_take = st.builds(Take, _connections, st.sampled_from([0, 0, 0, 1, 1000, 30_000, 60_000, 100_000, *[math.inf] * 3]))
_leave = st.builds(Leave, _connections, st.booleans())
_told = st.builds(Told, st.sampled_from(["drop"] * 4 + ["end"] * 3 + ["stop"]), _connections)
_steps = _weighted((8, _repeat), (6, _send), (8, _visit), (4, _pass), (2, _sky), (2, _take), (1, _leave), (1, _told))
# Three lists make longer histories than one.
HISTORIES = st.tuples(*[st.lists(_steps, max_size=20)] * 3).map(lambda parts: [step for part in parts for step in part])
HOUSES = st.builds(
    House,
    derive=st.booleans(),
    access_log=st.booleans(),
    warm=st.booleans(),
    latency=st.sampled_from([0.0, 0.0, 0.0, 0.05]),
    budget_requests=st.sampled_from([100, 100, 5]),
    cache_max_bytes=st.sampled_from([1 << 24, 1 << 24, 12_400, 44_400]),
    require_metadata_header=st.sampled_from(["credentials", "credentials", "always", "never"]),
    unix=st.booleans(),
    rules=st.sampled_from([False, False, True]),
)

# --- Properties


FAST_PATH = connection_class(Connection.header_timeout)


class _Steady(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


@contextlib.contextmanager
def steady_pauses() -> Iterator[None]:
    """Take the chance out of the pauses between two questions whether IMDS is there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(warmup, "_RANDOM", _Steady())
        yield


def compare(house: House, history: Sequence[Step], fast: type[Connection] = FAST_PATH) -> Counter[str]:
    """Run a history with the fast path and without it. Return the number of requests on each path."""
    with (
        logged() as log,
        steady_pauses(),
        World(Connection, house, log) as without,
        World(fast, house, log) as with_it,
        World(fast, house, log, accepts=True) as accepting,
    ):
        log.lines.clear()
        for step in history:
            expected = without.perform(step)
            assert with_it.perform(step) == expected, step
            assert accepting.perform(step) == expected, step
        assert with_it.figures() == without.figures() == accepting.figures()
        assert without.ways.keys() <= {"full"}
        # What is written to a client that does not read stays within the limit and one answer more.
        assert all(wire.fullest <= HIGH_WATER_LIMIT + 31_000 for _, wire, _ in with_it.wires if isinstance(wire, Wire))
    return accepting.ways


@settings(max_examples=examples(600), deadline=None)
@given(house=HOUSES, history=HISTORIES)
def test_fast_path_and_full_path_behave_the_same(house: House, history: list[Step]) -> None:
    compare(house, history)


KNOWN: list[Step] = [Repeat(0, HITS[0], 3, 0.01), Repeat(0, HITS[1], 3, 0.01)]
REFUSED = [b"nonsense\r\n\r\n", head(version="2.0"), head(method="BREW"), of_length(66_000), head(TOKEN, end=b"\n")]


@pytest.mark.parametrize("number", range(len(WISHES + OTHERS)))
def test_other_heads_beside_known_ones_behave_the_same(number: int) -> None:
    other = (WISHES + OTHERS)[number]
    halves = (other[: len(other) // 2], other[len(other) // 2 :])
    again = Repeat(0, HITS[1], 1, 0.01)
    ways = ((other,), halves, (HITS[0] + other,), (other + HITS[0],), (HITS[1][:-2], b"\r\n" + other))
    # In `make test` each head arrives in two of the ways, and the next head in others.
    for reads in size(short=(ways[number % 5], ways[(number + 2) % 5]), full=ways):
        compare(
            House(), [*KNOWN, Send(0, reads), *KNOWN, Repeat(1, other, 3, 0.25), again, Pass(1.0), again, Pass(80.0)]
        )


@pytest.mark.parametrize("refused", REFUSED, ids=range(len(REFUSED)))
@pytest.mark.parametrize("between", [b"", b"\r\n", head(TOKEN), head(INSTANCE, b"Transfer-Encoding: chunked")])
def test_refusal_after_a_hit_in_one_read_behaves_the_same(refused: bytes, between: bytes) -> None:
    compare(House(), [*KNOWN, Send(0, (HITS[0] + between + refused,)), *KNOWN])


def test_refusal_after_a_hit_in_pieces_behaves_the_same() -> None:
    compare(House(), [*KNOWN, Send(0, (HITS[0][:-3], HITS[0][-3:] + REFUSED[0])), *KNOWN])


@pytest.mark.parametrize("size", [0, 20_000, 60_000])
@pytest.mark.parametrize("data", [HITS[4], HITS[4] * 5, HITS[0], HITS[0] + HITS[4]])
def test_client_that_does_not_read_is_treated_the_same(data: bytes, size: int) -> None:
    known: list[Step] = [Repeat(1, one, 3, 0.01) for one in (HITS[0], HITS[4])]
    stuffed: list[Step] = [
        *known,
        Take(0, 0),
        Repeat(0, HITS[4], 4, 0.01),
        Repeat(0, data, 3, 1.0),
        Take(0, size),
        *known,
    ]
    compare(House(), [*stuffed, Repeat(0, data, 3, 0.01), Take(0, math.inf), Repeat(0, data, 2, 0.01)])
    compare(House(), [*stuffed, Repeat(0, data, 3, 0.01), Pass(80.0)])


@pytest.mark.parametrize("behind", [HITS[0], HITS[0] * 2, WISHES[1] + HITS[0], OTHERS[0], b"nonsense\r\n\r\n"])
def test_request_behind_a_waiting_one_behaves_the_same(behind: bytes) -> None:
    slow = [*KNOWN, Sky("fine", 7.0, "86399", 0), Send(0, (WISHES[0],)), Repeat(0, behind, 2, 0.25)]
    compare(House(), [*slow, Pass(7.0), *KNOWN])
    compare(House(), [*slow, Told("end"), Pass(7.0), *KNOWN])
    compare(House(), [*slow, Leave(0, vanishes=True), Pass(7.0), *KNOWN])


def _borrowing(make: Callable[[bytes], bytearray | memoryview]) -> Callable[[bytes], bytearray | memoryview]:
    """Return what lends each read to the protocol until the next, as a loop that has one buffer for all reads."""
    lent: list[bytearray | memoryview] = []

    def lend(data: bytes) -> bytearray | memoryview:
        for old in lent:
            old[:] = bytes(len(old))
        lent[:] = [make(data)]
        return lent[0]

    return lend


@pytest.mark.attack(23)
@pytest.mark.parametrize("way", [Connection, FAST_PATH])
@pytest.mark.parametrize("make", [bytearray, lambda data: memoryview(bytearray(data))], ids=["bytearray", "memoryview"])
def test_reads_of_other_buffer_types_are_answered_like_bytes(
    way: type[Connection], make: Callable[[bytes], bytearray | memoryview], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows' event loop passes a bytearray."""
    others: list[Step] = [Repeat(2, other, 3, 0.25) for other in (*WISHES, *OTHERS, *REFUSED)]
    halves: list[Step] = [Send(1, (one[:20], one[20:])) for one in (*HITS, *REFUSED)]
    history = [*KNOWN, *others, *(Repeat(0, hit, 4, 0.01) for hit in HITS), *halves, *KNOWN]

    def live() -> tuple[list[Seen], list[tuple[object, ...]], Counter[str]]:
        with logged() as log, steady_pauses(), World(way, House(), log) as world:
            return [world.perform(step) for step in history], world.figures(), world.ways

    expected = live()
    monkeypatch.setattr(Wire, "lent", staticmethod(_borrowing(make)))
    assert live() == expected


@pytest.mark.parametrize("line", [b"traceparent: 1\r\n" * 90, b"X-Pad: " + b"x" * 10_000 + b"\r\n"])
def test_large_head_leaves_the_same_line_in_the_log(line: bytes) -> None:
    large = _with_line(head(TOKEN, b"User-Agent: curl/8", b"X-Ms-Client-Request-Id: 7"), line, 2)
    compare(House(access_log=True), [*KNOWN, Repeat(0, large, 3, 0.01), Repeat(1, large.lower(), 2, 0.01)])


def test_replaced_entry_is_not_served_again() -> None:
    for number, head_of_wish in ((0, WISHES[0]), (1, WISHES[1]), (0, WISHES[4]), (1, WISHES[5])):
        compare(House(), [Repeat(0, HITS[number], 3, 0.01), Send(1, (head_of_wish,)), Repeat(0, HITS[number], 3, 0.01)])


def test_dropped_entry_is_not_served_again() -> None:
    events = head(EVENTS)
    compare(House(), [Repeat(0, events, 3, 0.01), Send(1, (WISHES[-1],)), Repeat(0, events, 3, 0.01)])
    compare(House(), [Repeat(0, events, 3, 0.01), Told("drop"), Repeat(0, events, 3, 0.01)])


@settings(max_examples=examples(150), deadline=None)
@given(
    size=st.sampled_from([3_700, 6_200, 8_700, 11_100]),
    order=st.tuples(*[st.lists(st.sampled_from([0, 0, 1, 1, 2, 3, 5]), max_size=20)] * 3),
)
def test_evicted_entry_is_not_served_again(size: int, order: tuple[list[int], ...]) -> None:
    history = [Send(0, (HITS[number],), 0.004) for part in order for number in part]
    compare(House(cache_max_bytes=size), history)


@pytest.mark.any_python
def test_generated_histories_cover_every_path() -> None:
    ways: Counter[str] = Counter()

    @settings(max_examples=80, deadline=None, database=None, derandomize=True, phases=[Phase.generate])
    @given(house=HOUSES, history=HISTORIES)
    def live(house: House, history: list[Step]) -> None:
        with logged() as log, steady_pauses(), World(FAST_PATH, house, log, accepts=True) as world:
            for step in history:
                world.perform(step)
            ways.update(world.ways)

    live()
    assert min(ways["repeated"], ways["at once"], ways["full"], ways["first"], ways["first, last"]) > 50, ways


# --- Validity of a hit

_LIFETIMES = st.builds(
    Lifetimes,
    fresh=st.one_of(st.sampled_from([1.0, 5.0, 30.0, 60.0, 3600.0]), st.floats(0.01, 5000.0)),
    revalidate=st.just(0.0),
    stale_if_error=st.just(3600.0),
)


@st.composite
def _entries(draw: st.DrawFn) -> Entry:
    sent_at = draw(st.one_of(st.integers(0, 10**6).map(float), st.floats(0.0, 1e7)))
    taken = draw(st.sampled_from([0.0, 0.01, 2.3]))
    lifetimes = draw(_LIFETIMES)
    if draw(st.booleans()):
        life = draw(st.one_of(st.sampled_from([1000, 1001, 10_000, 100_000]), st.integers(310, 604_800)))
        response = ok(f'{{"access_token":"t","expires_in":"{life}"}}')
        lifetimes = replace(lifetimes, fresh=math.inf, token=True)
    else:
        age = draw(st.integers(0, 20))
        response = ok("{}", headers=((b"age", b"%d" % age),) if age else ())
    entry = make_entry(response, lifetimes, sent_at, sent_at + taken)
    assume(entry is not None and sent_at + taken < entry.fresh_until)
    assert entry is not None
    return entry


# Moments within the remaining time: any, and around the whole seconds.
_WHERE = st.tuples(st.floats(0.0, 1.0), st.sampled_from([None, None, -1e-5, -1e-6, -1e-7, 0.0, 1e-7, 1e-6, 1e-5]))


def _moment(entry: Entry, where: tuple[float, float | None]) -> float:
    share, off = where
    moment = entry.sent_at + share * (entry.fresh_until - entry.sent_at)
    if off is not None:
        begin = entry.sent_at if share < 0.5 else entry.fresh_until
        moment = begin + round(moment - begin) + off
    return max(moment, entry.sent_at)


@settings(max_examples=examples(500), deadline=None)
@given(entry=_entries(), where=_WHERE, share=st.floats(0.0, 1.0))
def test_hit_is_unchanged_until_its_own_end(entry: Entry, where: tuple[float, float | None], share: float) -> None:
    now = _moment(entry, where)
    assume(lookup(entry, now) is Freshness.FRESH)
    hit = write(entry, "instance", now)
    assert hit.until <= entry.fresh_until
    assert hit.until <= now + 1
    for later in (now + share * (hit.until - now), math.nextafter(hit.until, 0.0)):
        if now <= later < hit.until:
            again = write(entry, "instance", later)
            assert (again.served, again.head) == (hit.served, hit.head)
    soon = max(now, hit.until) + 3e-6  # and it is not rendered again without need
    if lookup(entry, soon) is Freshness.FRESH:
        again = write(entry, "instance", soon)
        assert again.served != hit.served
        after = write(entry, "instance", soon, hit)
        assert (after.served, after.head) == (again.served, again.head)


def test_connection_keeps_no_answer_in_memory() -> None:
    """It may be a body of a megabyte, or a token that SIGHUP was to do away with."""
    with logged() as log, steady_pauses(), World(FastPathConnection, House(), log) as world:
        for _ in range(5):  # parsed the full way, parsed on the fast path, known by its bytes
            world.perform(Repeat(0, HITS[0], 1, 0.25))
            held = [one for one in vars(world.wires[0][2]).values() if isinstance(one, (RenderedHit, tuple))]
            assert not any(isinstance(part, RenderedHit) for one in held for part in one)
