"""Errors of the HTTP client become failures with a description for people."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import AsyncIterator
from importlib.abc import MetaPathFinder

import httpx
import pytest

from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import Failure, FailureKind, Response
from imdsproxy.upstream.client import BODIES_AT_ONCE, UpstreamClient


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.EMFILE, FailureKind.DESCRIPTORS, "reached its limit of open files, so nothing was sent to IMDS"),
        (errno.ENFILE, FailureKind.DESCRIPTORS, "reached its limit of open files, so nothing was sent to IMDS"),
        (errno.ECONNREFUSED, FailureKind.UNREACHABLE, "cannot be reached"),
    ],
)
def test_connect_error_distinguishes_lack_of_descriptors_from_unreachable_imds(
    number: int, kind: FailureKind, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = UpstreamClient(Address("127.0.0.1", 9))

    async def fail(_request: httpx.Request) -> httpx.Response:
        error = httpx.ConnectError("All connection attempts failed")
        error.__cause__ = OSError(number, os.strerror(number))
        raise error

    monkeypatch.setattr(client._transport, "handle_async_request", fail)
    failure = asyncio.run(client.send("GET", b"/metadata/versions", ()))
    assert isinstance(failure, Failure)
    assert failure.kind is kind
    assert not failure.sent
    assert words in failure.description


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


def test_later_requests_search_for_no_module(monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that fails is repeated with every request, and takes longer than the rest of it."""
    searches = _Searches()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
        writer.close()

    async def steps() -> list[Response | Failure]:
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            client = UpstreamClient(Address("127.0.0.1", server.sockets[0].getsockname()[1]))
            first = await client.send("GET", b"/metadata/versions", ())
            monkeypatch.setattr(sys, "meta_path", [searches, *sys.meta_path])
            second = await client.send("GET", b"/metadata/versions", ())
            monkeypatch.undo()
            return [first, second]

    assert [answer.body for answer in asyncio.run(steps()) if isinstance(answer, Response)] == [b"{}"] * 2
    assert searches.names == []
