"""
IMDS's own limits on one virtual machine: 5 requests a second, and for identity 20 a second and 5 at once.

Figures: Microsoft's IMDS pages of 2020 and 2025. The clock is the caller's, in monotonic seconds.
"""

from __future__ import annotations

from collections import deque

WINDOW = 1.0


class SlidingWindow:
    """At most `limit` accepted arrivals in any `WINDOW` seconds, with no tolerance; 0 is no limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._accepted: deque[float] = deque()

    def has_room(self, now: float) -> bool:
        """Say whether one more may be accepted; the arrival exactly one window ago no longer counts."""
        while self._accepted and now - self._accepted[0] >= WINDOW:
            self._accepted.popleft()
        return not self.limit or len(self._accepted) < self.limit

    def take(self, now: float) -> None:
        """Count one accepted arrival."""
        if self.limit:
            self._accepted.append(now)


class Limits:
    """
    Both classes together; a refused arrival counts for nothing.

    NV: whether identity requests also draw on the general five; `identity_shares_general` makes them.
    """

    def __init__(
        self,
        general: int = 5,
        identity: int = 20,
        identity_concurrency: int = 5,
        *,
        identity_shares_general: bool = False,
    ) -> None:
        self.identity_concurrency = identity_concurrency
        self.identity_shares_general = identity_shares_general
        self.identities_under_way = 0
        self._general = SlidingWindow(general)
        self._identity = SlidingWindow(identity)

    def admit(self, now: float, *, identity: bool = False) -> bool:
        """Accept or refuse one arrival; each accepted one must `leave` once it is answered."""
        windows = [self._identity] if identity else [self._general]
        if identity and self.identity_shares_general:
            windows.append(self._general)
        full = 0 < self.identity_concurrency <= self.identities_under_way
        if (identity and full) or not all(window.has_room(now) for window in windows):
            return False
        for window in windows:
            window.take(now)
        self.identities_under_way += identity
        return True

    def leave(self, *, identity: bool = False) -> None:
        """Note that an accepted request has been answered, or its client is gone."""
        self.identities_under_way -= identity
