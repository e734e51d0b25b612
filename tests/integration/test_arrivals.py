"""What becomes of an accepted connection: real sockets, both event loops, in this process."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import socket
import struct
import sys
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from dataclasses import replace
from typing import Any, Self

import pytest
from uvicorn.server import ServerState

from imdsproxy.app import assemble
from imdsproxy.clock import SystemClock
from imdsproxy.parts.parts import build
from imdsproxy.server.application import Application
from imdsproxy.server.arrivals import MOST_TURNED_AWAY, Arrivals
from imdsproxy.server.connection import Connection
from imdsproxy.server.connection_limit import ANSWERED, ConnectionLimit
from imdsproxy.server.fast_path import connection_class
from imdsproxy.server.first_request import LONGEST_JOINED, FirstRequests
from imdsproxy.server.reader import Reader
from imdsproxy.server.run import uvicorn_config
from tests.scripted import NOWHERE, Imds, ok
from tests.targets import INSTANCE, TOKEN

if sys.platform == "win32":
    pytest.skip("the loop of Windows accepts by itself", allow_module_level=True)

import uvloop

LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
LONG = "/metadata/instance?api-version=2021-12-13"
LONGER = "/metadata/instance?api-version=2023-07-01"
UNKNOWN = "/metadata/unknown"
SIZES = {INSTANCE: 100, LONG: LONGEST_JOINED - 200, LONGER: 600_000}
CLOSE = b"Connection: close\r\n"
KEPT_LIMIT = 4
_PATIENCE = 20
_RESET = struct.pack("ii", 1, 0)


def head(target: str = INSTANCE, fields: bytes = b"", version: str = "1.1") -> bytes:
    return f"GET {target} HTTP/{version}\r\nHost: localhost\r\nMetadata: true\r\n".encode() + fields + b"\r\n"


async def _close() -> None:
    return


def _imds() -> Imds:
    documents = {target: ok('{"compute":"%s"}' % ("x" * size)) for target, size in SIZES.items()}
    token = ok('{"access_token":"t","expires_in":"86399","token_type":"Bearer"}')
    return Imds(lambda sent: documents.get(sent.target, token), raw=True)


class House:
    """A listener whose connections are accepted by the test."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        unix: bool,
        limit: int = 1000,
        fast: bool = True,
        access_log: bool = False,
        clients: tuple[str, ...] = (),
    ) -> None:
        clock = SystemClock()
        config = replace(NOWHERE, access_log=access_log, clients=clients, ttl=(("/metadata/instance", 600.0),))
        self.loop = loop
        self.unix = unix
        self.connection_limit = ConnectionLimit(limit)
        self.application = assemble(config, build(config, _imds(), clock), clock, _close, Application)
        self.application.lifetime.getting_ready = loop.create_task(asyncio.sleep(0))
        self.state = ServerState()
        self.way = connection_class(10.0, unix=unix, connection_limit=self.connection_limit)
        self.uvicorn = uvicorn_config(self.application, self.way)
        self.uvicorn.load()
        self.arrivals = Arrivals(
            application=self.application,
            connection_limit=self.connection_limit,
            make=self._make,
            state=self.state,
            loop=loop,
            first=FirstRequests(self.application, unix=unix) if fast else None,
        )
        self._stack = ExitStack()
        self._listening = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_raised: object) -> None:
        for connection in self.connections:
            connection.transport.abort()
        await self.emptied()
        self._stack.close()

    async def emptied(self) -> None:
        """Wait until no connection is left."""
        async with asyncio.timeout(_PATIENCE):
            while self.members:  # noqa: ASYNC110  # the limit of connections has no event
                await asyncio.sleep(0.01)

    def _make(self) -> Connection:
        return self.way(config=self.uvicorn, server_state=self.state, app_state={}, _loop=self.loop)

    def connect(self, sent: bytes = b"", *, send_buffer: int = 0) -> tuple[Client, socket.SocketType, Any]:
        """Connect and send; return the client, and its connection and address as accept(2) returns them."""
        if self.unix:
            near, far = socket.socketpair()
            address: Any = ""
        else:
            near = socket.socket()
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, send_buffer or 1 << 20)
            near.connect(self._listening.getsockname())
            far, address = self._listening.accept()
        if send_buffer:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        if sent:
            near.sendall(sent)
        near.setblocking(False)  # noqa: FBT003  # the standard library's signature
        client = Client(self.loop, self._stack.enter_context(near))
        accepted = socket.SocketType(far.family, far.type, far.proto, far.detach())  # as from an `Acceptor`
        self._stack.callback(accepted.close)
        return client, accepted, address

    async def take(self, sent: bytes = b"", *, send_buffer: int = 0) -> tuple[Client, bool]:
        """Connect, send, accept; return the client, and whether its request is served already."""
        client, accepted, address = self.connect(sent, send_buffer=send_buffer)
        is_served = self.arrivals.take(accepted, address)
        await self.arrivals.wait()
        return client, is_served

    async def warm(self, *targets: str) -> None:
        """Have a fresh entry for each target."""
        for target in targets:
            client, _ = await self.take(head(target, CLOSE))
            assert b" 200 " in await client.read_all()

    @property
    def connections(self) -> list[Connection]:
        """Those with a transport."""
        return [each for each in self.state.connections if isinstance(each, Connection)]

    @property
    def members(self) -> int:
        return len(self.connection_limit._members)


class Client:
    """The other end of a connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connection: socket.socket) -> None:
        self.loop = loop
        self.socket = connection

    async def send(self, data: bytes) -> None:
        await self.loop.sock_sendall(self.socket, data)

    async def read_all(self) -> bytes:
        """Read to the end of the connection."""
        read = b""
        async with asyncio.timeout(_PATIENCE):
            while piece := await self.loop.sock_recv(self.socket, 65536):
                read += piece
        return read

    async def answer(self) -> bytes:
        """Read one answer, and hold that nothing follows it."""
        read = b""
        async with asyncio.timeout(_PATIENCE):
            while not _is_whole(read):
                piece = await self.loop.sock_recv(self.socket, 65536)
                assert piece, read
                read += piece
        return read

    @property
    def is_open(self) -> bool:
        try:
            return self.socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True


def _is_whole(answer: bytes) -> bool:
    before, found, body = answer.partition(b"\r\n\r\n")
    if not found:
        return False
    length = next(line for line in before.lower().split(b"\r\n") if line.startswith(b"content-length:"))
    assert len(body) <= int(length.split(b":")[1])
    return len(body) == int(length.split(b":")[1])


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Coroutine[Any, Any, None]], None]:
    def run_in_loop(main: Coroutine[Any, Any, None]) -> None:
        with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
            runner.run(main)

    return run_in_loop


@pytest.fixture(params=[False, True], ids=["tcp", "unix"])
def unix(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


Run = Callable[[Coroutine[Any, Any, None]], None]


@pytest.mark.parametrize("sent", [head(fields=CLOSE), head(version="1.0"), head(TOKEN, CLOSE)])
def test_hit_after_which_the_connection_ends_needs_no_transport(run: Run, unix: bool, sent: bytes) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix) as house:
            await house.warm(INSTANCE, TOKEN)
            client, is_served = await house.take(sent)
            assert is_served
            assert (house.connections, house.members) == ([], 0)
            answer = await client.read_all()
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"; hit; " in answer
            assert b"\r\nconnection: close\r\n\r\n{" in answer
            assert house.state.total_requests == 3

    run(main())


def test_descriptor_of_a_connection_that_stays_is_the_event_loops_alone(run: Run, unix: bool) -> None:
    """Otherwise it is closed twice, and the second time it can be the descriptor of something else."""

    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix) as house:
            client, accepted, address = house.connect(head())
            house.arrivals.take(accepted, address)
            await house.arrivals.wait()
            assert b" 200 " in await client.answer()
            assert accepted.fileno() == -1

    run(main())


def test_hit_on_a_connection_that_stays_is_followed_by_others(run: Run, unix: bool) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix) as house:
            await house.warm(INSTANCE)
            client, is_served = await house.take(head())
            assert is_served
            assert b"; hit; " in await client.answer()
            (connection,) = house.connections
            assert not connection.silent
            await client.send(head())
            assert b"; hit; " in await client.answer()
            await client.send(head(fields=CLOSE))
            assert b"; hit; " in await client.read_all()
            assert (house.members, house.state.total_requests) == (0, 4)

    run(main())


@pytest.mark.parametrize(
    ("pieces", "answers"),
    [
        ((b"", head(fields=CLOSE)), 1),
        ((head(fields=CLOSE)[:-1], b"\n"), 1),
        ((head() + head(fields=CLOSE),), 2),
        ((head() + b"\r\n", head(fields=CLOSE)), 2),
        ((head(fields=CLOSE + b"Content-Length: 3\r\n") + b"abc",), 1),
        ((head(fields=b"Content-Length: 3\r\n"), b"abc" + head(fields=CLOSE)), 2),
        ((head(fields=CLOSE + b"X-Pad: %b\r\n" % (b"x" * 5000)),), 1),
        ((head(UNKNOWN, CLOSE),), 1),
        ((head(LONGER, CLOSE),), 1),
        ((head(version="2.0"),), 1),
        ((b"nonsense\r\n\r\n",), 1),
    ],
    ids=range(11),
)
def test_everything_else_stays_unread_for_its_transport(
    run: Run, unix: bool, pieces: tuple[bytes, ...], answers: int
) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix) as house:
            await house.warm(INSTANCE, LONGER)
            client, is_served = await house.take(pieces[0])
            assert not is_served
            for piece in pieces[1:]:
                await client.send(piece)
            assert len(re.findall(rb"HTTP/1\.1 \d", await client.read_all())) == answers

    run(main())


@pytest.mark.parametrize("fields", [b"", CLOSE])
def test_answer_that_does_not_fit_in_the_buffer_is_sent_as_the_client_reads(
    run: Run, unix: bool, fields: bytes
) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix) as house:
            await house.warm(LONG)
            client, is_served = await house.take(head(LONG, fields), send_buffer=1)
            assert is_served
            (connection,) = house.connections
            assert connection.transport.get_write_buffer_size() > 0, "the test sent all of it at once"
            assert connection.transport.is_closing() == bool(fields)
            answer = await (client.read_all() if fields else client.answer())
            assert answer.endswith(b"x" * SIZES[LONG] + b'"}')
            if not fields:
                await client.send(head(LONG, CLOSE))
                assert await client.read_all()
            assert house.members == 0

    run(main())


def test_client_that_never_reads_the_rest_is_aborted_in_the_end(
    run: Run, unix: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Connection, "keep_alive", 0.1)

    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix) as house:
            await house.warm(LONG)
            for fields in (b"", CLOSE):
                await house.take(head(LONG, fields), send_buffer=1)
            await house.emptied()

    run(main())


def test_client_that_has_reset_its_connection_takes_nothing(run: Run) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=False) as house:
            await house.warm(INSTANCE)
            for sent in (b"", head(), head(fields=CLOSE)):
                client, accepted, address = house.connect(sent)
                client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                client.socket.close()
                house.arrivals.take(accepted, address)
                await house.arrivals.wait()
            await house.emptied()

    run(main())


@pytest.mark.parametrize("fields", [b"", CLOSE])
def test_client_that_has_ended_its_sending_gets_its_answer_and_the_end(run: Run, unix: bool, fields: bytes) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix) as house:
            await house.warm(INSTANCE)
            client, accepted, address = house.connect(head(fields=fields))
            client.socket.shutdown(socket.SHUT_WR)
            assert house.arrivals.take(accepted, address)
            assert b"; hit; " in await client.read_all()

    run(main())


def test_listener_without_first_requests_answers_over_a_transport(run: Run, unix: bool) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix, fast=False) as house:
            await house.warm(INSTANCE)
            client, is_served = await house.take(head(fields=CLOSE))
            assert not is_served
            assert b"; hit; " in await client.read_all()

    run(main())


async def _fill(house: House) -> list[Client]:
    """Reach the limit of connections; each is busy, because its head is not complete."""
    return [(await house.take(b"GET"))[0] for _ in range(house.connection_limit.limit)]


def test_hit_is_answered_at_the_limit_and_its_connection_closed(run: Run, unix: bool) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix, limit=KEPT_LIMIT) as house:
            await house.warm(INSTANCE, LONG)
            busy = await _fill(house)
            for sent in (head(), head(fields=CLOSE)):
                client, is_served = await house.take(sent)
                assert is_served
                assert b"; hit; " in await client.read_all()
                assert house.members == KEPT_LIMIT
            client, is_served = await house.take(head(LONG), send_buffer=1)
            assert is_served
            assert (await client.read_all()).endswith(b'x"}')
            client, is_served = await house.take(head(UNKNOWN))
            assert is_served
            assert (await client.read_all()).startswith(b"HTTP/1.1 503 ")
            assert house.members == KEPT_LIMIT
            assert all(each.is_open for each in busy)

    run(main())


def test_rest_of_an_answer_is_dropped_far_beyond_the_limit(run: Run, unix: bool) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix, limit=KEPT_LIMIT) as house:
            await house.warm(INSTANCE, LONG)
            busy = await _fill(house)
            slow = [(await house.take(head(LONG), send_buffer=1))[0] for _ in range(ANSWERED + 3)]
            assert house.members == KEPT_LIMIT + ANSWERED
            answers = [await client.read_all() for client in slow]
            assert [answer.endswith(b'x"}') for answer in answers] == [True] * ANSWERED + [False] * 3
            assert all(each.is_open for each in busy)

    run(main())


def test_idle_connections_make_room_for_one_that_stays(run: Run, unix: bool) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix, limit=KEPT_LIMIT) as house:
            await house.warm(INSTANCE)
            clients = []
            for _ in range(2 * KEPT_LIMIT):
                client, _ = await house.take(head())
                clients.append(client)
                assert b"; hit; " in await client.answer()
            assert clients[-1].is_open
            assert not clients[0].is_open
            assert house.members <= KEPT_LIMIT

    run(main())


def test_first_answers_are_logged_with_their_client(run: Run, unix: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with House(asyncio.get_running_loop(), unix=unix, access_log=True) as house:
            await house.warm(INSTANCE)
            await house.take(head())
            await house.take(head(fields=CLOSE))

    with caplog.at_level(logging.INFO, "imdsproxy.access"):
        run(main())
    lines = [vars(record)["fields"] for record in caplog.records if record.name == "imdsproxy.access"]
    assert [line["outcome"] for line in lines] == ["miss", "hit", "hit"]
    assert len({line["client"] for line in lines}) == 1
    assert lines[0]["client"].startswith(f"user {os.getuid()} ")
    assert (f", process {os.getpid()}" in lines[0]["client"]) is unix
    assert {line["path"] for line in lines} == {"/metadata/instance"}


OUTSIDER = ("10.0.0.9", 40000)
INSIDER = ("10.244.3.7", 40000)
POD_RANGE = ("10.244.3.0/24",)


def _refused_outsiders(house: House) -> int:
    return house.application.metrics.requests.responses()["4xx", "client"]


@pytest.mark.parametrize("fast", [True, False], ids=["fast path", "full path"])
def test_outsider_gets_403_before_anything_is_made_for_it(run: Run, fast: bool) -> None:
    async def visit() -> None:
        async with House(asyncio.get_running_loop(), unix=False, clients=POD_RANGE) as house:
            await house.warm(INSTANCE)
            sent = head() if fast else head(UNKNOWN)
            client, accepted, _ = house.connect(sent)
            assert house.arrivals.take(accepted, OUTSIDER)
            answer = await client.read_all()
            assert answer.startswith(b"HTTP/1.1 403 ")
            assert b"cache-status: imdsproxy; detail=client\r\n" in answer
            assert b"IMDSPROXY_CLIENTS" in answer
            assert (house.members, house.connections, _refused_outsiders(house)) == (0, [], 1)

            # A client of the range gets the same document.
            client, accepted, _ = house.connect(sent)
            house.arrivals.take(accepted, INSIDER)
            await house.arrivals.wait()
            assert (await client.answer()).startswith(b"HTTP/1.1 200 ")
            assert _refused_outsiders(house) == 1

    run(visit())


def test_few_outsiders_are_waited_for_and_take_no_place(run: Run) -> None:
    async def visit() -> None:
        async with House(asyncio.get_running_loop(), unix=False, limit=1, clients=POD_RANGE) as house:
            waiting = []
            for _ in range(MOST_TURNED_AWAY):
                client, accepted, _ = house.connect()
                assert not house.arrivals.take(accepted, OUTSIDER)
                waiting.append(client)
            await house.arrivals.wait()
            assert house.members == 0
            # The next is answered at once, and a client of the range is served.
            client, accepted, _ = house.connect()
            assert house.arrivals.take(accepted, OUTSIDER)
            assert (await client.read_all()).startswith(b"HTTP/1.1 403 ")
            client, accepted, _ = house.connect(head(UNKNOWN, CLOSE))
            house.arrivals.take(accepted, INSIDER)
            await house.arrivals.wait()
            assert (await client.read_all()).startswith(b"HTTP/1.1 200 ")
            # The first gets its answer after its request, and its place is free again.
            await waiting[0].send(head(UNKNOWN))
            assert (await waiting[0].read_all()).startswith(b"HTTP/1.1 403 ")
            client, accepted, _ = house.connect()
            assert not house.arrivals.take(accepted, OUTSIDER)
            await house.arrivals.wait()

    run(visit())


def test_loopback_and_the_unix_socket_may_ask_in_any_case(run: Run, unix: bool) -> None:
    async def visit() -> None:
        async with House(asyncio.get_running_loop(), unix=unix, clients=POD_RANGE) as house:
            client, _ = await house.take(head(UNKNOWN, CLOSE))
            assert (await client.read_all()).startswith(b"HTTP/1.1 200 ")

    run(visit())


def test_client_with_the_address_that_it_is_connected_to_is_this_machine(run: Run) -> None:
    async def visit() -> None:
        async with House(asyncio.get_running_loop(), unix=False, clients=POD_RANGE) as house:
            assert house.application.outsiders.include("169.254.20.10", lambda: "169.254.20.10") is False
            assert house.application.outsiders.include("169.254.20.10", lambda: "10.0.0.4") is True

    run(visit())


@pytest.mark.parametrize(("address", "status"), [(OUTSIDER, b"403"), (INSIDER, b"200")])
def test_outsider_is_turned_away_where_the_event_loop_accepts(
    run: Run, address: tuple[str, int], status: bytes
) -> None:
    async def visit() -> None:
        loop = asyncio.get_running_loop()
        async with House(loop, unix=False, clients=POD_RANGE) as house:
            client, accepted, _ = house.connect(head(fields=CLOSE))
            connection = house._make()
            connection.client = address
            owned = socket.socket(accepted.family, accepted.type, accepted.proto, accepted.detach())
            owned.setblocking(False)  # noqa: FBT003  # the standard library's signature
            await loop.connect_accepted_socket(lambda: Reader(connection), owned)
            assert (await client.read_all()).startswith(b"HTTP/1.1 " + status)

    run(visit())


def test_admin_listener_serves_every_client(run: Run) -> None:
    async def visit() -> None:
        loop = asyncio.get_running_loop()
        async with House(loop, unix=False, clients=POD_RANGE, fast=False) as house:
            client, accepted, _ = house.connect(head("/-/healthy", CLOSE))
            house.way.admin = True
            house.arrivals.take(accepted, OUTSIDER)
            await house.arrivals.wait()
            assert (await client.read_all()).startswith(b"HTTP/1.1 200 ")

    run(visit())
