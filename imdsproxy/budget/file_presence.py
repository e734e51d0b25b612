"""Marks of the processes that use a file: locks on single bytes of it (fcntl_locking(2)).

A lock belongs to the open file, not to the process, so that closing another descriptor does not release it. The kernel
releases it when the process ends. Bytes beyond the file's end can be locked as well.
"""

from __future__ import annotations

import os
import struct
import sys

assert sys.platform == "linux"  # noqa: S101  # as in `shared_file`

import fcntl  # noqa: E402  # behind the line above

_FLOCK = struct.Struct("hhqqi")  # struct flock


def mark(descriptor: int, byte: int = 0) -> None:
    """Mark a byte, until `unmark` or the end of the process. Any number of processes can mark the same byte."""
    _lock(descriptor, fcntl.F_RDLCK, byte)


def unmark(descriptor: int, byte: int) -> None:
    """Remove this process's mark."""
    _lock(descriptor, fcntl.F_UNLCK, byte)


def is_marked_by_another(descriptor: int, byte: int) -> bool:
    """Return whether another process has marked a byte."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked)
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)


def mark_if_alone(descriptor: int) -> bool:
    """Mark the first byte, and return whether no other process had."""
    alone = _lock(descriptor, fcntl.F_WRLCK, 0)
    mark(descriptor)
    return alone


def _lock(descriptor: int, kind: int, byte: int) -> bool:
    """Take or release a lock, and return whether the locks of others allow it."""
    try:
        fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, os.SEEK_SET, byte, 1, 0))
    except OSError:
        return False
    return True
