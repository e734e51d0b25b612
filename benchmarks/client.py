"""One client with one keep-alive connection, as little of a client as will do, so that the server is measured."""

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

INSTANCE = "/metadata/instance?api-version=2021-02-01"
"""The whole instance document, about 2 kB."""

_TIMEOUT = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    raw: bytes

    @property
    def body(self) -> bytes:
        """What follows the head."""
        return self.raw[self.raw.find(b"\r\n\r\n") + 4 :]


def request(port: int, target: str) -> bytes:
    """Write a GET as a client of IMDS sends it."""
    return f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nMetadata: true\r\n\r\n".encode("ascii")


def head(received: bytes | bytearray) -> tuple[int, int] | None:
    """Give the status and the size of the whole response, None while its head is not all there."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return None
    length = _LENGTH.search(received, 0, end + 2)
    if length is None:
        raise BenchmarkError("a response came without Content-Length")
    return int(received[9:12]), end + 4 + int(length[1])


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one whole answer."""
    received = await reader.readuntil(b"\r\n\r\n")
    known = head(received)
    assert known is not None
    status, size = known
    return Answer(status, received + await reader.readexactly(size - len(received)))


class Client:
    """Asks one thing after another over one connection to 127.0.0.1."""

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
        """End the connection."""
        self._socket.close()

    def send(self, target: str) -> None:
        """Ask, and do not wait."""
        self._socket.sendall(request(self._port, target))

    def receive(self, target: str) -> Answer:
        """Read the whole answer to what was sent last; BenchmarkError for any status but 200."""
        answer = self._answer()
        _expect(answer, target)
        return answer

    def get(self, target: str) -> Answer:
        """Ask once, and read the whole answer."""
        return self._ask(request(self._port, target))

    def expect(self, target: str) -> Answer:
        """Ask once; BenchmarkError for any status but 200."""
        answer = self.get(target)
        _expect(answer, target)
        return answer

    def document(self, target: str) -> Any:
        """Give the JSON document behind a target; BenchmarkError for any status but 200."""
        return json.loads(self.expect(target).body)

    def times(self, targets: Iterable[str]) -> list[float]:
        """Ask for each target in turn; gives the milliseconds each took. BenchmarkError for any status but 200."""
        written = [(target, request(self._port, target)) for target in targets]
        taken = []
        for target, raw in written:
            began = time.perf_counter()
            answer = self._ask(raw)
            taken.append((time.perf_counter() - began) * 1000)
            _expect(answer, target)
        return taken

    def _ask(self, raw: bytes) -> Answer:
        self._socket.sendall(raw)
        return self._answer()

    def _answer(self) -> Answer:
        received = bytearray()
        known: tuple[int, int] | None = None
        while known is None or len(received) < known[1]:
            part = self._socket.recv(65536)
            if not part:
                raise BenchmarkError("the connection was closed in the middle of an answer")
            received += part
            known = known or head(received)
        return Answer(known[0], bytes(received))


def _expect(answer: Answer, target: str) -> None:
    if answer.status != 200:
        raise BenchmarkError(f"{target} was answered with {answer.status}: {answer.body[:200]!r}")
