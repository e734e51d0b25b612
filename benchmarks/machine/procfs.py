"""Memory and processor time of a process and its descendants, from /proc; None on systems without it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_KIBIBYTES = 1024


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident (RSS) and proportional (PSS) memory in MiB. PSS divides a shared page among its processes."""

    resident: float
    proportional: float | None


def tree(pid: int) -> list[int]:
    """Return a process and its running descendants."""
    parents = {}
    with contextlib.suppress(OSError):
        for folder in _PROC.iterdir():
            if folder.name.isdecimal() and (fields := _fields(int(folder.name))):
                parents[int(folder.name)] = int(fields[1])
    found = [pid]
    for each in found:
        found += [child for child, parent in parents.items() if parent == each]
    return found


def memory(pid: int) -> Memory | None:
    """Return the memory of a process and its descendants, None if /proc does not say."""
    resident, proportional = 0.0, 0.0
    complete = True
    for each in tree(pid):
        size = _size(f"{each}/status", "VmRSS:")
        if size is None:
            return None
        share = _size(f"{each}/smaps_rollup", "Pss:")
        resident += size
        proportional += share or 0.0
        complete = complete and share is not None
    return Memory(resident, proportional if complete else None)


def descriptors(pid: int) -> int | None:
    """Return how many files, sockets and pipes a process has open, None if /proc does not say."""
    with contextlib.suppress(OSError):
        return sum(1 for _ in (_PROC / str(pid) / "fd").iterdir())
    return None


def threads(pid: int) -> int | None:
    """Return how many threads a process has, None if /proc does not say."""
    fields = _fields(pid)
    return None if fields is None else int(fields[17])


def peak(pid: int) -> float | None:
    """Return the most resident memory that a process ever had in MiB (VmHWM), None if /proc does not say."""
    return _size(f"{pid}/status", "VmHWM:")


def processor_seconds(pid: int) -> float | None:
    """Return the processor seconds of a process and its descendants, None if /proc does not say."""
    ticks = 0
    for each in tree(pid):
        fields = _fields(each)
        if fields is None:
            return None
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _fields(pid: int) -> list[str] | None:
    """Return the fields of `stat` after the process name, which stands in brackets and may contain any character."""
    with contextlib.suppress(OSError):
        return (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    return None


def _size(path: str, name: str) -> float | None:
    with contextlib.suppress(OSError):
        for line in (_PROC / path).read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith(name):
                return int(line.split()[1]) / _KIBIBYTES
    return None
