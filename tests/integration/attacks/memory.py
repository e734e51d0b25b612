"""Measure the memory of a real process under a flood, and hold it to the stated bound."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable
from pathlib import Path

from imdsproxy.server.memory_bound import beside, most_memory
from tests.integration.attacks.listeners import KINDS, Everywhere
from tests.kit import ProxyProcess, get
from tests.targets import TOKEN

MAX_BODY = 1 << 16


def peak(process: ProxyProcess) -> int:
    """Return the most resident memory that the process had, in bytes (proc(5))."""
    for line in Path(f"/proc/{process.process.pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


def settled_peak(process: ProxyProcess) -> int:
    """Return the peak once it grows no more; a flood needs a moment to be read."""
    last, since, end = 0, time.monotonic(), time.monotonic() + 10
    while time.monotonic() < end and time.monotonic() - since < 0.4:
        now = peak(process)
        if now > last:
            last, since = now, time.monotonic()
        time.sleep(0.05)
    return last


def connect(process: ProxyProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", process.port), timeout=10)


def flood(
    stack: contextlib.ExitStack, proxy: ProxyProcess | Everywhere, count: int, sent: Callable[[int], bytes]
) -> list[socket.socket]:
    """Open the connections, to the proxy's listeners in turn, and send on each as much as the proxy takes.

    The admin listener keeps no request waiting, so it gets only what is never complete.
    """
    kinds: tuple[str, ...] = KINDS[:1]
    if isinstance(proxy, Everywhere):
        kinds = KINDS[:2] if b"\r\n\r\n" in sent(0) else KINDS
    connections = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        to = proxy.connect(kind) if isinstance(proxy, Everywhere) else connect(proxy)
        connection = stack.enter_context(to)
        connection.setblocking(False)  # noqa: FBT003  # the standard library's signature
        connections.append(connection)
        left = sent(number)
        end = time.monotonic() + 0.2
        while left and time.monotonic() < end:
            try:
                left = left[connection.send(left) :]
            except BlockingIOError:
                time.sleep(0.001)
            except OSError:  # refused
                break
    return connections


def holds(
    process: ProxyProcess, cache: int, connections: int, max_body: int = MAX_BODY, *, traces: bool = False
) -> None:
    """Hold that the peak is within the bound, and that the next client is served, a token from IMDS included."""
    bound = most_memory(cache, max_body, connections, beside(pods=False, traces=traces))
    most = settled_peak(process)
    assert most < bound, f"{most / 2**20:.1f} MiB, stated {bound / 2**20:.1f}"
    print(f"{most / 2**20:.1f} MiB of {bound / 2**20:.1f}")  # noqa: T201  # the figures of docs/memory.md, by `-s`
    # The proxy reads thousands of long requests first, which takes a busy machine a while.
    assert get(process.port, "/-/healthy", patience=120).status == 200
    assert get(process.port, TOKEN, patience=120).status == 200
    assert "Traceback" not in process.log
