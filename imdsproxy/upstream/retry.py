"""When a failed request is tried again: one row a kind of failure.

Sources: Microsoft's IMDS page for the 70 seconds of a 410; Microsoft's managed-identity token page for
retrying 410, 429 and 5xx with growing pauses and for waiting at least a second after a 500.
"""

from __future__ import annotations

from dataclasses import dataclass

from imdsproxy.protocol.cache_status import ENDING, proxy_detail
from imdsproxy.protocol.failures import Verdict
from imdsproxy.protocol.http_date import read_http_date
from imdsproxy.protocol.messages import BudgetClass, Failure, FailureKind, Response

_LONGEST_PAUSE = 10.0
# An address where nothing listens is as a rule no VM of Azure's; long patience there only hides that.
_UNREACHABLE_FOR = 5.0
_IDENTITY_PAUSE = 1.0
_LONGEST_TOLD = 3600
# What is left of the time after the attempt at its very end is a rounding error.
_SHORTEST_PAUSE = 0.001


@dataclass(frozen=True, slots=True)
class RetryRules:
    """The user's settings: `base` is the first pause, `limit` bounds all of a request's attempts, in seconds."""

    base: float = 1.0
    limit: float = 70.0


def next_delay(  # noqa: PLR0913  # what happened, how far it has come, and by which rules
    verdict: Verdict,
    attempt: int,
    elapsed: float,
    rules: RetryRules,
    budget: BudgetClass = BudgetClass.GENERAL,
    *,
    known: bool = False,
    proxied: bool = False,
) -> float | None:
    """Return the pause before the next attempt in seconds, or None if there is to be none.

    Pauses double from `rules.base` up to ten seconds (or that base); a `Retry-After` of IMDS's stands instead. The
    last attempt begins when `rules.limit` is reached. What cannot be reached or read is given up after five seconds,
    except silence of an upstream that is known, which clients by themselves would wait out (TCP asks again and again).
    What was too slow or too large is not retried, since it would be so again. A proxy that has answered before is
    waited for like IMDS, since it may be being replaced; its answers are passed on, because it has retried by itself.

    Args:
        verdict: The verdict on the last attempt.
        attempt: The number of attempts so far, from 1.
        elapsed: Seconds since the first of them began.
        rules: The user's settings.
        budget: The class of the request.
        known: The upstream has answered before.
        proxied: The upstream is another imdsproxy.
    """
    if not verdict.retried:
        return None
    result = verdict.result
    pause = min(max(_LONGEST_PAUSE, rules.base), rules.base * 2 ** min(attempt - 1, 30))
    limit = rules.limit
    if isinstance(result, Failure):
        if not (known and (proxied or result.kind is FailureKind.SILENT)):
            limit = min(limit, _UNREACHABLE_FOR)
    elif proxy_detail(result) not in {None, ENDING}:
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
    """Return the seconds of `Retry-After` (RFC 9110 section 10.2.3), or None if it is absent or cannot be read.

    A date is read against the answer's own `Date`, because IMDS's clock need not be this machine's.
    """
    seconds = response.seconds(b"retry-after")
    if seconds is None:
        until, now = (read_http_date(response.header(name) or b"") for name in (b"retry-after", b"date"))
        if until is None or now is None:
            return None
        seconds = max(0, until - now)
    return float(min(seconds, _LONGEST_TOLD))
