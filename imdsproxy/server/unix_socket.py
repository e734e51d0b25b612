"""Listen on a Unix socket: its file, and whether another process listens there."""

from __future__ import annotations

import os
import secrets
import socket
import stat
import sys
from pathlib import Path

from imdsproxy.errors import StartError

_OWNER_AND_GROUP = 0o660
_UNIX = getattr(socket, "AF_UNIX", -1)  # Windows has no such family


def listen_at(path: str, backlog: int) -> tuple[socket.socket, os.stat_result]:
    """Listen at a path.

    The file of an ended proxy is replaced in one step, so that clients always find a socket.

    Args:
        path: Where to make the file of the socket.
        backlog: The connections that may wait to be accepted.

    Returns:
        The socket, and its file, by which its owner recognises it later.

    Raises:
        StartError: The path is in use, or nothing can be made there.
    """
    if sys.platform == "win32":
        raise StartError("IMDSPROXY_UDS: Python does not support Unix sockets on Windows; unset it")
    _refuse_taken(path)
    unfinished = f"{path}.{secrets.token_hex(2)}"
    listener = socket.socket(_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(unfinished)
        try:
            Path(unfinished).chmod(_OWNER_AND_GROUP)
            listener.listen(backlog)
            made = Path(unfinished).stat()
            os.rename(unfinished, path)  # noqa: PTH104  # the system call that replaces in one step
        except OSError:
            Path(unfinished).unlink(missing_ok=True)
            raise
    except OSError as error:
        listener.close()
        raise StartError(
            f"IMDSPROXY_UDS={path} cannot be listened on: {error.strerror}. "
            "Its folder must exist, and this user must be able to write there."
        ) from None
    listener.setblocking(False)  # noqa: FBT003  # the standard library's signature
    return listener, made


def _refuse_taken(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise StartError(f"IMDSPROXY_UDS={path} exists and is not a socket; name another path, or remove it")
    except OSError:
        return  # it does not exist or cannot be seen; binding will report which
    with socket.socket(_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            return  # an ended process left it
        except OSError as error:
            raise StartError(
                f"IMDSPROXY_UDS={path} exists, and whether a process listens there cannot be found out "
                f"({error.strerror or error}); name another path, or remove it"
            ) from None
    raise StartError(f"IMDSPROXY_UDS={path} is in use by another process. Is another imdsproxy running?")
