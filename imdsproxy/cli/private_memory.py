"""Keeping the memory of the serving process to itself, because access tokens are in it."""

from __future__ import annotations

import contextlib
import sys

_PR_SET_DUMPABLE = 4


def keep_memory_private() -> None:
    """Forbid core dumps of this process. On Linux no other process of its user can read its memory either.

    The limit of 0 forbids a file. A program in `kernel.core_pattern` gets a dump whatever the limit (core(5)), but not
    that of a process that is not dumpable (prctl(2)). Where the system refuses, the process serves all the same.
    """
    if sys.platform == "win32":  # it writes a dump only where its administrator has set that up
        return
    import resource  # noqa: PLC0415  # not on Windows

    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        with contextlib.suppress(ImportError, OSError, AttributeError, MemoryError):
            import ctypes  # noqa: PLC0415  # takes 2 ms, and is of no use elsewhere

            ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
