"""The sockets that a service manager opened, and passed to this process (sd_listen_fds(3))."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import MutableMapping
from typing import NamedTuple

from imdsproxy.errors import StartError

_FIRST_INHERITED = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)
_ADMIN_NAME = "admin"


class InheritedSocket(NamedTuple):
    """A listening socket of a service manager."""

    socket: socket.socket
    admin: bool
    """Whether the service manager calls it `admin`."""


def inherited_sockets(environ: MutableMapping[str, str]) -> list[InheritedSocket]:
    """Return the sockets that were passed to this process, and clear the variables.

    Raises:
        StartError: One of them is not a listening TCP or Unix stream socket.
    """
    process, count, names = (environ.pop(f"LISTEN_{name}", "") for name in ("PID", "FDS", "FDNAMES"))
    if process != str(os.getpid()) or sys.platform == "win32":
        return []
    if not re.fullmatch(r"[0-9]{1,4}", count):
        raise StartError(
            f"LISTEN_FDS={count[:80]!a} is not a number of sockets; the service manager that sets it must set a number"
        )
    labels = names.split(":")
    sockets = []
    for index in range(int(count)):
        number = _FIRST_INHERITED + index
        try:
            taken = socket.socket(fileno=number)
            listening = taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except OSError as error:
            raise StartError(
                f"descriptor {number} of LISTEN_FDS={count} is not a socket ({error.strerror}); "
                "in a .socket unit, use ListenStream="
            ) from None
        families = {socket.AF_INET, socket.AF_INET6, socket.AF_UNIX}
        if not listening or taken.type != socket.SOCK_STREAM or taken.family not in families:
            raise StartError(
                f"descriptor {number} of LISTEN_FDS={count} is not a listening TCP or Unix stream socket; "
                "in a .socket unit, use ListenStream= with Accept=no"
            )
        taken.set_inheritable(False)
        taken.setblocking(False)  # noqa: FBT003  # the standard library's signature
        sockets.append(InheritedSocket(taken, labels[index : index + 1] == [_ADMIN_NAME]))
    return sockets
