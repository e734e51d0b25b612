"""What the proxy takes of the machine, from /proc, and what reached IMDS, from the emulator's own record."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from typing import Any

from benchmarks.figures import BenchmarkError
from benchmarks.machine import procfs
from benchmarks.soak.exchange import ask
from benchmarks.soak.verdict import MIB, Sample

_CONNECTIONS = re.compile(rb"^imdsproxy_connections (\d+)", re.MULTILINE)


def sample(pid: int, began: float, *, connections: int | None = None, rest: bool = False) -> Sample:
    """Return the figures of a process at this moment.

    Raises:
        BenchmarkError: The process has ended, or the system has no /proc.
    """
    memory, files, threads = procfs.memory(pid), procfs.descriptors(pid), procfs.threads(pid)
    if memory is None or files is None or threads is None:
        raise BenchmarkError("the proxy has ended, or this system has no /proc")
    return Sample(
        at=time.monotonic() - began,
        resident=int(memory.resident * MIB),
        proportional=int((memory.proportional or 0.0) * MIB),
        descriptors=files,
        threads=threads,
        connections=connections,
        rest=rest,
    )


async def connections(port: int) -> int | None:
    """Return the open connections that the proxy states, this one not included; None if it does not answer."""
    with contextlib.suppress(OSError, EOFError):
        found = _CONNECTIONS.search((await ask(port, b"GET /-/metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")).body)
        return int(found[1]) - 1 if found else None
    return None


class Record:
    """The moments at which requests reached the emulated IMDS, in seconds of its monotonic clock."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.moments: list[float] = []

    async def read(self) -> None:
        """Read the new ones; the emulator forgets what is too old."""
        listed: list[dict[str, Any]] = await control(self._port, "GET", f"/-/arrivals?since={len(self.moments)}")
        self.moments += [float(each["at"]) for each in listed]


async def control(port: int, method: str, target: str, document: object = None) -> Any:
    """Ask the emulator's control interface, and return the document it answers.

    Raises:
        BenchmarkError: The status is not 200.
    """
    body = b"" if document is None else json.dumps(document).encode()
    head = f"{method} {target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    response = await ask(port, f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    if response.status != 200:
        raise BenchmarkError(f"the emulator answered {response.status} to {method} {target}: {response.body[:200]!r}")
    return json.loads(response.body)


def processor_seconds() -> float:
    """Return the processor seconds of this process and all that it started, those that have ended too."""
    ended = os.times()
    return (procfs.processor_seconds(os.getpid()) or 0.0) + ended.children_user + ended.children_system
