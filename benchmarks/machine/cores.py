"""One core for the servers and one for the load, on systems that can pin a process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cores:
    """The two cores, None if nothing is pinned; `words` describes them in the report."""

    servers: int | None
    load: int | None
    words: str


def choose() -> Cores:
    """Choose one core for the servers and another for the load."""
    if not hasattr(os, "sched_setaffinity"):
        return Cores(None, None, "nothing is pinned: this system cannot pin processes")
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        return Cores(None, None, "nothing is pinned: servers and load share the only core")
    servers = usable[-1]
    others = usable[:-1]
    # Two hardware threads of one physical core slow each other down.
    apart = [core for core in others if core not in _siblings(servers)]
    load = (apart or others)[0]
    try:
        with on(servers), on(load):
            pass
    except OSError as error:
        return Cores(None, None, f"nothing is pinned: {error.strerror}")
    shared = "" if apart else " (threads of one physical core)"
    return Cores(servers, load, f"servers on core {servers}, load on core {load}{shared}")


@contextlib.contextmanager
def on(core: int | None) -> Iterator[None]:
    """Pin this thread, and every process it starts in the block, to one core; None pins nothing."""
    if core is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _siblings(core: int) -> set[int]:
    """Return the hardware threads of the same physical core, or the core alone if /sys does not list them."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    found = {core}
    with contextlib.suppress(OSError, ValueError):
        for part in path.read_text(encoding="ascii").strip().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    return found
