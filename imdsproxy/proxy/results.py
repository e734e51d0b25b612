"""What a fetch can result in, and the record of the answer that a client gets of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from imdsproxy.budget.limiter import NoPermit
from imdsproxy.cache.freshness import Entry
from imdsproxy.protocol.messages import Failure, Refusal, Response
from imdsproxy.records import Outcome, RequestRecord, refused


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """An answer of IMDS."""

    response: Response
    entry: Entry | None = None
    """The entry, if the answer was stored."""
    failed: bool = False
    """Whether it means that IMDS failed."""


FetchResult = StoredAnswer | NoPermit
"""The results of a fetch, other than a Failure."""


def has_failed(result: FetchResult | Failure) -> bool:
    """Return whether a stale entry is served instead of this result, if there is one."""
    return not isinstance(result, StoredAnswer) or result.failed


def record_of(  # noqa: PLR0913  # the result, how it came about, and the time
    result: FetchResult | Failure, endpoint: str, outcome: Outcome, forward: str, *, now: float, retry_base: float
) -> RequestRecord:
    """Return the record of the answer to one client.

    Args:
        result: The result of the fetch.
        endpoint: The endpoint of the request.
        outcome: The outcome, unless the result is a failure or a refusal.
        forward: Why the request was forwarded: a `fwd` parameter of RFC 9211.
        now: The current time, in monotonic seconds.
        retry_base: The pause before a first retry, in seconds, which is the `Retry-After` of a failure.
    """
    if isinstance(result, NoPermit):
        return refused(_no_permit(result), endpoint)
    if isinstance(result, Failure):
        return refused(result.refusal(max(1, round(retry_base))), endpoint, Outcome.ERROR)
    entry = result.entry
    return RequestRecord(
        result.response,
        endpoint,
        Outcome.ERROR if result.failed else outcome,
        ttl=None if entry is None else math.floor(entry.fresh_until - now),
        forward=forward,
        forward_status=result.response.status,
        stored=entry is not None,
    )


def _no_permit(refusal: NoPermit) -> Refusal:
    return Refusal(
        429,
        "budget",
        "too_many_requests",
        "This VM's allowance at IMDS is spent, and the wait would be longer than IMDSPROXY_MAX_WAIT. "
        f"Ask again in {refusal.retry_after} s, and request fewer different targets.",
        ((b"retry-after", b"%d" % refusal.retry_after),),
    )
