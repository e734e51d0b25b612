"""Send single requests: to the running proxy, which keeps the budget, or to IMDS, at most one a second.

This is not `upstream/client`: a check reports what a plain client sees, connection errors included, and needs neither
an event loop nor a pool.
"""

from __future__ import annotations

import contextlib
import errno
import io
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse

from imdsproxy import __version__
from imdsproxy.cli.check.answers import Exchange
from imdsproxy.clock import Clock
from imdsproxy.protocol.address import Address

_SPACING = 1.0
"""Seconds between two requests that may reach IMDS, so that others keep four of the VM's five a second."""
_UNIX = getattr(socket, "AF_UNIX", -1)  # Windows has no such family
_MOST_BYTES = 1 << 20


class Pace:
    """Waits before a request until a second has passed since the last."""

    def __init__(self, clock: Clock, sleep: Callable[[float], object] = time.sleep) -> None:
        self.clock = clock
        self._sleep = sleep
        self._free_at = clock.monotonic()

    def wait(self) -> None:
        """Wait for the turn of the next request."""
        self._sleep(max(0.0, self._free_at - self.clock.monotonic()))
        self._free_at = self.clock.monotonic() + _SPACING


@dataclass(frozen=True)
class Asker:
    """Asks one address."""

    address: Address
    name: str
    """The address for people."""
    proxied: bool
    """Whether a running proxy is there."""
    patience: float
    """Seconds until an answer has to be complete."""
    pace: Pace
    kept: int = 4096
    """Characters of a body that are kept."""

    def ask(self, target: str, **fields: str) -> Exchange:
        """Send a GET, to IMDS when its turn has come, and return the exchange; `_` in a field's name stands for `-`."""
        if not self.proxied:
            self.pace.wait()
        return self.ask_at_once(target, **fields)

    def ask_at_once(self, target: str, **fields: str) -> Exchange:
        """Send a GET that costs IMDS nothing."""
        clock = self.pace.clock
        began = clock.monotonic()
        lines = [f"GET {target} HTTP/1.1", f"Host: {self.address.authority}", "Connection: close", "Accept: */*"]
        lines += [f"User-Agent: imdsproxy-check/{__version__}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in fields.items()]
        try:
            with contextlib.closing(self._connect()) as connection:
                connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
                received = self._receive(connection, began)
            seconds = clock.monotonic() - began
            response = HTTPResponse(_Received(received))  # type: ignore[arg-type]  # all it asks of a socket is a file
            response.begin()
            body = response.read()
        except OSError as error:
            return Exchange(self.name, self.proxied, trouble=_trouble(error), words=error.strerror or str(error))
        except HTTPException as error:
            return Exchange(self.name, self.proxied, trouble="broken", words=f"no HTTP answer, {type(error).__name__}")
        return Exchange(
            self.name,
            self.proxied,
            status=response.status,
            fields=tuple((name.lower(), value) for name, value in response.getheaders()),
            body=body.decode("utf-8", "replace")[: self.kept],
            seconds=seconds,
            wall=clock.wall(),
        )

    def _connect(self) -> socket.socket:
        if self.address.unix is None:
            return socket.create_connection((self.address.host, self.address.port), self.patience)
        connection = socket.socket(_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.patience)
            connection.connect(self.address.unix)
        except OSError:
            connection.close()
            raise
        return connection

    def _receive(self, connection: socket.socket, began: float) -> bytes:
        received = b""
        while len(received) < _MOST_BYTES:
            left = began + self.patience - self.pace.clock.monotonic()
            if left <= 0:
                raise TimeoutError("the answer is not complete in time")
            connection.settimeout(left)
            part = connection.recv(65536)
            if not part:
                break
            received += part
        if not received:
            raise ConnectionResetError(errno.ECONNRESET, "the connection was closed without an answer")
        return received


class _Received:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._content)


def _trouble(error: OSError) -> str:
    if isinstance(error, TimeoutError) or error.errno == errno.ETIMEDOUT:
        return "timeout"
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return "refused"
    if isinstance(error, PermissionError):
        return "denied"
    if isinstance(error, ConnectionError):
        return "broken"
    return "unreachable"
