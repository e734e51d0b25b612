"""The bound of the process's memory, and the number of connections that fit into a memory limit.

The bound is the sum of parts that are bounded elsewhere, each with its measured overhead. `docs/memory.md` explains the
parts. Tests compare real processes, the systemd unit and the manifests with the bound.
"""

from __future__ import annotations

from pathlib import Path

from imdsproxy.server.held_bytes import MOST_BEHIND, POOL
from imdsproxy.upstream.client import BODIES_AT_ONCE

MOST_CONNECTIONS = 4096
"""The maximum number of connections, even if the limit of open files allows more."""
PER_CONNECTION = 32 << 10
"""The maximum bytes of one connection: its own objects, a waiting request that uses up its share, and an unread answer
that is too small to be counted."""
REST = 56 << 20
"""Bytes of everything else: the interpreter, libraries, the log's queue, queues and names of clients, fetches whose
clients have disconnected, and reading one request."""
PODS = 14 << 20
"""Bytes that watching pods adds: the client of Kubernetes with TLS, and the labels of the most pods it keeps."""
TRACES = 48 << 20
"""Bytes that traces add: OpenTelemetry's libraries, and a full queue of spans in its default size."""
# Factors for memory that the allocators keep beyond what is used.
_CACHE = 1.25
_POOL = 1.5
_BODY = 1.25


def beside(*, pods: bool, traces: bool) -> int:
    """Return the bytes that the optional parts in use add to the bound."""
    return PODS * pods + TRACES * traces


def most_memory(cache_max_bytes: int, max_body_bytes: int, connections: int, beside: int = 0) -> int:
    """Return the resident bytes that the process stays below, whatever clients do.

    `beside` are the bytes of optional parts.
    """
    return _without_connections(cache_max_bytes, max_body_bytes, beside) + connections * PER_CONNECTION


def connections_within(limit: int | None, cache_max_bytes: int, max_body_bytes: int, beside: int = 0) -> int:
    """Return how many connections fit into a memory limit of `limit` bytes; None is no limit.

    `beside` are the bytes of optional parts. The result is zero if the limit is too small even without connections.
    """
    if limit is None:
        return MOST_CONNECTIONS
    room = (limit - _without_connections(cache_max_bytes, max_body_bytes, beside)) // PER_CONNECTION
    return max(0, min(MOST_CONNECTIONS, room))


def _without_connections(cache_max_bytes: int, max_body_bytes: int, beside: int) -> int:
    bodies = (BODIES_AT_ONCE + MOST_BEHIND + 1) * max_body_bytes
    return REST + beside + int(_CACHE * cache_max_bytes + _POOL * POOL + _BODY * bodies)


def memory_limit(root: Path = Path("/")) -> int | None:
    """Return the memory limit of this process's control group in bytes, or None without a limit.

    It is the limit of a container or a systemd unit. A group above may have a smaller limit (cgroups(7)). In a
    container, its own group is the top of the visible hierarchy.
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
"""cgroup v1 has no word for "no limit", and writes the largest multiple of the page size instead."""
