"""When a failed request is tried again: one row a kind of failure.

Sources: Microsoft's IMDS page for the 70 seconds of a 410; Microsoft's managed-identity token page for
retrying 410, 429 and 5xx with growing pauses and for waiting at least a second after a 500.
"""

from __future__ import annotations

from dataclasses import dataclass

from imdsproxy.protocol.cache_status import ENDING, word_of_proxy
from imdsproxy.protocol.messages import BudgetClass, Failure, FailureKind, Response

DEFAULT_STATUSES = frozenset({410, 429, 500, 502, 503, 504})
_LONGEST_PAUSE = 10.0
# An address where nothing listens is as a rule no VM of Azure's; long patience there only hides that.
_UNREACHABLE_FOR = 5.0
_RETRIED_FAILURES = frozenset({FailureKind.UNREACHABLE, FailureKind.SILENT, FailureKind.RESET, FailureKind.UNREADABLE})
_IDENTITY_PAUSE = 1.0
_LONGEST_TOLD = 3600
# What is left of the time after the try at its very end is a rounding error.
_SHORTEST_PAUSE = 0.001


@dataclass(frozen=True, slots=True)
class RetryRules:
    """The user's settings: `base` is the first pause, `limit` bounds all of a request's tries, in seconds."""

    statuses: frozenset[int] = DEFAULT_STATUSES
    base: float = 1.0
    limit: float = 70.0


def next_delay(  # noqa: PLR0913  # what happened, how far it has come, and by which rules
    result: Response | Failure,
    attempt: int,
    elapsed: float,
    rules: RetryRules,
    budget: BudgetClass = BudgetClass.GENERAL,
    *,
    known: bool = False,
    proxied: bool = False,
) -> float | None:
    """Give the pause before the next try in seconds, or None where there is to be none.

    `attempt` counts the tries made so far, from 1; `elapsed` is the time since the first of them began; `known` says
    that IMDS has answered before; `proxied` that another imdsproxy is asked in its place.
    Pauses double from `rules.base` up to ten seconds (or that base); a `Retry-After` of IMDS's stands instead. The
    last try begins when `rules.limit` is reached; what could not be reached or read is given up after five seconds,
    unless it is silence of one that is known, which clients by themselves would wait out (TCP asks again and again);
    what was too slow or too large is not tried again, since it would be so again. A proxy that has answered before is
    waited for like IMDS, since it may be being replaced; its answers are passed on, because it has tried for itself.
    """
    pause = min(max(_LONGEST_PAUSE, rules.base), rules.base * 2 ** min(attempt - 1, 30))
    limit = rules.limit
    if isinstance(result, Failure):
        if result.kind not in _RETRIED_FAILURES:
            return None
        if not (known and (proxied or result.kind is FailureKind.SILENT)):
            limit = min(limit, _UNREACHABLE_FOR)
    elif result.status not in rules.statuses or word_of_proxy(result) not in {None, ENDING}:
        return None
    else:
        told = retry_after(result)
        if told:
            return told if elapsed + told <= limit else None
        if result.status >= 500 and budget is BudgetClass.IDENTITY:
            pause = max(pause, _IDENTITY_PAUSE)
    left = limit - elapsed
    return min(pause, left) if left > _SHORTEST_PAUSE else None


def retry_after(response: Response) -> float | None:
    """Read `Retry-After` as seconds (RFC 9110 section 10.2.3); None where it is absent or a date.

    A date is on IMDS's clock, which need not be this machine's.
    """
    seconds = response.seconds(b"retry-after")
    return None if seconds is None else float(min(seconds, _LONGEST_TOLD))
