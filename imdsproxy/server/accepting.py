"""The decisions of accepting: how long one turn may take, and what a failed accept(2) means."""

from __future__ import annotations

import errno
from enum import Enum

LEAST_TURN = 0.005
"""Seconds that a turn of accepting may take in any case, so that new connections never starve."""
LONGEST_TURN = 0.05
"""Seconds that a turn of accepting takes at most, so that a flood of new connections holds no one up for long."""
MOST_UNSERVED = 16
"""Connections of one turn that wait to be served. Others wait where they take less memory, in the system's queue, and
many a client that only asks and goes has gone by then."""
PAUSE = 0.1
"""Seconds without accepting after the process or the system had no room for one more connection."""


class Failure(Enum):
    """What follows from a failed accept(2)."""

    NONE_LEFT = "no connection waits"
    GONE = "this client has gone; the next may be accepted"
    NO_ROOM = "no connection can be accepted for a while"


_NONE_LEFT = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})
# accept(2), "Error handling": a network error that was pending on the new connection, and a signal or a firewall.
_GONE = frozenset(
    number
    for name in (
        *("ECONNABORTED", "ECONNRESET", "EINTR", "EPERM", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET"),
        *("EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ETIMEDOUT"),
    )
    if (number := getattr(errno, name, None)) is not None
)


def failure(number: int | None) -> Failure:
    """Return what follows from this error number.

    An unknown one counts as want of room, because to try again at once could go on without end.
    """
    if number in _NONE_LEFT:
        return Failure.NONE_LEFT
    return Failure.GONE if number in _GONE else Failure.NO_ROOM


def turn_seconds(others: float) -> float:
    """Return how long this turn may take, if the event loop did other things for so many seconds since the last.

    New connections get as much time as those that are there already, within limits.
    """
    return min(max(others, LEAST_TURN), LONGEST_TURN)
