"""The limits of IMDS for one virtual machine: 5 requests a second, and for identity 20 a second and 5 at once.

Source: Microsoft's IMDS pages of 2020 and 2025. `now` is in monotonic seconds.
"""

from __future__ import annotations

from collections import deque

WINDOW = 1.0


class SlidingWindow:
    """At most `limit` accepted arrivals in any `WINDOW` seconds; 0 is no limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._accepted: deque[float] = deque()

    def has_room(self, now: float) -> bool:
        """Return whether one more arrival is within the limit. An arrival exactly one window ago no longer counts."""
        while self._accepted and now - self._accepted[0] >= WINDOW:
            self._accepted.popleft()
        return not self.limit or len(self._accepted) < self.limit

    def take(self, now: float) -> None:
        """Count one accepted arrival."""
        if self.limit:
            self._accepted.append(now)


class Limits:
    """The general and the identity limits together. A refused arrival counts against none of them.

    Not verified: whether identity requests also count against the general five. `identity_shares_general` says so.
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
        self.identities_in_flight = 0
        self._general = SlidingWindow(general)
        self._identity = SlidingWindow(identity)

    def admit(self, now: float, *, identity: bool = False) -> bool:
        """Return whether one arrival is accepted. Call `leave` once an accepted one has been answered."""
        windows = [self._identity] if identity else [self._general]
        if identity and self.identity_shares_general:
            windows.append(self._general)
        full = 0 < self.identity_concurrency <= self.identities_in_flight
        if (identity and full) or not all(window.has_room(now) for window in windows):
            return False
        for window in windows:
            window.take(now)
        self.identities_in_flight += identity
        return True

    def leave(self, *, identity: bool = False) -> None:
        """Count an accepted request as ended: answered, or left by its client."""
        self.identities_in_flight -= identity
