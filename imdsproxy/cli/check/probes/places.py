"""The addresses that the settings listen at: whether each is free, an imdsproxy's, or taken."""

from __future__ import annotations

import errno
import os
import re
import socket
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from imdsproxy.cli.check.facts import Listener, Place, Process
from imdsproxy.cli.proc_net_tcp import Row
from imdsproxy.config import Config
from imdsproxy.protocol.address import Address

if sys.platform == "win32":
    _PORT_RULE = socket.SO_EXCLUSIVEADDRUSE
else:
    _PORT_RULE = socket.SO_REUSEADDR  # as the proxy itself binds, so that ended connections are no obstacle

_UNIX = getattr(socket, "AF_UNIX", -1)  # Windows has no such family

Owners = Callable[[int], tuple[Process, ...]]
"""Returns the processes that have the socket with this inode open."""

_LINK_LOCAL = "169.254."


def look_at_places(
    config: Config, is_ours: Callable[[Address], bool], rows: list[Row], unix: dict[str, int], owners: Owners
) -> Iterator[Listener]:
    """Yield the listeners of the settings.

    Args:
        config: The settings.
        is_ours: Returns whether an imdsproxy answers at an address.
        rows: The machine's TCP sockets.
        unix: Inodes of its listening Unix sockets, by path.
        owners: Who has a socket open.
    """

    def tcp(setting: str, host: str, port: int) -> Listener:
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        if port == 0:
            return Listener(setting, name, Place.FREE, "port 0 is a free one at each start")
        where, why = _try_port(host, port)
        if where is not Place.TAKEN:
            return Listener(setting, name, where, why)
        inodes = [row.inode for row in rows if row.listens_at(_reached(host), port)]
        processes = tuple(dict.fromkeys(process for inode in inodes for process in owners(inode)))
        ours = is_ours(Address(_reached(host), port))
        return Listener(setting, name, Place.OURS if ours else Place.TAKEN, processes=processes)

    yield tcp("PORT", config.host, config.port)
    if config.admin_port is not None:
        yield tcp("ADMIN_PORT", config.admin_host or config.host, config.admin_port)
    if config.uds is not None:
        yield _socket(config.uds, is_ours, _of_socket(config.uds, unix, owners))


def _of_socket(path: str, unix: dict[str, int], owners: Owners) -> tuple[Process, ...]:
    """Return who listens at a path. The kernel knows a proxy's socket by the name under which it was made."""
    made = re.compile(re.escape(path) + r"(\.[0-9a-f]{4})?")
    found = (process for name, inode in unix.items() if made.fullmatch(name) for process in owners(inode))
    return tuple(dict.fromkeys(found))


def _reached(host: str) -> str:
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "localhost": "127.0.0.1"}.get(host, host)  # noqa: S104  # not bound


def _try_port(host: str, port: int) -> tuple[Place, str]:
    """Return whether an address can be bound. It is released at once, and never listened at."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(*found[:3]) as probe:
            probe.setsockopt(socket.SOL_SOCKET, _PORT_RULE, 1)
            probe.bind(found[4])
    except OSError as error:
        # Windows refuses a port that is taken exclusively with EACCES.
        if error.errno == errno.EADDRNOTAVAIL and _is_link_local(host):
            return Place.ABSENT, ""
        taken = {errno.EADDRINUSE, errno.EACCES} if sys.platform == "win32" else {errno.EADDRINUSE}
        return (Place.TAKEN if error.errno in taken else Place.UNUSABLE), error.strerror or str(error)
    return Place.FREE, ""


def _is_link_local(host: str) -> bool:
    """Return whether a proxy at this address starts before any interface has it."""
    return sys.platform == "linux" and host.startswith(_LINK_LOCAL)


def _socket(path: str, is_ours: Callable[[Address], bool], processes: tuple[Process, ...]) -> Listener:
    file, folder = Path(path), Path(path).parent
    try:
        mode = file.lstat().st_mode
    except FileNotFoundError:
        if os.access(folder, os.W_OK | os.X_OK):
            return Listener("UDS", path, Place.FREE)
        why = "this user may not write to its folder" if folder.is_dir() else "its folder does not exist"
        return Listener("UDS", path, Place.UNUSABLE, why)
    except OSError as error:
        return Listener("UDS", path, Place.UNUSABLE, error.strerror or str(error))
    if not stat.S_ISSOCK(mode):
        return Listener("UDS", path, Place.UNUSABLE, "there is a file that is not a socket")
    if is_ours(Address("localhost", unix=path)):
        return Listener("UDS", path, Place.OURS, processes=processes)
    return _other_socket(path, processes)


def _other_socket(path: str, processes: tuple[Process, ...]) -> Listener:
    with socket.socket(_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(2)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return Listener("UDS", path, Place.FREE, "an ended process left it")
        except OSError as error:
            return Listener("UDS", path, Place.UNUSABLE, error.strerror or str(error))
    return Listener("UDS", path, Place.TAKEN, processes=processes)
