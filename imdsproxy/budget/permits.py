"""The interface between a limiter and its budget."""

from __future__ import annotations

from typing import Protocol

from imdsproxy.budget.bucket import Permit


class Permits(Protocol):
    """A budget: this process's own, or one that it shares."""

    @property
    def requests(self) -> int:
        """The number of permits."""
        ...

    @property
    def concurrent(self) -> int:
        """The number of permits that may be lent at once."""
        ...

    def reserve(self, now: float, lease: float, *, background: bool) -> Permit | float:
        """Return a permit, or the seconds after which another attempt may succeed.

        Args:
            now: The current monotonic time, in seconds.
            lease: The seconds for which the permit is lent.
            background: Whether no client waits for it.

        Returns:
            Infinity if only the release of another permit can make one available.
        """
        ...

    def release(self, permit: Permit, now: float, *, counts: bool = True) -> None:
        """Take back a permit whose request is over; `counts` is whether its time is typical for other requests."""
        ...

    def release_unused(self, permit: Permit) -> None:
        """Take back a permit that was not used."""
        ...

    def throttled(self, taken_at: float, now: float, retry_after: float | None) -> None:
        """Slow down after a 429 from IMDS.

        Args:
            taken_at: When the permit of the refused request was taken.
            now: The current monotonic time, in seconds.
            retry_after: The seconds of `Retry-After`, or None.
        """
        ...

    def available(self, now: float) -> int:
        """Return how many permits could be taken at this moment."""
        ...

    def expected_wait(self, ahead: int, now: float) -> float:
        """Return the estimated wait, in seconds, of a request that has `ahead` others before it."""
        ...
