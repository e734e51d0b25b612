"""Open the listeners: TCP, a Unix socket, the admin port, and sockets inherited from a service manager."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Iterable, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING

from imdsproxy.config import Config
from imdsproxy.errors import StartError
from imdsproxy.protocol.address import Address
from imdsproxy.server.inherited_sockets import inherited_sockets
from imdsproxy.server.unix_socket import listen_at

if TYPE_CHECKING:
    from imdsproxy.server.node_listener import Gate

BACKLOG = 4096
"""The connections that may wait at one listener to be accepted. The system may allow fewer (net.core.somaxconn)."""

_LINK_LOCAL = ipaddress.IPv4Network("169.254.0.0/16")
_UNIX = getattr(socket, "AF_UNIX", -1)  # Windows has no such family
if sys.platform == "win32":
    # On Windows a second program can listen at a port in use, and take over its clients, unless the first forbids it.
    _PORT_RULE = socket.SO_EXCLUSIVEADDRUSE
else:
    _PORT_RULE = socket.SO_REUSEADDR  # a proxy can restart while its old connections end


class Listener:
    """A socket that listens."""

    def __init__(
        self,
        listening: socket.socket,
        *,
        admin: bool = False,
        inherited: bool = False,
        made: tuple[str, os.stat_result] | None = None,
        gate: Gate | None = None,
    ) -> None:
        """Wrap a listening socket.

        Args:
            listening: The socket.
            admin: Whether only the pages under `/-/` are served there.
            inherited: Whether a service manager opened it.
            gate: Recognises connections from other machines, which are refused; None if they are served.
            made: The file of a Unix socket that this process made, and removes when it closes the listener.
        """
        self.socket = listening
        self.inherited = inherited
        """Whether a service manager has it open too. The next process then serves the clients that wait there."""
        self.admin = admin
        """Whether only the pages under `/-/` are served there."""
        self.gate = gate
        """Recognises connections from other machines, which are refused; None if they are served."""
        self._made = made
        address = listening.getsockname()
        self.path: str | None = None
        """The path of a Unix socket."""
        self.host: str | None = None
        """The address of a TCP listener."""
        self.port: int | None = None
        """The TCP port."""
        self.reaches_out = False
        """Whether other machines may reach it."""
        if listening.family == _UNIX:
            # An address without a file is bytes that begin with zero (unix(7), "abstract").
            self.path = made[0] if made else os.fsdecode(address).replace("\0", "@", 1)
            self.url = f"unix:{self.path}"
        else:
            self.host, self.port = host, port = address[:2]
            self.url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            self.reaches_out = gate is None and not ipaddress.ip_address(host).is_loopback

    def receives(self, address: Address) -> bool:
        """Return whether what is sent to this address comes to this listener, as far as is known without DNS."""
        if self.host is None or self.port is None:
            return self.path is not None and self.path == address.unix
        return address.reaches(self.host, self.port)

    def close(self) -> None:
        """Close the listener, and remove the file of its Unix socket unless another process has replaced it."""
        self.socket.close()
        if self._made is not None:
            path, file = self._made
            with contextlib.suppress(OSError):
                if os.path.samestat(Path(path).stat(), file):
                    Path(path).unlink()


def open_listeners(config: Config, environ: MutableMapping[str, str]) -> list[Listener]:
    """Open the listeners of the settings, and return them, the TCP listener first.

    Inherited sockets of a service manager replace them: a TCP socket replaces HOST and PORT, a Unix socket UDS, and one
    called `admin` ADMIN_HOST and ADMIN_PORT.

    Raises:
        StartError: A listener cannot be opened.
    """
    listeners = [
        Listener(one.socket, admin=one.admin, inherited=True, gate=_gate_of(one.socket))
        for one in inherited_sockets(environ)
    ]
    try:
        if not any(listener.port is not None and not listener.admin for listener in listeners):
            listeners.append(_tcp(config.host, config.port))
        if config.uds is not None and not any(listener.path and not listener.admin for listener in listeners):
            listening, file = listen_at(config.uds, BACKLOG)
            listeners.append(Listener(listening, made=(config.uds, file)))
        if config.admin_port is not None and not any(listener.admin for listener in listeners):
            host = config.admin_host or config.host
            listeners.append(_tcp(host, config.admin_port, "ADMIN_"))
    except StartError:
        close(listeners)
        raise
    return sorted(listeners, key=lambda listener: (listener.admin, listener.path is not None))


def close(listeners: Iterable[Listener]) -> None:
    """Close all listeners."""
    for listener in listeners:
        listener.close()


def _tcp(host: str, port: int, prefix: str = "") -> Listener:
    """Listen at the address of two settings; `prefix` comes before HOST and PORT in their names."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise StartError(
            f"IMDSPROXY_{prefix}HOST={host} cannot be listened on: {error.strerror or error}; "
            "name an address of this machine"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, _PORT_RULE, 1)
        gate = _gate(listener, str(address[0]))
        listener.bind(address)
        listener.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        why = getattr(error, "strerror", None) or error
        if getattr(error, "errno", None) == errno.EADDRNOTAVAIL:
            raise StartError(
                f"IMDSPROXY_{prefix}HOST={host} is not an address of this machine ({why}); name one that is"
            ) from None
        if getattr(error, "errno", None) == errno.EACCES:
            raise StartError(
                f"IMDSPROXY_{prefix}PORT={port} on {host} cannot be listened on ({why}); a port below 1024 needs "
                "CAP_NET_BIND_SERVICE, or a lower sysctl net.ipv4.ip_unprivileged_port_start"
            ) from None
        raise StartError(
            f"IMDSPROXY_{prefix}PORT={port} on {host} cannot be listened on: {why}. "
            "Is another imdsproxy running? Port 0 picks a free one."
        ) from None
    listener.setblocking(False)  # noqa: FBT003  # the standard library's signature
    return Listener(listener, admin=bool(prefix), gate=gate)


def _gate_of(listening: socket.socket) -> Gate | None:
    return None if listening.family == _UNIX else _gate(listening, str(listening.getsockname()[0]))


def _gate(listening: socket.socket, address: str) -> Gate | None:
    """Return what recognises connections from other machines at a link-local address; None for any other address.

    On Linux such an address is for the machine itself and its pods (`imdsproxy address`). An admin listener there is
    open to every client all the same.
    """
    if sys.platform != "linux" or ipaddress.ip_address(address.partition("%")[0]) not in _LINK_LOCAL:
        return None
    from imdsproxy.server.node_listener import prepare  # noqa: PLC0415  # only where it is needed

    return prepare(listening, address)
