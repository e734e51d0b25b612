"""A proxy that listens in every way, and connections to each of its listeners."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.integration.attacks.kit import Starter
from tests.kit import ProxyProcess, free_port

KINDS = ("tcp", "unix", "admin")


@dataclass(frozen=True)
class Everywhere:
    """A process with a TCP port, a Unix socket and an admin port."""

    process: ProxyProcess
    uds: Path
    admin: int

    def connect(self, kind: str, timeout: float = 10.0) -> socket.socket:
        """Connect to the listener of this kind."""
        if kind == "unix":
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            connection.settimeout(timeout)
            connection.connect(str(self.uds))
            return connection
        port = self.admin if kind == "admin" else self.process.port
        return socket.create_connection(("127.0.0.1", port), timeout=timeout)

    def healthy(self, kind: str) -> bool:
        """Return whether the listener answers an honest request."""
        with self.connect(kind) as connection:
            connection.sendall(b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return read_all(connection).startswith(b"HTTP/1.1 200 ")


@contextlib.contextmanager
def listening_everywhere(start: Starter, upstream: str, folder: Path, **settings: object) -> Iterator[Everywhere]:
    """Run a proxy with a listener of each kind."""
    admin = free_port()
    with start(upstream, uds=folder / "p.sock", admin_port=admin, **settings) as process:
        yield Everywhere(process, folder / "p.sock", admin)


def read_all(connection: socket.socket) -> bytes:
    """Return everything until the proxy closes or resets the connection."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(65536):
            received += part
    return received
