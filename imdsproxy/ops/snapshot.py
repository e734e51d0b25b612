"""The state of the proxy at one moment, as metrics and readiness report it.

Only this module reads the proxy's parts for that purpose, so that all reports agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from imdsproxy.ops import logs
from imdsproxy.protocol.messages import BudgetClass
from imdsproxy.proxy.proxy import Proxy


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The permits, the cache, and the health of IMDS."""

    permits: Mapping[BudgetClass, int]
    """Permits available now."""
    capacity: Mapping[BudgetClass, int]
    """All permits, in use or not."""
    waiting: Mapping[BudgetClass, int]
    """Requests of clients that wait for a permit."""
    entries: int
    """Entries in the cache."""
    bytes: int
    """Bytes that the cache uses."""
    max_bytes: int
    """Bytes that the cache may use."""
    evictions: int
    """Entries evicted because the cache was full, since the start."""
    token_expiry: float | None
    """Remaining life, in seconds, of the cached access token that expires first; None without one."""
    imds_answered: bool
    """Whether IMDS has answered since the start, and not with a failure."""
    trouble: str | None
    """Why the latest request to IMDS failed; None if none did."""
    log_lines_dropped: int
    """Log lines dropped since the start, because standard error was not read or could not be written."""


def take_snapshot(proxy: Proxy) -> Snapshot:
    """Return the state at this moment. Expired entries are dropped first."""
    now = proxy.now()
    limiters = proxy.fetcher.limiters
    proxy.store.sweep()
    expiry = proxy.store.soonest_token_expiry()
    return Snapshot(
        permits={budget: limiter.budget.available(now) for budget, limiter in limiters.items()},
        capacity={budget: limiter.budget.requests for budget, limiter in limiters.items()},
        waiting={budget: limiter.waiting for budget, limiter in limiters.items()},
        entries=len(proxy.store),
        bytes=proxy.store.bytes,
        max_bytes=proxy.store.max_bytes,
        evictions=proxy.store.evictions,
        token_expiry=None if expiry is None else expiry - now,
        imds_answered=proxy.fetcher.health.answered,
        trouble=proxy.fetcher.trouble,
        log_lines_dropped=logs.dropped(),
    )
