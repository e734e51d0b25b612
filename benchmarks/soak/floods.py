"""The floods: clients that do what a good client does not, each at a bounded rate until its phase ends."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping

from benchmarks.loads.client import read_response
from benchmarks.soak.exchange import HOST, INSTANCE, TOKEN, TRUE, ask, connected, get
from benchmarks.soak.outcomes import WRONG
from benchmarks.soak.state import Run, Work

_PIPELINED = 16
_SLOW = 10
_IDLE = 50
_UNREAD = 200

Flood = Callable[[Run], Work]


async def _pipelining(run: Run) -> None:
    """Send many requests before the first answer is read."""
    while True:
        async with run.request("pipelining") as request, connected(run.port) as (reader, writer):
            writer.write(get(INSTANCE) * _PIPELINED)
            statuses = {(await read_response(reader)).status for _ in range(_PIPELINED)}
            request.end(statuses.pop() if len(statuses) == 1 else max(statuses))
        await run.pace.wait(0.5)


async def _slow_heads(run: Run) -> None:
    """Send a head a byte at a time, slower than the proxy allows."""
    async with asyncio.TaskGroup() as group:
        for _ in range(_SLOW):
            group.create_task(_slow_head(run))


async def _slow_head(run: Run) -> None:
    while True:
        async with run.request("slow heads") as request, connected(run.port) as (reader, writer):
            writer.write(b"GET /metadata/instance HTTP/1.1\r\n")
            while True:
                try:
                    async with asyncio.timeout(1):
                        head = await reader.readline()
                except TimeoutError:
                    writer.write(b"x")
                    continue
                if head:
                    request.end(head[9:12].decode())
                break
        await run.pace.wait(0.2)


async def _vanishing(run: Run) -> None:
    """Ask for what is not stored, and close or reset the connection before the answer."""
    while True:
        async with run.request("vanishing clients") as request, connected(run.port) as (_, writer):
            writer.write(get(INSTANCE + b"&gone=%d" % run.chance.getrandbits(40)))
            await writer.drain()
            if run.chance.random() < 0.5:
                writer.transport.abort()
            request.end("left")
        await run.pace.wait(0.2)


async def _half_closed(run: Run) -> None:
    """Close the sending side after the request, and read the answer."""
    while True:
        async with run.request("half-closed connections") as request, connected(run.port) as (reader, writer):
            writer.write(get(INSTANCE + b"&half=%d" % run.chance.getrandbits(2)))
            writer.write_eof()
            request.end((await read_response(reader)).status)
            if await reader.read():
                request.end(WRONG, "more than one answer")
        await run.pace.wait(0.3)


async def _distinct_keys(run: Run) -> None:
    """Ask for ever other targets, so that none is stored."""
    await _several(run, lambda: _one(run, "distinct keys", INSTANCE + b"&n=%d" % run.chance.getrandbits(40)))


async def _distinct_tokens(run: Run) -> None:
    """Ask for tokens of ever other resources."""
    await _several(run, lambda: _one(run, "distinct tokens", TOKEN % (b"%d.example" % run.chance.getrandbits(40))))


async def _forged_ids(run: Run) -> None:
    """Claim to be ever other proxies and ever other traces, over TCP and the Unix socket."""
    await _several(run, lambda: _forged(run))


async def _forged(run: Run) -> None:
    number = run.chance.getrandbits(64)
    fields = (
        b"Imdsproxy-Via: %016x\r\n" % number,
        b"traceparent: 00-%032x-%016x-01\r\n" % (number or 1, number or 1),
        b"x-ms-client-request-id: %x\r\n" % number,
    )
    target = INSTANCE + (b"&forged=%d" % number if run.chance.random() < 0.5 else b"")
    to = run.socket if run.chance.random() < 0.5 else run.port
    async with run.request("forged ids") as request:
        request.end((await ask(to, get(target, *fields))).status)


async def _one(run: Run, client: str, target: bytes) -> None:
    async with run.request(client) as request:
        request.end((await ask(run.port, get(target))).status)


async def _several(run: Run, ask_once: Callable[[], Awaitable[None]]) -> None:
    """Ask by six clients at once, so that the budget is used up."""

    async def again() -> None:
        while True:
            await ask_once()
            await run.pace.wait(0.6)

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(again())


_REFUSED = (
    b"GET / HTTP/1.1\r\n" + HOST + b"x: " + b"a" * 70_000 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + HOST + b"x: a\r\n" * 10_000 + b"\r\n",
    b"GET /metadata/instance?"
    + b"&".join(b"%d=" % number for number in range(3000))
    + b" HTTP/1.1\r\n"
    + HOST
    + b"\r\n",
    b"GET " + INSTANCE + b" HTTP/1.1\r\n" + HOST + TRUE + b"X-Forwarded-For: 10.0.0.1\r\n\r\n",
    b"GET " + INSTANCE + b" HTTP/1.1\r\n" + HOST + TRUE + b"Origin: http://localhost\r\n\r\n",
    b"GET /elsewhere HTTP/1.1\r\n" + HOST + b"\r\n",
    b"PUT " + INSTANCE + b" HTTP/1.1\r\n" + HOST + TRUE + b"Content-Length: 0\r\n\r\n",
    b"GET " + INSTANCE + b" HTTP/1.1\r\nHost: evil.example\r\n" + TRUE + b"\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 50 + b"\r\n\r\n",
)


async def _refused(run: Run) -> None:
    """Send what the proxy refuses."""
    while True:
        async with run.request("refused requests") as request, connected(run.port) as (reader, writer):
            writer.write(run.chance.choice(_REFUSED))
            head = await reader.readline()
            if head:
                request.end(head[9:12].decode("latin-1"))
        await run.pace.wait(0.2)


async def _unread(run: Run) -> None:
    """Ask again and again, and read no answer."""
    loop = asyncio.get_running_loop()
    while True:
        async with run.request("unread answers") as request:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.setblocking(False)  # noqa: FBT003  # the standard library's signature
                await loop.sock_connect(connection, str(run.socket))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(3):
                        await loop.sock_sendall(connection, get(INSTANCE) * _UNREAD)
                        await asyncio.sleep(3)
                request.end("left")
        await run.pace.wait(1)


async def _idle(run: Run) -> None:
    """Open connections and send nothing."""
    async with asyncio.TaskGroup() as group:
        for _ in range(_IDLE):
            group.create_task(_idle_one(run))


async def _idle_one(run: Run) -> None:
    while True:
        async with run.request("idle connections") as request, connected(run.port) as (reader, _):
            try:
                async with asyncio.timeout(10):
                    await reader.read()
            except TimeoutError:
                request.end("left")


FLOODS: Mapping[str, Flood] = {
    "pipelining": _pipelining,
    "slow heads": _slow_heads,
    "vanishing clients": _vanishing,
    "half-closed connections": _half_closed,
    "distinct keys": _distinct_keys,
    "distinct tokens": _distinct_tokens,
    "forged ids": _forged_ids,
    "refused requests": _refused,
    "unread answers": _unread,
    "idle connections": _idle,
}
"""Each runs until it is cancelled."""
