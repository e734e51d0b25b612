"""Run one application over its listeners until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from functools import partial
from itertools import product
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from imdsproxy.server.acceptor import Acceptor
from imdsproxy.server.arrivals import Arrivals
from imdsproxy.server.connection import Connection
from imdsproxy.server.connection_limit import ConnectionLimit, most_connections
from imdsproxy.server.fast_path import connection_class
from imdsproxy.server.first_request import FirstRequests
from imdsproxy.server.held_bytes import HeldBytes
from imdsproxy.server.hosted_application import HostedApplication
from imdsproxy.server.listeners import Listener, close
from imdsproxy.server.memory_bound import MOST_CONNECTIONS
from imdsproxy.server.reader import Reader

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_GRACE = 10
# During shutdown, the seconds between two checks whether new connections have sent their first bytes.
_CHECK = 0.01
# New objects after which Python looks for cyclic garbage. With its default of 700, it looks through the objects of a
# crowd of new connections dozens of times while the crowd arrives.
_COLLECTED_AFTER = 5000


class _Server(uvicorn.Server):
    """uvicorn's server over listeners of several kinds. At shutdown it marks the application as not ready first."""

    first_bytes = 1.0
    """Seconds that a new connection has for its first bytes during shutdown."""

    def __init__(  # noqa: PLR0913  # the parts it joins, all by name
        self,
        config: uvicorn.Config,
        *,
        application: HostedApplication,
        listeners: Sequence[Listener],
        connections: Mapping[tuple[bool, bool], type[Connection]],
        connection_limit: ConnectionLimit,
        started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._application = application
        self._listeners = listeners
        self._connections = connections
        self._connection_limit = connection_limit
        self._accepting: list[tuple[Listener, Acceptor, Arrivals]] = []
        self._report_started = started
        self._ending = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to serve, then report it. From that report on signals are handled."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            make = partial(self._connection, self._connections[listener.admin, listener.path is not None])
            if sys.platform == "win32":  # its loop does not wait for readiness, and `windows_loop` accepts
                self.servers.append(await loop.create_server(partial(_reader, make), sock=listener.socket))
            else:
                self._accept(listener, make, loop)
        gc.freeze()  # what exists by now stays until the end, and is not looked through any more
        gc.set_threshold(_COLLECTED_AFTER, *gc.get_threshold()[1:])
        self._report_started()

    def _accept(self, listener: Listener, make: Callable[[], Connection], loop: asyncio.AbstractEventLoop) -> None:
        first = None if listener.admin else FirstRequests(self._application, unix=listener.path is not None)
        arrivals = Arrivals(
            application=self._application,
            connection_limit=self._connection_limit,
            make=make,
            state=self.server_state,
            loop=loop,
            first=first,
            admin=listener.admin,
            gate=listener.gate,
        )
        acceptor = Acceptor(
            listener.socket,
            loop,
            arrivals.take,
            is_full=lambda: self._connection_limit.is_spent,
            now=self._application.clock.monotonic,
        )
        self._accepting.append((listener, acceptor, arrivals))
        acceptor.start()

    def _connection(self, way: type[Connection]) -> Connection:
        return way(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)

    async def main_loop(self) -> None:
        """Wait for a signal. uvicorn's own loop would wake ten times a second."""
        self._loop = asyncio.get_running_loop()
        if not self.should_exit:
            await self._ending.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Start the shutdown. A second Ctrl-C forces it.

        uvicorn's own handler would raise the signal again at the end.
        """
        del frame
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ending.set)  # a signal can interrupt any line of code

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, finish the requests under way, stop."""
        self._application.begin_shutdown()
        for server in self.servers:
            server.close()
        for listener, acceptor, _ in self._accepting:
            acceptor.close(accept_waiting=not listener.inherited)
        close(self._listeners)  # a service manager keeps its sockets open; new clients wait there for the next start
        for _, _, arrivals in self._accepting:
            await arrivals.wait()
        # uvicorn closes at once each connection from which nothing was read yet.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.first_bytes):
                while any(  # noqa: ASYNC110  # uvicorn has no event for the first byte
                    isinstance(one, Connection) and one.silent for one in self.server_state.connections
                ):
                    await asyncio.sleep(_CHECK)
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn skips both then, and the loop's end would cut them off with a traceback
            await self.lifespan.shutdown()
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=1)


def _reader(make: Callable[[], Connection]) -> Reader:
    return Reader(make())


def run(
    application: HostedApplication,
    listeners: Sequence[Listener],
    *,
    header_timeout: float,
    connections: int = MOST_CONNECTIONS,
    announce: Callable[[], None] = lambda: None,
) -> None:
    """Serve until a signal, then close the listeners.

    Args:
        application: The application.
        listeners: The listeners, in the order in which they are served.
        header_timeout: Seconds that a client has for a whole request.
        connections: The most connections at once; fewer if the limit of open files has no room for them.
        announce: Called once all listeners are served.
    """
    connection_limit = ConnectionLimit(min(most_connections(), connections))
    application.watch_connections(lambda: connection_limit.count, connection_limit.limit)
    held = HeldBytes()
    classes = {
        (admin, unix): connection_class(
            header_timeout, admin=admin, unix=unix, connection_limit=connection_limit, held=held
        )
        for admin, unix in product((False, True), repeat=2)
    }
    config = uvicorn_config(application, classes[False, False])
    server = _Server(
        config,
        application=application,
        listeners=listeners,
        connections=classes,
        connection_limit=connection_limit,
        started=announce,
    )
    try:
        with asyncio.Runner(loop_factory=_loop_factory(config)) as runner:
            runner.run(_run(server, application))
    finally:
        close(listeners)


def uvicorn_config(application: HostedApplication, connection: type[Connection]) -> uvicorn.Config:
    """Return uvicorn's configuration: the application unwrapped, these connections, no additional header."""
    return uvicorn.Config(
        application,
        http=connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        # Add no header to those of IMDS, and trust no header of a client.
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=connection.keep_alive,  # type: ignore[arg-type]  # it can be a part of a second
        timeout_graceful_shutdown=_GRACE,
    )


def _loop_factory(config: uvicorn.Config) -> Callable[[], asyncio.AbstractEventLoop] | None:
    if sys.platform == "win32":
        from imdsproxy.server.windows_loop import WindowsLoop  # noqa: PLC0415  # exists on Windows only

        return WindowsLoop
    return config.get_loop_factory()


async def _run(server: _Server, application: HostedApplication) -> None:
    # Windows has no SIGHUP, and its event loop handles no signals.
    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, application.hang_up)
    await server.serve(sockets=[])
