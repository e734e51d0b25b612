"""Linux system calls that Python has no function for."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

CLONE_NEWNET = 0x40000000
"""A network namespace, for unshare(2) and setns(2)."""
CLONE_NEWPID = 0x20000000
"""A namespace of processes, for the same; only the processes that are started next are in it."""
_OWN_PROCESSES = "/proc/thread-self/ns/pid"


def call(name: str, *arguments: int | bytes) -> None:
    """Call a function of the C library that returns 0; OSError with its reason if it does not."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


@contextlib.contextmanager
def children_in_a_new_process_namespace() -> Iterator[int]:
    """Make what this thread starts next process 1 of a namespace; nothing stands between it and its parent.

    Yields the descriptor of the namespace of before, which a forked process has to close.
    """
    before = os.open(_OWN_PROCESSES, os.O_RDONLY)
    try:
        call("unshare", CLONE_NEWPID)
        try:
            yield before
        finally:
            call("setns", before, CLONE_NEWPID)
    finally:
        os.close(before)
