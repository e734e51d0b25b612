"""What the tour of `imdsproxy demo` says: outcomes by `Cache-Status`, and requests to IMDS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

_SECOND = 1.0


class Arrival(NamedTuple):
    """A request that reached IMDS."""

    at: float
    """Seconds of the emulator's monotonic clock."""
    status: int | None
    """The status of IMDS; None while it has not answered."""


def read_arrival(document: Mapping[str, Any]) -> Arrival:
    """Return an arrival from the emulator's list."""
    return Arrival(document["at"], document["status"])


def outcome(status: int, cache_status: str) -> str:
    """Return the outcome of a request in one word, or its status if the answer is no document."""
    parameters = dict(part.strip().partition("=")[::2] for part in cache_status.split(";")[1:])
    if status != 200:
        detail = parameters.get("detail")
        return f"{status} ({detail})" if detail else str(status)
    if "hit" in parameters:
        return "stale" if parameters.get("ttl", "0").startswith("-") else "hit"
    return "collapsed" if "collapsed" in parameters else "miss"


def outcomes(found: Sequence[str]) -> str:
    """Return how many requests had which outcome, in the order of their first appearance."""
    return ", ".join(f"{count} {word}" for word, count in Counter(found).items())


def most_in_a_second(arrivals: Sequence[Arrival]) -> int:
    """Return the most arrivals within one second, whichever it is; a whole second apart is not within it."""
    times = sorted(arrival.at for arrival in arrivals)
    return max((sum(first <= at < first + _SECOND for at in times) for first in times), default=0)


def sent_to_imds(arrivals: Sequence[Arrival]) -> str:
    """Return how many requests reached IMDS, with the statuses other than 200."""
    failed = Counter(arrival.status for arrival in arrivals if arrival.status not in (200, None))
    told = ", ".join(f"{count} answered {status}" for status, count in failed.items())
    return f"Requests to IMDS: {len(arrivals)}" + (f" ({told})" if told else "")


def summary(requests: int, arrivals: Sequence[Arrival]) -> str:
    """Return the sum of a tour."""
    most = most_in_a_second(arrivals)
    return f"{requests} requests of clients, {len(arrivals)} requests to IMDS, at most {most} of them in any second."
