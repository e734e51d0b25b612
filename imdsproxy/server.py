"""Serving: sockets, signals, the event loop. What is wrong with the start is told in one line."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import signal
import socket
import sys
from types import FrameType
from typing import TYPE_CHECKING

import uvicorn

from imdsproxy.app import Application, create_app
from imdsproxy.connection import KEEP_ALIVE, connection_class
from imdsproxy.messages import Refusal
from imdsproxy.target import read_target
from imdsproxy.wiring import upstream_address

if TYPE_CHECKING:
    from collections.abc import Callable

    from imdsproxy.settings import Settings

logger = logging.getLogger(__name__)

START_FAILED = 2
"""Exit status where the settings, or this machine, do not allow a start."""

_GRACE = 10
_BACKLOG = 2048
_DESCRIPTORS = 65536


class StartError(Exception):
    """Why the proxy cannot start, in one line for people."""


class _Server(uvicorn.Server):
    """uvicorn's server, which tells the application of the end first and ends with status 0."""

    def __init__(self, config: uvicorn.Config, application: Application, started: Callable[[], None]) -> None:
        super().__init__(config)
        self._application = application
        self._tell_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve, and only then say so: from that line on signals are heeded."""
        await super().startup(sockets)
        self._tell_started()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to end; the second Ctrl-C does not wait. uvicorn's own would raise the signal once more."""
        del frame
        if self.should_exit and sig == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, see out what is under way, end."""
        self._application.readiness.stopping = True
        await super().shutdown(sockets)
        if self.force_exit:  # then uvicorn leaves both undone, and the loop's end would cut them off with a traceback
            await self.lifespan.shutdown()
            if self.server_state.tasks:
                await asyncio.wait(self.server_state.tasks, timeout=1)


def serve(settings: Settings, announce: Callable[[str], None] = lambda _url: None) -> int:
    """Run the proxy until a signal ends it; gives the exit status.

    `announce` is told the address once the socket listens.
    """
    try:
        _check_targets(settings)
        _check_upstream(settings)
        listener = _listen(settings.host, settings.port)
    except StartError as error:
        sys.stderr.write(f"imdsproxy: {error}\n")
        return START_FAILED
    host, port = listener.getsockname()[:2]
    url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    if _leads_back(settings, port):
        listener.close()
        sys.stderr.write(
            f"imdsproxy: IMDSPROXY_UPSTREAM={settings.upstream} is the address this proxy listens at itself; "
            "name the metadata service, http://169.254.169.254\n"
        )
        return START_FAILED
    _raise_descriptor_limit()
    application = create_app(settings)
    config = uvicorn.Config(
        application,
        http=connection_class(settings.header_timeout),
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
        backlog=_BACKLOG,
    )
    server = _Server(config, application, lambda: _tell(url, host, settings, announce))
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(_run(server, listener, application))
    return 0


def _tell(url: str, host: str, settings: Settings, announce: Callable[[str], None]) -> None:
    logger.info("listening", extra={"fields": {"address": url, "upstream": settings.upstream}})
    if not ipaddress.ip_address(host).is_loopback:
        logger.warning(
            "other machines may reach this address, and whoever reaches it gets this VM's tokens; "
            "IMDSPROXY_HOST=127.0.0.1 keeps it on this machine"
        )
    announce(url)


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


async def _run(server: _Server, listener: socket.socket, application: Application) -> None:
    # Windows has no SIGHUP, and its event loop takes no signals.
    if hasattr(signal, "SIGHUP"):
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, application.drop_entries)
    await server.serve(sockets=[listener])


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(f"IMDSPROXY_HOST={host} cannot be listened at: {error.strerror or error}") from None
    try:
        if sys.platform != "win32":  # there it would let two programs share the port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        why = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
            raise StartError(f"IMDSPROXY_HOST={host} is no address of this machine ({why})") from None
        raise StartError(
            f"IMDSPROXY_PORT={port} on {host} cannot be listened at: {why}. "
            "Is another imdsproxy running? Port 0 picks a free one."
        ) from None
    listener.setblocking(False)  # noqa: FBT003  # the standard library's signature
    return listener


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


def _leads_back(settings: Settings, port: int) -> bool:
    """Whether the upstream is the listener, now that a port of 0 has become a real one."""
    address = upstream_address(settings)
    own = {settings.host, "localhost", "127.0.0.1", "::1"}
    return address.unix is None and address.port == port and address.host in own
