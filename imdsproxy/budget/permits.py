"""What a limiter needs of a budget, whether this process has its own or shares one."""

from __future__ import annotations

from typing import Protocol

from imdsproxy.budget.bucket import Permit


class Permits(Protocol):
    """A budget: this process's own, or one that it shares."""

    @property
    def requests(self) -> int:
        """How many permits there are."""
        ...

    @property
    def concurrent(self) -> int:
        """How many of them may be lent at once."""
        ...

    def reserve(self, now: float, lease: float, *, background: bool) -> Permit | float:
        """Return a permit, or the seconds until asking again may succeed; infinity waits for `release`."""
        ...

    def release(self, permit: Permit, now: float, *, counts: bool = True) -> None:
        """Return a permit whose request is over."""
        ...

    def release_unused(self, permit: Permit) -> None:
        """Return a permit that was not used."""
        ...

    def throttled(self, taken_at: float, now: float, retry_after: float | None) -> None:
        """Learn of a 429."""
        ...

    def available(self, now: float) -> int:
        """Count the permits that could be taken at this moment."""
        ...

    def expected_wait(self, ahead: int, now: float) -> float:
        """Estimate the wait of a request that has so many before it."""
        ...
