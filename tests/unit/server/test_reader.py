"""The share of one connection in the loop's time and in the memory, in steps and bytes."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from imdsproxy.protocol.messages import Refusal
from imdsproxy.server.connection import Connection
from imdsproxy.server.connection_limit import Admission
from imdsproxy.server.connection_refusals import written
from imdsproxy.server.flow import Brake
from imdsproxy.server.held_bytes import HeldBytes
from imdsproxy.server.read_buffer import LONGEST_READ
from imdsproxy.server.reader import Reader

LEAST = b"GET / HTTP/1.1\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\n"


class _Transport(asyncio.Transport):
    """Notes whether it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.reading = True
        self.closing = False
        self.written = b""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        del name
        return default

    def write(self, data: Any) -> None:
        self.written += data

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        del high, low

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True


class _Application:
    """An application that answers each request at once, or never."""

    names_clients = False

    def __init__(self, *, answers: bool) -> None:
        self._answers = answers

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        del scope, receive
        if not self._answers:
            await asyncio.get_running_loop().create_future()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    def refuse(self, refusal: Refusal, client: str) -> bytes:
        del client
        return written(refusal)


_SILENT = _Application(answers=False)
_ANSWERING = _Application(answers=True)


def _connection(kind: type[Connection] = Connection, app: Any = _SILENT) -> tuple[Connection, _Transport]:
    config = uvicorn.Config(app, http=kind, lifespan="off", log_config=None, proxy_headers=False)
    config.load()
    connection, transport = kind(config, ServerState(), {}), _Transport()
    connection.connection_made(transport)
    return connection, transport


class _Parser:
    """Counts the steps of a parser."""

    def __init__(self, parser: Any) -> None:
        self._parser = parser
        self.steps = 0

    def feed_data(self, data: bytes) -> None:
        self.steps += 1
        self._parser.feed_data(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._parser, name)


@pytest.mark.parametrize(
    "begin",
    [
        POST + b"Content-Length: 1000000\r\n\r\n",
        POST + b"Transfer-Encoding: chunked\r\n\r\n7d000\r\n",
        b"GET / HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n",
        b"",
    ],
    ids=["a body", "a chunk", "a body of a GET", "empty lines"],
)
def test_empty_lines_are_parsed_in_few_steps(begin: bytes) -> None:
    async def steps() -> None:
        connection, transport = _connection()
        parser = _Parser(connection.parser)
        connection.parser = parser  # type: ignore[assignment]  # counts
        connection.data_received(begin + b"\r\n" * 8000)
        connection.data_received(b"\r\n" * 8000)
        assert parser.steps <= 32_000 // 16
        assert not transport.closing
        connection.connection_lost(None)

    asyncio.run(steps())


@pytest.mark.parametrize(
    "begin",
    [b"", POST + b"Content-Length: 5\r\n\r\n12345", POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n\r\n"],
    ids=["a head", "a body", "a chunked body"],
)
def test_one_read_contains_few_requests(begin: bytes) -> None:
    async def steps() -> None:
        connection, transport = _connection()
        connection.data_received(begin + LEAST * 800)
        assert len(connection._cycles) <= 32
        assert not transport.reading
        connection.connection_lost(None)

    asyncio.run(steps())


@pytest.mark.parametrize("app", [_SILENT, _ANSWERING], ids=["no answer", "an answer"])
@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\nx: " + b"a" * 65_000,
        b"GET / HTTP/1.1\r\nx: " + b"a" * 70_000,
        b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 16_000,
        b"GET /?" + b"a=&" * 20_000,
        b"GET /?x=" + b"a" * 60_000 + b" HTTP/1.1\r\n\r\n" + LEAST * 500,
        LEAST + b"GET / HTTP/1.1\r\nx: " + b"a" * 60_000,
        POST + b"Content-Length: 60000\r\n\r\n" + b"\r\n" * 25_000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\na\r\n" * 5_000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n" + b"a:\r\n" * 10_000,
        POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nx: " + b"a" * 60_000,
    ],
    ids=lambda sent: f"{sent[:4].decode()}{len(sent)}",
)
def test_connection_that_ended_holds_nothing_of_the_pool(sent: bytes, app: Any) -> None:
    class OwnPool(Connection):
        held = HeldBytes()

    async def steps() -> None:
        most = 0
        for length in [*range(0, len(sent), 9_973), len(sent)]:  # the client leaves at any byte
            connection, transport = _connection(OwnPool, app)
            for begin in range(0, length, LONGEST_READ):
                if not transport.closing:
                    connection.data_received(sent[begin : min(length, begin + LONGEST_READ)])
                    await asyncio.sleep(0)
            most = max(most, OwnPool.held.bytes)
            connection.connection_lost(None)
            await asyncio.sleep(0)
            assert OwnPool.held.bytes == 0, length
        assert most > 0 or app is _ANSWERING

    asyncio.run(steps())


def test_reading_resumes_after_the_last_reason_to_pause() -> None:
    async def steps() -> None:
        transport = _Transport()
        brake = Brake(transport, HeldBytes())
        brake.hold()
        brake.pause_reading()
        brake.yield_turn(asyncio.get_running_loop())
        assert [brake.held, brake.delays, brake.stopped] == [True, True, False]
        brake.resume_reading()
        brake.release()
        assert [transport.reading, brake.delays] == [False, False]  # it is only for a moment
        await asyncio.sleep(0)
        assert [transport.reading, brake.stopped] == [True, False]
        brake.stop()
        brake.release()
        assert [transport.reading, brake.stopped] == [False, True]

    asyncio.run(steps())


def test_answer_waits_until_the_client_reads_more() -> None:
    async def steps() -> None:
        brake = Brake(_Transport(), HeldBytes())
        await brake.drain()
        brake.pause_writing()
        waiting = [asyncio.get_running_loop().create_task(brake.drain()) for _ in range(2)]
        await asyncio.sleep(0)
        assert not any(each.done() for each in waiting)
        brake.resume_writing()
        await asyncio.gather(*waiting)

    asyncio.run(steps())


_MOST_TURNS = 100_000


class _Noting(Connection):
    """Notes the size of each read, and the turn of the loop in which it came."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reads: list[tuple[int, int]] = []
        self.turn = 0
        self.expected = 1
        self.all_read = asyncio.Event()

    def count(self, loop: asyncio.AbstractEventLoop) -> None:
        """Count the turns of the loop, until all is read or so many are over that nothing more will be."""
        self.turn += 1
        if self.turn < _MOST_TURNS and self.expected > sum(size for _, size in self.reads):
            loop.call_soon(self.count, loop)
        else:
            self.all_read.set()

    def _receive(self, data: bytes) -> None:
        assert type(data) is bytes
        self.reads.append((self.turn, len(data)))


def test_busy_connection_yields_to_others() -> None:
    uvloop = pytest.importorskip("uvloop", reason="Windows has no uvloop")

    async def steps() -> None:
        config = uvicorn.Config(_SILENT, http=Connection, lifespan="off", log_config=None, proxy_headers=False)
        config.load()
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        connection = _Noting(config, ServerState(), {})
        with theirs:
            theirs.setblocking(False)  # noqa: FBT003  # the standard library's signature
            sent = theirs.send(b"x" * 150_000)
            connection.expected = sent
            loop.call_soon(connection.count, loop)
            await loop.connect_accepted_socket(lambda: Reader(connection), ours)
            await connection.all_read.wait()
            turns = [turn for turn, _ in connection.reads]
            assert sum(size for _, size in connection.reads) == sent
            assert sent > 4 * LONGEST_READ
            assert len(set(turns)) == len(turns), "two reads in one turn of the loop"
            assert max(size for _, size in connection.reads) == LONGEST_READ
        connection.transport.abort()
        await asyncio.sleep(0)

    for factory in (uvloop.new_event_loop, asyncio.SelectorEventLoop):
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(steps())


def test_new_connection_is_idle_after_one_second(monkeypatch: pytest.MonkeyPatch) -> None:
    async def connect() -> None:
        loop = asyncio.get_running_loop()
        made = loop.time()
        connection, _ = _connection()
        for later, idle in ((0.0, False), (0.9, False), (5.0, True)):
            monkeypatch.setattr(loop, "time", lambda later=later: made + later)
            assert (connection.idle_since is not None) == idle
        connection.connection_lost(None)

    asyncio.run(connect())


def test_connection_that_waits_for_its_refusal_is_never_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be closed without its answer."""

    async def connect() -> None:
        loop = asyncio.get_running_loop()
        connection, _ = _connection()
        connection.admission = Admission.ANSWER
        made = loop.time()
        monkeypatch.setattr(loop, "time", lambda: made + 5.0)
        assert connection.idle_since is None
        connection.connection_lost(None)

    asyncio.run(connect())


def test_connection_without_a_transport_is_not_idle() -> None:
    async def make() -> None:
        config = uvicorn.Config(_SILENT, http=Connection, lifespan="off", log_config=None, proxy_headers=False)
        config.load()
        assert Connection(config, ServerState(), {}).idle_since is None

    asyncio.run(make())
