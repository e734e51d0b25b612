"""Decisions about accepting: how long one turn may take, and what a failed accept(2) means."""

from __future__ import annotations

import errno
from enum import Enum

LEAST_TURN = 0.005
"""The minimum seconds of a turn of accepting, so that new connections never starve."""
LONGEST_TURN = 0.05
"""The maximum seconds of a turn of accepting, so that a flood of new connections delays others only briefly."""
MOST_UNSERVED = 16
"""The connections that one turn accepts without serving them at once. The others wait in the system's queue, which
takes less memory. Many clients have disconnected again before they are accepted."""
PAUSE = 0.1
"""Seconds without accepting after the process or the system had no room for another connection."""


class Failure(Enum):
    """The meaning of a failed accept(2)."""

    NONE_LEFT = "no connection waits"
    GONE = "this client has disconnected; the next may be accepted"
    NO_ROOM = "no connection can be accepted for a while"


_NONE_LEFT = frozenset({errno.EAGAIN, errno.EWOULDBLOCK})
# accept(2), "Error handling": network errors that were pending on the new connection, a signal, a firewall.
_GONE = frozenset(
    number
    for name in (
        *("ECONNABORTED", "ECONNRESET", "EINTR", "EPERM", "EPROTO", "ENETDOWN", "ENOPROTOOPT", "EHOSTDOWN", "ENONET"),
        *("EHOSTUNREACH", "EOPNOTSUPP", "ENETUNREACH", "ETIMEDOUT"),
    )
    if (number := getattr(errno, name, None)) is not None
)


def failure(number: int | None) -> Failure:
    """Return the meaning of an error number.

    An unknown number counts as `NO_ROOM`, because an immediate retry could repeat without end.
    """
    if number in _NONE_LEFT:
        return Failure.NONE_LEFT
    return Failure.GONE if number in _GONE else Failure.NO_ROOM


def turn_seconds(others: float) -> float:
    """Return how many seconds this turn may take; `others` are the seconds of other work since the last turn.

    New connections get as much time as existing ones, within limits.
    """
    return min(max(others, LEAST_TURN), LONGEST_TURN)
