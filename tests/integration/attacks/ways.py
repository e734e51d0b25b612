"""The ways on which a request gets its answer: each server, with and without the fast path, and its listeners."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.integration.attacks.kit import CLOSE, HOST, TRUE, Starter, request
from tests.integration.attacks.listeners import KINDS, Everywhere, listening_everywhere, read_all
from tests.integration.attacks.raw_cases import PLAIN, WARM

SERVE = ("fast path", "without fast path")
UVICORN = ("uvicorn-httptools", "uvicorn-h11")
SERVERS = (*SERVE, *UVICORN)


@dataclass(frozen=True)
class Running:
    """A server that runs, with what it listens at."""

    name: str
    everywhere: Everywhere

    @property
    def kinds(self) -> tuple[str, ...]:
        """The listeners; uvicorn has no admin port, which is one of `imdsproxy serve`."""
        return KINDS if self.name in SERVE else ("tcp", "unix")


@contextlib.contextmanager
def running(name: str, start: Starter, upstream: str, folder: Path, **settings: object) -> Iterator[Running]:
    """Run a server of `SERVERS`, with `WARM` in its cache and its honest request known to the fast path."""
    if name in SERVE:
        altered = {"module": "tests.altered", "arguments": ("without_fast_path",)} if name != SERVE[0] else {}
        started = listening_everywhere(start, upstream, folder, **altered, **settings)
    else:
        started = _under_uvicorn(name.removeprefix("uvicorn-"), start, upstream, folder, **settings)
    with started as everywhere:
        server = Running(name, everywhere)
        for kind in server.kinds:
            for target in WARM * 3:
                with everywhere.connect(kind) as connection:
                    connection.sendall(request(target.encode(), HOST, TRUE, CLOSE))
                    read_all(connection)
        yield server


@contextlib.contextmanager
def _under_uvicorn(
    parser: str, start: Starter, upstream: str, folder: Path, **settings: object
) -> Iterator[Everywhere]:
    socket = folder / "u.sock"
    with start(upstream, module="tests.uvicorn_sockets", arguments=(parser, str(socket)), **settings) as process:
        yield Everywhere(process, socket, 0)


def honest(kind: str) -> bytes:
    """Return a request that every client may send at a listener of this kind."""
    return request(b"/-/healthy" if kind == "admin" else PLAIN, HOST)
