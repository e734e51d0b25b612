"""The emulator on a socket, in a running event loop or in a thread of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

from imdsproxy.emulator.attested import UNSIGNED_NOTICE
from imdsproxy.emulator.emulator import Emulator
from imdsproxy.emulator.keys import UNKNOWN_URL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

BACKLOG = 2048
JOIN_TIMEOUT = 10.0
TURNS_TO_ACCEPT = 10
"""Turns of the event loop; asyncio takes four from accepting a socket to the first call of its protocol."""

logger = logging.getLogger("imdsproxy.emulator")


@dataclass(frozen=True, slots=True)
class EmulatorServer:
    """An emulator that listens, and its address."""

    host: str
    port: int
    emulator: Emulator

    @property
    def url(self) -> str:
        """The URL for clients, without a trailing slash."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - compared, not bound
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


@contextlib.asynccontextmanager
async def serving(emulator: Emulator, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[EmulatorServer]:
    """Serve in the running loop.

    Args:
        emulator: The emulator to serve.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.

    Raises:
        OSError: It cannot listen there.
    """
    # Imported here because uvicorn is slow to load, and `--help` does not need it.
    from imdsproxy.emulator.protocol import Connections  # noqa: PLC0415

    if not emulator.machine.signer.available:
        logger.warning(UNSIGNED_NOTICE)
    connections = Connections(emulator)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(connections, host, port, backlog=BACKLOG)
    bound_host, bound_port = server.sockets[0].getsockname()[:2]
    listening = EmulatorServer(bound_host, bound_port, emulator)
    if emulator.keys.url == UNKNOWN_URL:
        emulator.keys.url = listening.url
    try:
        yield listening
    finally:
        # When a server is closed, asyncio drops connections that have no protocol yet without closing them. So stop
        # accepting first (Windows' own loop cannot do that), then wait until accepted ones have their protocol.
        for listener in server.sockets:
            with contextlib.suppress(NotImplementedError):
                loop.remove_reader(listener.fileno())
        for _ in range(TURNS_TO_ACCEPT):
            await asyncio.sleep(0)
        server.close()
        await connections.end()


@contextlib.contextmanager
def run_in_thread(emulator: Emulator | None = None, host: str = "127.0.0.1", port: int = 0) -> Iterator[EmulatorServer]:
    """Serve from a daemon thread during the block.

    Args:
        emulator: The emulator to serve; None makes one.
        host: The address to listen on.
        port: The port to listen on; 0 takes a free one.

    Raises:
        OSError: It cannot listen there.
    """
    chosen = Emulator() if emulator is None else emulator
    started: Future[tuple[EmulatorServer, asyncio.AbstractEventLoop, asyncio.Event]] = Future()

    async def run() -> None:
        stop = asyncio.Event()
        async with serving(chosen, host, port) as server:
            started.set_result((server, asyncio.get_running_loop(), stop))
            await stop.wait()

    def serve() -> None:
        try:
            asyncio.run(run())
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=serve, name="imds-emulator", daemon=True)
    thread.start()
    server, loop, stop = started.result()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(JOIN_TIMEOUT)
