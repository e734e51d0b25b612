"""Serving: sockets, signals, the event loop. What is wrong with the start is told in one line."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from imdsproxy.app import Application, create_app
from imdsproxy.connection import KEEP_ALIVE, Connection
from imdsproxy.lane import connection_class
from imdsproxy.listeners import BACKLOG, Listener, StartError, close, open_listeners
from imdsproxy.messages import Refusal
from imdsproxy.settings_values import SettingsError
from imdsproxy.target import read_target
from imdsproxy.wiring import upstream_address

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from imdsproxy.settings import Settings

logger = logging.getLogger(__name__)

START_FAILED = 2
"""Exit status where the settings, or this machine, do not allow a start."""

_GRACE = 10
_DESCRIPTORS = 65536
# Seconds: how long, while ending, a client that has just connected has for its request, and how often to look.
_FIRST_WORD = 1.0
_LOOK = 0.01
# From 3.13 on, a closed server takes its socket's file away, be it a service manager's; `Listener` knows whose it is.
_KEEPING_THE_FILE: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}


class _Server(uvicorn.Server):
    """uvicorn's server over listeners of several kinds; it tells the application of the end first."""

    def __init__(
        self,
        config: uvicorn.Config,
        application: Application,
        listeners: Sequence[Listener],
        connections: Mapping[bool, type[Connection]],
        started: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self._application = application
        self._listeners = listeners
        self._connections = connections
        self._tell_started = started
        self._ending = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and only then say so: from that line on signals are heeded."""
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        for listener in self._listeners:
            connection = partial(
                self._connections[listener.admin],
                config=self.config,
                server_state=self.server_state,
                app_state=self.lifespan.state,
            )
            if listener.path is None:
                server = await loop.create_server(connection, sock=listener.socket, backlog=BACKLOG)
            else:
                server = await loop.create_unix_server(
                    connection, sock=listener.socket, backlog=BACKLOG, **_KEEPING_THE_FILE
                )
            self.servers.append(server)
        self._tell_started()

    async def main_loop(self) -> None:
        """Wait for the end. uvicorn would look for it ten times a second, on every node and in every pod."""
        self._loop = asyncio.get_running_loop()
        if not self.should_exit:
            await self._ending.wait()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; the second Ctrl-C does not wait. uvicorn's own would raise the signal once more."""
        del frame
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._ending.set)  # a signal comes in the midst of anything

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, see out what is under way, end."""
        self._application.readiness.stopping = True
        for server in self.servers:
            server.close()
        close(self._listeners)  # a service manager's sockets stay open there, and who connects waits for the next start
        # uvicorn closes at once whoever has connected and not been read from yet.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_WORD):
                while any(  # noqa: ASYNC110  # uvicorn tells nobody of a first byte
                    isinstance(one, Connection) and one.silent for one in self.server_state.connections
                ):
                    await asyncio.sleep(_LOOK)
        await super().shutdown(sockets)
        if self.force_exit:  # then uvicorn leaves both undone, and the loop's end would cut them off with a traceback
            await self.lifespan.shutdown()
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=1)


def serve(settings: Settings, announce: Callable[[str], None] = lambda _url: None) -> int:
    """Run the proxy until a signal ends it; gives the exit status.

    `announce` is told the address once the socket listens.
    """
    listeners: list[Listener] = []
    try:
        _check_targets(settings)
        _check_upstream(settings)
        listeners = open_listeners(settings, os.environ)
        _check_ways_back(settings, listeners)
        application = create_app(settings)
    except (SettingsError, StartError) as error:
        close(listeners)
        sys.stderr.write(f"imdsproxy: {error}\n")
        return START_FAILED
    _raise_descriptor_limit()
    connections = {admin: connection_class(settings.header_timeout, admin=admin) for admin in (False, True)}
    config = uvicorn_config(application, connections[False])
    server = _Server(config, application, listeners, connections, lambda: _tell(listeners, settings, announce))
    try:
        with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
            runner.run(_run(server, application))
    finally:
        close(listeners)
    return 0


def uvicorn_config(application: Application, connection: type[Connection]) -> uvicorn.Config:
    """Give what uvicorn is told: the application is served as it is, by these connections, and no header is added."""
    return uvicorn.Config(
        application,
        http=connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        # No header is added to IMDS's own, and none of a client's is believed.
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=_GRACE,
        backlog=BACKLOG,
    )


def _tell(listeners: Sequence[Listener], settings: Settings, announce: Callable[[str], None]) -> None:
    for listener in listeners:
        more = {"serves": "/-/"} if listener.admin else {"upstream": settings.upstream}
        logger.info("listening", extra={"fields": {"address": listener.url, **more}})
        if listener.reaches_out and not listener.admin:
            logger.warning(
                "other machines may reach this address, and whoever reaches it gets this VM's tokens; "
                "IMDSPROXY_HOST=127.0.0.1 keeps it on this machine"
            )
    announce(listeners[0].url)


def _raise_descriptor_limit() -> None:
    """Allow as many open connections as the system lets us; most start a process with far fewer (POSIX)."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  # Windows has none, and no such limit

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


async def _run(server: _Server, application: Application) -> None:
    # Windows has no SIGHUP, and its event loop takes no signals.
    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, application.drop_entries)
    await server.serve(sockets=[])


def _check_targets(settings: Settings) -> None:
    for text in settings.warmup:
        target = read_target(text.encode("ascii"))
        if isinstance(target, Refusal):
            raise StartError(f"IMDSPROXY_WARMUP={text}: {target.description}")


def _check_upstream(settings: Settings) -> None:
    address = upstream_address(settings)
    if address.unix is not None:
        return
    try:
        socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise StartError(
            f"IMDSPROXY_UPSTREAM={settings.upstream} cannot be resolved ({why}); "
            "the metadata service is http://169.254.169.254"
        ) from None


def _check_ways_back(settings: Settings, listeners: Sequence[Listener]) -> None:
    """Refuse an upstream that is a listener, now that a port of 0 has become a real one."""
    address = upstream_address(settings)
    own = {settings.host, "localhost", "127.0.0.1", "::1"}
    for listener in listeners:
        if address.unix == listener.path if address.unix else (address.port == listener.port and address.host in own):
            raise StartError(
                f"IMDSPROXY_UPSTREAM={settings.upstream} is the address this proxy listens at itself; "
                "name the metadata service, http://169.254.169.254"
            )
