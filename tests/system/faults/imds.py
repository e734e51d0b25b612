"""An IMDS that fails on demand, for real proxies and for proxies in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from imdsproxy.protocol.messages import Failure, FailureKind, Headers, Response
from tests.servers import ok
from tests.system.faults.documents import Asked, say

_READ, _READ_EVENTS = 30.0, 130.0
"""The proxy's own limits in seconds, which an IMDS in virtual time keeps in its place."""
_PIECE = b"x" * 65_536


@dataclass(frozen=True)
class Reply:
    """How IMDS answers a request: well, or with a status, or as one of `_IN_VIRTUAL_TIME`."""

    how: str = "well"
    status: int = 200
    fields: tuple[bytes, ...] = ()
    latency: float = 0.0


Play = Callable[[Asked], Reply]
"""Says how a request is answered."""

WELL = Reply()
_IN_VIRTUAL_TIME = {
    "refuse": Failure(FailureKind.UNREACHABLE, "refused", sent=False),
    "hang": Failure(FailureKind.TIMEOUT, "too slow"),
    "drip": Failure(FailureKind.TIMEOUT, "too slow"),
    "reset": Failure(FailureKind.RESET, "reset"),
    "truncate": Failure(FailureKind.UNREADABLE, "unreadable"),
    "garbage": Failure(FailureKind.UNREADABLE, "unreadable"),
    "flood": Failure(FailureKind.TOO_LARGE, "too large"),
}


@dataclass
class Imds:
    """What both forms have: how requests are answered now, and what has arrived."""

    play: Play = lambda _asked: WELL
    arrivals: list[Asked] = field(default_factory=list)

    def arrive(self, method: str, target: str, body: bytes) -> tuple[Asked, Reply]:
        asked = Asked(asyncio.get_running_loop().time(), method, target, body)
        self.arrivals.append(asked)
        return asked, self.play(asked)


class VirtualImds(Imds):
    """Takes the place of the proxy's client for IMDS (`upstream.client`)."""

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        asked, reply = self.arrive(method, target.decode(), body)
        if reply.how == "refuse":
            self.arrivals.pop()
        patience = _READ_EVENTS if slow else _READ
        if reply.latency > patience or reply.how in {"hang", "drip"}:
            await asyncio.sleep(patience)
            return _IN_VIRTUAL_TIME["hang"]
        await asyncio.sleep(reply.latency + 0.01)
        if reply.how in _IN_VIRTUAL_TIME:
            return _IN_VIRTUAL_TIME[reply.how]
        pairs = (each.partition(b": ") for each in reply.fields)
        fields = tuple((name.lower(), value) for name, _, value in pairs)
        answer = say(asked, asyncio.get_running_loop().time()) if reply.status == 200 else _ERROR
        return Response(reply.status, ((b"content-type", b"application/json; charset=utf-8"), *fields), answer)


_ERROR = b'{"error":"x"}'
_addresses = (f"127.0.{high}.{low}" for high, low in itertools.product(range(9, 250), range(1, 250)))


class RealImds(Imds):
    """Listens at an address of loopback of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.address = next(_addresses)
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    async def listen(self) -> None:
        """Begin, or begin again at the same port."""
        self._server = await asyncio.start_server(self._serve, self.address, self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        """Refuse connections, and cut those that are open."""
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            with contextlib.suppress(OSError, EOFError, asyncio.CancelledError):
                await self._answer(reader, writer)
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        method, target, _ = head.decode().split(" ", 2)
        length = next((line[15:] for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), b"0")
        asked, reply = self.arrive(method, target, await reader.readexactly(int(length)))
        if reply.latency:
            await asyncio.sleep(reply.latency)
        said = say(asked, asyncio.get_running_loop().time())
        good = ok(said, b"Connection: close", *reply.fields)
        if reply.how == "hang":
            await reader.read()  # until the proxy gives up
        elif reply.how == "reset":
            writer.write(good[:20])
            raw: socket.socket = writer.get_extra_info("socket")
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif reply.how == "truncate":
            writer.write(good[:-5])
            await self._end(reader, writer)
        elif reply.how == "garbage":
            writer.write(b"\x00\xff\xfeSSH-2.0-nothing\x00\r\n\r\n")
            await self._end(reader, writer)
        elif reply.how == "drip":
            for byte in good:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(0.25)
        elif reply.how == "flood":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n")
            for _ in range((1 << 30) // len(_PIECE)):
                writer.write(_PIECE)
                await writer.drain()
        else:
            status = b"%d Odd" % reply.status
            writer.write(good if reply.status == 200 else ok(_ERROR, *reply.fields, status=status))
            await self._end(reader, writer)

    @staticmethod
    async def _end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write_eof()
        await reader.read()
