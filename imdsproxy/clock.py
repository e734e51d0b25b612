"""Clocks. Every part that needs the time takes one as a parameter, so that a test can pass a fake."""

from __future__ import annotations

import contextlib
import sys
import time
from functools import partial
from pathlib import Path
from typing import Protocol

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_OFFSETS = Path("/proc/self/timens_offsets")


class Clock(Protocol):
    """The source of the current time. Waiting is the event loop's task."""

    def monotonic(self) -> float:
        """Return seconds that never go back, for deadlines."""
        ...

    def wall(self) -> float:
        """Return seconds since 1970 (UTC), which may jump: for people and headers, never for a deadline."""
        ...


if sys.platform == "linux":
    # A VM can hibernate, and its tokens age meanwhile. Of Linux's monotonic clocks only this one counts that time
    # (clock_gettime(2)).
    _monotonic = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
elif sys.platform == "win32":
    # Before Python 3.13 `time.monotonic` moves in steps of 15.6 ms here, so a permit could return that much too early.
    # The performance counter has no such steps, and it counts the time of hibernation.
    _monotonic = time.perf_counter
else:
    _monotonic = time.monotonic


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(_monotonic)
    wall = staticmethod(time.time)


def boot_id() -> bytes:
    """Return the boot id of a Linux machine (random(4)), 16 bytes. Its containers see the same one."""
    return bytes.fromhex(_BOOT_ID.read_text(encoding="ascii").strip().replace("-", ""))


def is_machine_wide() -> bool:
    """Return whether this process has the monotonic clock of the whole machine (time_namespaces(7))."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without time namespaces
        lines = _OFFSETS.read_text(encoding="ascii").splitlines()
        return all(offset == "0" for line in lines for offset in line.split()[1:])
    return True
