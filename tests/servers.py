"""Small servers on loopback that stand for IMDS or for something on the way. Each ends with its context."""

from __future__ import annotations

import contextlib
import socket
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import BinaryIO, Self

import pytest

_END_SECONDS = 10.0


class Server(ABC):
    """Passes each connection to `serve`, in a thread of its own, until its context ends.

    Listens on a free port of loopback. At the end of the context the connections still open are cut, and then no
    thread and no socket of the server is left; a `serve` that takes longer than ten seconds to notice fails the test.
    """

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()  # so that no connection is cut whose number already belongs to another socket
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._ending = threading.Event()
        self._accepting = threading.Thread(target=self._accept, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @abstractmethod
    def serve(self, connection: socket.socket) -> None:
        """Converse until the connection is to end; it is closed afterwards, and an `OSError` ends it as well."""

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        # Closing a socket does not wake the thread that accepts from it on every system; a connection does.
        socket.create_connection(("127.0.0.1", self.port), timeout=_END_SECONDS).close()
        self._accepting.join()
        self._listener.close()
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(_END_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a connection was cut and is still served"

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            if self._ending.is_set():
                connection.close()
                return
            with self._lock:
                self._connections.add(connection)
            thread = threading.Thread(target=self._run, args=(connection,), daemon=True)
            thread.start()
            self._threads = [*filter(threading.Thread.is_alive, self._threads), thread]

    def _run(self, connection: socket.socket) -> None:
        try:
            with contextlib.suppress(OSError):
                self.serve(connection)
        finally:
            with self._lock:
                self._connections.discard(connection)
                connection.close()


class AnsweringServer(Server):
    """A simple server: `answer` returns the bytes to send for a request's head. It records the heads."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        super().__init__()
        self.heads: list[bytes] = []
        self._answer = answer

    def serve(self, connection: socket.socket) -> None:
        with connection.makefile("rb") as stream:
            while head := read_head(stream):
                self.heads.append(head)
                connection.sendall(self._answer(head))


def read_head(stream: BinaryIO) -> bytes:
    """Read up to the empty line, which is not given; nothing where the connection has ended."""
    lines = []
    while (line := stream.readline()) not in {b"\r\n", b""}:
        lines.append(line)
    return b"".join(lines)


def ok(body: bytes, *fields: bytes, status: bytes = b"200 OK", length: int | None = None) -> bytes:
    """Write a response of JSON with these further fields, without line ends; `length` is the one to announce."""
    length = len(body) if length is None else length
    head = b"".join((b"Content-Type: application/json; charset=utf-8\r\n", *(field + b"\r\n" for field in fields)))
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, head, length, body)


@contextlib.contextmanager
def forbidden_port() -> Iterator[int]:
    """Return a listening port of loopback at which connections are not accepted until the context ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        yield int(listener.getsockname()[1])
        with pytest.raises(BlockingIOError):
            listener.accept()
