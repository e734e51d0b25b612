"""The most memory that the process takes, and how many connections a limit of memory leaves room for.

The bound is a sum of what is bounded elsewhere, each term with what it was measured to take. `docs/memory.md` explains
the terms, and tests hold real processes, the systemd unit and the manifests to it.
"""

from __future__ import annotations

from pathlib import Path

from imdsproxy.server.held_bytes import MOST_BEHIND, POOL
from imdsproxy.upstream.client import BODIES_AT_ONCE

MOST_CONNECTIONS = 4096
"""Connections, whatever the limit of open files."""
PER_CONNECTION = 32 << 10
"""Bytes of one connection at the worst: its own objects, a request that uses up its share and waits, an unread answer
below the mark at which it counts."""
REST = 56 << 20
"""Bytes of everything else: the interpreter, libraries, the log's queue, queues and names of clients, fetches whose
clients have gone, what reading one request takes for a moment."""
# What the allocators keep beyond what is used.
_CACHE = 1.25
_POOL = 1.5
_BODY = 1.25


def most_memory(cache_max_bytes: int, max_body_bytes: int, connections: int) -> int:
    """Return the resident bytes that the process stays below, whatever clients do."""
    return _without_connections(cache_max_bytes, max_body_bytes) + connections * PER_CONNECTION


def connections_within(limit: int | None, cache_max_bytes: int, max_body_bytes: int) -> int:
    """Return how many connections a limit of memory leaves room for; zero if it has no room for the rest."""
    if limit is None:
        return MOST_CONNECTIONS
    room = (limit - _without_connections(cache_max_bytes, max_body_bytes)) // PER_CONNECTION
    return max(0, min(MOST_CONNECTIONS, room))


def _without_connections(cache_max_bytes: int, max_body_bytes: int) -> int:
    bodies = (BODIES_AT_ONCE + MOST_BEHIND + 1) * max_body_bytes
    return REST + int(_CACHE * cache_max_bytes + _POOL * POOL + _BODY * bodies)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the bytes that the kernel allows this process's control group, None where it sets no limit.

    That is the limit of a container or of a systemd unit. A group further up may have a smaller one (cgroups(7)); in a
    container, the group is the root of what can be seen.
    """
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    limits: list[int] = []
    for line in groups:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controllers == "":
            limits += _limits(root / "sys/fs/cgroup", path, ("memory.max", "memory.high"))
        elif "memory" in controllers.split(","):
            limits += _limits(root / "sys/fs/cgroup/memory", path, ("memory.limit_in_bytes",))
    return min(limits, default=None)


def _limits(mount: Path, path: str, names: tuple[str, ...]) -> list[int]:
    """Read the limits of a group and of every group above it."""
    group = mount / path.lstrip("/")
    found = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(mount):
            break
        for name in names:
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError):
                continue
            if text.isdigit() and int(text) < _UNLIMITED:
                found.append(int(text))
    return found


_UNLIMITED = 1 << 60
"""cgroup v1 writes "no limit" as the largest multiple of a page."""
