"""A client with one keep-alive connection, kept minimal so that the server is measured, not the client."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from benchmarks.figures import BenchmarkError

_TIMEOUT = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Response:
    """A response: its status, and all of its bytes, head included."""

    status: int
    raw: bytes

    @property
    def body(self) -> bytes:
        """The body."""
        return self.raw[self.raw.find(b"\r\n\r\n") + 4 :]


def request(port: int, target: str) -> bytes:
    """Return the bytes of a GET as a client of IMDS sends it."""
    return f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nMetadata: true\r\n\r\n".encode("ascii")


def head(received: bytes | bytearray) -> tuple[int, int] | None:
    """Return the status and the size of the whole response, or None while its head is incomplete."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = _LENGTH.search(received, 0, end + 2)
    if length is None:
        raise BenchmarkError("a response has no Content-Length")
    return int(received[9:12]), end + 4 + int(length[1])


async def read_response(reader: asyncio.StreamReader) -> Response:
    """Read one whole response."""
    received = await reader.readuntil(b"\r\n\r\n")
    known = head(received)
    assert known is not None
    status, size = known
    return Response(status, received + await reader.readexactly(size - len(received)))


class Client:
    """Sends one request after another over one connection to 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._socket = socket.create_connection(("127.0.0.1", port), _TIMEOUT)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def send(self, target: str) -> None:
        """Send a request without waiting for its response."""
        self._socket.sendall(request(self._port, target))

    def receive(self, target: str) -> Response:
        """Read the response to the last request; raise BenchmarkError if its status is not 200."""
        response = self._response()
        _expect_200(response, target)
        return response

    def get(self, target: str) -> Response:
        """Send one request, and read its response."""
        return self._exchange(request(self._port, target))

    def expect(self, target: str) -> Response:
        """Send one request, and read its response; raise BenchmarkError if the status is not 200."""
        response = self.get(target)
        _expect_200(response, target)
        return response

    def document(self, target: str) -> Any:
        """Return the JSON document at a target; raise BenchmarkError if the status is not 200."""
        return json.loads(self.expect(target).body)

    def times(self, targets: Iterable[str]) -> list[float]:
        """Request each target in turn, and return the milliseconds each took.

        Raises:
            BenchmarkError: A status was not 200.
        """
        written = [(target, request(self._port, target)) for target in targets]
        taken = []
        for target, raw in written:
            began = time.perf_counter()
            response = self._exchange(raw)
            taken.append((time.perf_counter() - began) * 1000)
            _expect_200(response, target)
        return taken

    def _exchange(self, raw: bytes) -> Response:
        self._socket.sendall(raw)
        return self._response()

    def _response(self) -> Response:
        received = bytearray()
        known: tuple[int, int] | None = None
        while known is None or len(received) < known[1]:
            part = self._socket.recv(65536)
            if not part:
                raise BenchmarkError("the connection was closed before the end of a response")
            received += part
            known = known or head(received)
        return Response(known[0], bytes(received))


def _expect_200(response: Response, target: str) -> None:
    if response.status != 200:
        raise BenchmarkError(f"{target} was answered with {response.status}: {response.body[:200]!r}")
