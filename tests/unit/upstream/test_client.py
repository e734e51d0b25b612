"""Errors of a connection, and of what comes over it, become failures with a description for people."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.abc import MetaPathFinder
from pathlib import Path

import pytest

from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import Failure, FailureKind, Response
from imdsproxy.upstream import client as client_module
from imdsproxy.upstream.client import BODIES_AT_ONCE, UpstreamClient
from imdsproxy.upstream.exchange import Exchange

NOWHERE = Address("127.0.0.1", 9)
LINGER = struct.pack("ii", 1, 0)
Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def failing(error: Exception) -> Callable[[Address], Awaitable[Exchange]]:
    async def connect(_address: Address) -> Exchange:
        raise error

    return connect


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.EMFILE, "x"), FailureKind.DESCRIPTORS, "reached its limit of open files, so nothing was sent"),
        (OSError(errno.ENFILE, "x"), FailureKind.DESCRIPTORS, "reached its limit of open files, so nothing was sent"),
        (OSError(errno.ECONNREFUSED, "Connect call failed"), FailureKind.UNREACHABLE, "(Connection refused)"),
        (socket.gaierror(-2, "Name or service not known"), FailureKind.UNREACHABLE, "(Name or service not known)"),
        (OSError("Multiple exceptions"), FailureKind.UNREACHABLE, "cannot be reached (Multiple exceptions)"),
        (OSError(), FailureKind.UNREACHABLE, "cannot be reached (OSError)"),
        (TimeoutError(), FailureKind.SILENT, "accepted no connection within 2 s (IMDSPROXY_CONNECT_TIMEOUT)"),
    ],
)
def test_failed_connection_sends_nothing_and_says_why(
    error: OSError, kind: FailureKind, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_module, "connect", failing(error))
    failure = asyncio.run(UpstreamClient(NOWHERE).send("GET", b"/metadata/versions", ()))
    assert isinstance(failure, Failure)
    assert failure.kind is kind
    assert not failure.sent
    assert words in failure.description


def test_lack_of_descriptors_is_seen_behind_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError("All addresses failed")
    error.__cause__ = OSError(errno.EMFILE, os.strerror(errno.EMFILE))
    monkeypatch.setattr(client_module, "connect", failing(error))
    failure = asyncio.run(UpstreamClient(NOWHERE).send("GET", b"/metadata/versions", ()))
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.DESCRIPTORS


def test_refused_connection_is_reported_in_the_words_of_the_system() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # it does not listen
        address = Address("127.0.0.1", bound.getsockname()[1])
        failure = asyncio.run(UpstreamClient(address).send("GET", b"/metadata/versions", ()))
    assert isinstance(failure, Failure)
    assert failure.kind is FailureKind.UNREACHABLE
    assert f"{address} cannot be reached (Connection refused)." in failure.description


def test_concurrent_bodies_share_one_bound() -> None:
    """Twelve bodies of the longest size arrive side by side, of which eight fit; what failed leaves room again."""
    client = UpstreamClient(Address("127.0.0.1", 9), max_body_bytes=1000)

    async def fetch(everyone_came: asyncio.Event) -> bytes | Failure:
        async def parts() -> AsyncIterator[bytes]:
            yield b"x" * 999
            await everyone_came.wait()
            yield b"x"

        return await client._receive_body(parts())

    async def steps() -> list[bytes | Failure]:
        everyone_came = asyncio.Event()
        fetches = [asyncio.create_task(fetch(everyone_came)) for _ in range(12)]
        await asyncio.sleep(0)
        everyone_came.set()
        first = await asyncio.gather(*fetches)
        return [*first, await fetch(everyone_came)]

    *first, later = asyncio.run(steps())
    failures = [result for result in first if isinstance(result, Failure)]
    assert [len(result) for result in first if isinstance(result, bytes)] == [1000] * BODIES_AT_ONCE
    assert {failure.kind for failure in failures} == {FailureKind.TOO_LARGE}
    assert "more than 8000 bytes in several answers at once" in failures[0].description
    assert later == b"x" * 1000


class _Searches(MetaPathFinder):
    """Notes which modules are searched for. Those that are imported already are not."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def find_spec(self, fullname: str, path: object, target: object = None) -> None:
        self.names.append(fullname)


def test_requests_search_for_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that fails is repeated with every request, and takes longer than the rest of it."""
    searches = _Searches()
    monkeypatch.setattr(sys, "meta_path", [searches, *sys.meta_path])
    answer = ask(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"))
    assert isinstance(answer, Response)
    assert [name for name in searches.names if not name.startswith("encodings")] == []


# The request, and the ways in which an answer fails


def answering(answer: bytes, seen: list[bytes] | None = None) -> Server:
    """Return a server that reads one head and what the client sends with it, answers with these bytes, and closes."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.read(65536)
        if seen is not None:
            seen.append(request)
        writer.write(answer)
        writer.close()

    return serve


def ask(
    server: Server, method: str = "GET", body: bytes = b"", *, read_timeout: float = 30.0, unix: Path | None = None
) -> Response | Failure:
    async def steps() -> Response | Failure:
        if unix is None:
            listening = await asyncio.start_server(server, "127.0.0.1", 0)
            address = Address("127.0.0.1", listening.sockets[0].getsockname()[1])
        else:
            listening = await asyncio.start_unix_server(server, unix)
            address = Address("localhost", unix=str(unix))
        async with listening:
            client = UpstreamClient(address, read_timeout=read_timeout, max_body_bytes=100_000)
            return await client.send(method, b"/metadata/versions?%41", ((b"metadata", b"true"),), body)

    return asyncio.run(steps())


@pytest.mark.parametrize(
    ("method", "body", "ends"),
    [
        ("GET", b"", b"metadata: true\r\n\r\n"),
        ("GET", b"{}", b"metadata: true\r\ncontent-length: 2\r\n\r\n{}"),
        ("POST", b"", b"metadata: true\r\ncontent-length: 0\r\n\r\n"),
        ("POST", b"{}", b"metadata: true\r\ncontent-length: 2\r\n\r\n{}"),
    ],
)
def test_request_is_sent_as_it_was_checked(method: str, body: bytes, ends: bytes) -> None:
    seen: list[bytes] = []
    assert isinstance(ask(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", seen), method, body), Response)
    first, _, rest = seen[0].partition(b"\r\n")
    assert first == method.encode() + b" /metadata/versions?%41 HTTP/1.1"
    assert rest.startswith(b"host: 127.0.0.1:")
    assert b"\r\nconnection: close\r\n" in rest
    assert rest.endswith(ends)


@pytest.mark.skipif(sys.platform == "win32", reason="its event loop has no Unix sockets")
def test_request_is_sent_to_a_unix_socket(tmp_path: Path) -> None:
    seen: list[bytes] = []
    answer = ask(answering(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", seen), unix=tmp_path / "s")
    assert isinstance(answer, Response)
    assert b"\r\nhost: localhost\r\n" in seen[0]


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}HTTP/1.1 200 OK\r\n", b"{}"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", b"{}"),
        (b"HTTP/1.1 200 OK\r\n\r\n{}", b"{}"),
        (b"HTTP/1.0 200 OK\r\n\r\n{}", b"{}"),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 100_000, b"x" * 100_000),
    ],
)
def test_body_is_complete_whatever_its_framing(answer: bytes, body: bytes) -> None:
    got = ask(answering(answer))
    assert isinstance(got, Response)
    assert (got.status, got.body) == (200, body)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (b"", FailureKind.UNREADABLE),
        (b"no HTTP\r\n\r\n", FailureKind.UNREADABLE),
        (b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n", FailureKind.UNREADABLE),
        (b"HTTP/1.1 600 Odd\r\ncontent-length: 0\r\n\r\n", FailureKind.UNREADABLE),
        (b"HTTP/1.1 200 OK\r\nx: a\x01b\r\ncontent-length: 0\r\n\r\n", FailureKind.UNREADABLE),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}", FailureKind.UNREADABLE),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n", FailureKind.UNREADABLE),
        (b"HTTP/1.1 200 OK\r\n" + b"x: 1\r\n" * 50_000, FailureKind.UNREADABLE),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 100001\r\n\r\n" + b"x" * 100_001, FailureKind.TOO_LARGE),
    ],
)
def test_answer_that_is_not_one_is_a_failure(answer: bytes, kind: FailureKind) -> None:
    got = ask(answering(answer))
    assert isinstance(got, Failure)
    assert got.kind is kind
    assert got.sent


class Holding:
    """A server that answers one request with these bytes, and then waits for the end of the connection."""

    def __init__(self, first: bytes = b"") -> None:
        self.first = first
        self.begun = asyncio.Event()
        self.ended = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.begun.set()
        writer.write(self.first)
        await reader.read()
        self.ended.set()
        writer.close()


@pytest.mark.parametrize("first", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}"])
def test_silence_ends_with_the_read_timeout_and_closes_the_connection(first: bytes) -> None:
    async def steps() -> Response | Failure:
        server = Holding(first)
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            client = UpstreamClient(Address("127.0.0.1", listening.sockets[0].getsockname()[1]), read_timeout=0.05)
            answer = await client.send("GET", b"/metadata/versions", ())
            await server.ended.wait()
            return answer

    got = asyncio.run(asyncio.wait_for(steps(), 30))
    assert isinstance(got, Failure)
    assert got.kind is FailureKind.TIMEOUT
    assert "did not answer within 0.05 s (IMDSPROXY_READ_TIMEOUT)" in got.description


def test_reset_before_the_end_is_a_failure_of_its_own() -> None:
    async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n")
        # Closing while bytes of the client are unread resets the connection, and so does an abort with this option.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER)
        writer.transport.abort()

    got = ask(reset)
    assert isinstance(got, Failure)
    assert got.kind is FailureKind.RESET
    assert "closed the connection before its answer was complete (Connection reset by peer)" in got.description


def test_cancelled_request_closes_its_connection() -> None:
    async def steps() -> None:
        server = Holding()
        async with await asyncio.start_server(server, "127.0.0.1", 0) as listening:
            client = UpstreamClient(Address("127.0.0.1", listening.sockets[0].getsockname()[1]))
            task = asyncio.create_task(client.send("GET", b"/metadata/versions", ()))
            await server.begun.wait()
            task.cancel()
            await server.ended.wait()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(asyncio.wait_for(steps(), 30))
