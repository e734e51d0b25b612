"""The limit of connections, which keeps descriptors free for IMDS and for operators.

A process without free descriptors can neither connect to IMDS nor accept a connection to refuse it.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import math
import sys
from collections import OrderedDict
from enum import Enum
from typing import Protocol

from imdsproxy.ops.episodes import seconds

logger = logging.getLogger(__name__)

RESERVE = 64
"""Descriptors kept for IMDS (five requests at once, twenty with a budget of its own), listeners, log and files."""
ADMIN_RESERVE = 16
"""Connections beyond the limit that the admin listener may still take."""
ANSWERED = 32
"""Connections beyond the limit that are refused after their first bytes. Further ones are refused at once, although
some clients cannot read an answer that comes before their request."""
_DESCRIPTORS = 65536
# A search for idle connections takes time, so each checks only some connections, and closes several.
_LOOKED_AT = 1024
_CLOSED_AT_ONCE = 64
_CLOSED_SHARE = 16
# Seconds without another search after one that found no idle connection.
_PAUSE = 0.1
_OVER = 0.9


class Admission(Enum):
    """How a new connection is treated."""

    STAY = "stay"
    ANSWER = "answer its first request with 503"
    CLOSE = "answer 503 at once and close it"


class Member(Protocol):
    """The part of a connection that this module uses."""

    @property
    def idle_since(self) -> float | None:
        """The loop's time of the last answer; None during a request, or while an answer is not yet sent in full."""
        ...

    def close_idle(self) -> bool:
        """Close the connection and return True, or return False because a request has just arrived."""
        ...


class ConnectionLimit:
    """The limit of connections of one server, over all of its listeners."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._members: OrderedDict[Member, None] = OrderedDict()  # the least recently checked first
        self._closing: set[Member] = set()  # closed to make room; each has its descriptor until the loop's next turn
        self._refused = 0
        self._refused_since = 0.0
        self._none_idle_until = -math.inf

    def admit(self, new: Member, now: float, *, admin: bool = False) -> Admission:
        """Return how a new connection is treated.

        At the limit, the connections that have been idle for longest are closed to make room. If none is idle, the
        new one is refused. The first refusal is logged, and so is the end of the refusals.
        """
        count = len(self._members) + 1
        admission = Admission.STAY
        if count > self.limit and not self._make_room(now) and not (admin and count <= self.limit + ADMIN_RESERVE):
            if not self._refused:
                self._refused_since = now
                logger.warning(
                    "too many connections; new ones are refused",
                    extra={"fields": {"connections": count, "limit": self.limit, "raise": "LimitNOFILE= or ulimit -n"}},
                )
            self._refused += 1
            admission = Admission.ANSWER if count <= self.limit + ANSWERED else Admission.CLOSE
        elif self._refused and count < self.limit * _OVER:
            logger.info(
                "connections are accepted again",
                extra={"fields": {"seconds": seconds(now - self._refused_since), "refused": self._refused}},
            )
            self._refused = 0
        self._members[new] = None
        return admission

    def leave(self, member: Member) -> None:
        """Note that a connection has ended."""
        self._members.pop(member, None)
        self._closing.discard(member)

    @property
    def count(self) -> int:
        """How many connections there are, those that are refused included."""
        return len(self._members) + len(self._closing)

    @property
    def is_spent(self) -> bool:
        """Whether the next connection has to wait until some that are closing have ended."""
        return bool(self._closing) and self.count >= self.limit + ANSWERED

    def _make_room(self, now: float) -> bool:
        """Close some of the connections that have been idle for longest; return whether there were any.

        Only `_LOOKED_AT` connections are checked, in turn, so that a new connection never blocks the loop for long.
        """
        if now < self._none_idle_until:
            return False
        looked_at = list(itertools.islice(self._members, _LOOKED_AT))
        idle = [(since, number) for number, each in enumerate(looked_at) if (since := each.idle_since) is not None]
        for each in looked_at:
            self._members.move_to_end(each)
        enough = min(_CLOSED_AT_ONCE, self.limit // _CLOSED_SHARE + 1)
        closed = 0
        for _, number in heapq.nsmallest(_CLOSED_AT_ONCE, idle):
            if closed < enough and looked_at[number].close_idle():
                del self._members[looked_at[number]]
                self._closing.add(looked_at[number])
                closed += 1
        if not closed:
            self._none_idle_until = now + _PAUSE
        return closed > 0


def most_connections() -> int:
    """Raise the soft limit of descriptors as far as allowed, and return the number of connections that fit."""
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
    return room(available)


def room(descriptors: int) -> int:
    """Return the number of connections that fit into this number of descriptors."""
    return max(ADMIN_RESERVE, descriptors - RESERVE - ANSWERED)
