"""Linux system calls that Python has no function for."""

from __future__ import annotations

import ctypes
import os

CLONE_NEWNET = 0x40000000
"""A network namespace, for unshare(2) and setns(2)."""


def call(name: str, *arguments: int | bytes) -> None:
    """Call a function of the C library that returns 0; OSError with its reason if it does not."""
    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
