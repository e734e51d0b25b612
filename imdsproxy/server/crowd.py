"""How many connections there may be, so that descriptors remain for IMDS and for operators.

A process that has no descriptor left cannot ask IMDS, and its event loop closes new connections without an answer.
"""

from __future__ import annotations

import heapq
import logging
import sys
from collections.abc import Collection
from enum import Enum
from typing import Protocol

logger = logging.getLogger(__name__)

RESERVE = 64
"""Descriptors kept for IMDS (five requests at once, twenty with a budget of its own), listeners, log and files."""
ADMIN_RESERVE = 16
"""Connections beyond the limit that the admin listener may still take."""
ANSWERED = 32
"""Connections beyond the limit that are told why they are refused; they are closed after their first bytes."""
_DESCRIPTORS = 65536
# Looking for idle connections takes time by the number of connections, so several are closed at once.
_CLOSED_AT_ONCE = 64
_OVER = 0.9


class Admission(Enum):
    """What becomes of a new connection."""

    STAY = "stay"
    ANSWER = "answer its first request with 503"
    CLOSE = "close it at once"


class Idler(Protocol):
    """A connection as far as this module needs it."""

    @property
    def idle_since(self) -> float | None:
        """The loop's time of the last answer, or None while a request is here."""
        ...

    def close_idle(self) -> None:
        """Close the connection."""
        ...


class Crowd:
    """The limit of connections of one server, over all of its listeners."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._refused = 0

    def admit(self, new: object, connections: Collection[object], *, admin: bool = False) -> Admission:
        """Return what becomes of a new connection, which is among `connections`.

        At the limit, the connections that have been idle for longest are closed to make room. If none is idle, the
        new one is refused. That is logged once, and once when it is over.
        """
        count = len(connections)
        if count <= self.limit:
            if self._refused and count < self.limit * _OVER:
                logger.info("connections are accepted again", extra={"fields": {"refused": self._refused}})
                self._refused = 0
            return Admission.STAY
        idle = [each for each in connections if each is not new and _idle_since(each) is not None]
        for each in heapq.nsmallest(_CLOSED_AT_ONCE, idle, key=lambda one: _idle_since(one) or 0.0):
            each.close_idle()  # type: ignore[attr-defined]  # only an Idler has an idle_since
        if idle or (admin and count <= self.limit + ADMIN_RESERVE):
            return Admission.STAY
        if not self._refused:
            logger.warning(
                "too many connections: new ones are refused until some end",
                extra={"fields": {"connections": count, "limit": self.limit, "raise": "LimitNOFILE= or ulimit -n"}},
            )
        self._refused += 1
        return Admission.ANSWER if count <= self.limit + ANSWERED else Admission.CLOSE


def descriptor_limit() -> int:
    """Raise the soft limit of descriptors as far as allowed, and return how many connections it leaves room for."""
    if sys.platform == "win32":
        return _DESCRIPTORS  # no such limit
    import contextlib  # noqa: PLC0415  # for the lines below alone
    import resource  # noqa: PLC0415  # Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    available = _DESCRIPTORS if soft == resource.RLIM_INFINITY else min(soft, _DESCRIPTORS)
    return max(ADMIN_RESERVE, available - RESERVE - ANSWERED)


def _idle_since(connection: object) -> float | None:
    since = getattr(connection, "idle_since", None)
    return since if isinstance(since, float) else None
