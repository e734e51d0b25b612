"""Time, injected: the system's, or one that a test moves."""

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
    """Where every moment comes from. Waiting is the event loop's business."""

    def monotonic(self) -> float:
        """Seconds that only ever go forward; deadlines are made of these."""
        ...

    def wall(self) -> float:
        """Seconds since 1970 (UTC), which may jump; for what people and headers read, never for a deadline."""
        ...


if sys.platform == "linux":
    # A VM can hibernate, and its tokens grow old meanwhile: clock_gettime(2) says that of Linux's two monotonic
    # clocks only this one counts the time asleep.
    _monotonic = partial(time.clock_gettime, time.CLOCK_BOOTTIME)
else:
    _monotonic = time.monotonic


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(_monotonic)
    wall = staticmethod(time.time)


def boot_id() -> bytes:
    """Give what tells this start of a Linux machine from all others (random(4)); its containers see the same."""
    return bytes.fromhex(_BOOT_ID.read_text(encoding="ascii").strip().replace("-", ""))


def is_the_machines() -> bool:
    """Whether the monotonic clock of this process is that of the whole machine (time_namespaces(7))."""
    with contextlib.suppress(FileNotFoundError):  # a kernel without time namespaces
        lines = _OFFSETS.read_text(encoding="ascii").splitlines()
        return all(offset == "0" for line in lines for offset in line.split()[1:])
    return True
