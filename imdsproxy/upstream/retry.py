"""The pause before a failed request is retried, by kind of failure.

Sources: Microsoft's IMDS page for the 70 seconds of a 410. Microsoft's managed-identity token page for retries of 410,
429 and 5xx with growing pauses, and for a pause of at least a second after a 500.
"""

from __future__ import annotations

from dataclasses import dataclass

from imdsproxy.protocol.cache_status import ENDING, proxy_detail
from imdsproxy.protocol.failures import Verdict
from imdsproxy.protocol.http_date import read_http_date
from imdsproxy.protocol.messages import BudgetClass, Failure, FailureKind, Response

_LONGEST_PAUSE = 10.0
# A machine where nothing listens at this address is rarely an Azure VM, and long retries would only hide that.
_UNREACHABLE_FOR = 5.0
_IDENTITY_PAUSE = 1.0
_LONGEST_RETRY_AFTER = 3600
# Less time than this before the limit is a rounding error after the last attempt.
_SHORTEST_PAUSE = 0.001


@dataclass(frozen=True, slots=True)
class RetryRules:
    """The user's settings, in seconds: `base` is the first pause, `limit` the time for all attempts of a request."""

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
    """Return the pause before the next attempt in seconds, or None if there is no next attempt.

    | result | rule |
    |---|---|
    | any that is retried | pauses double from `rules.base` up to ten seconds (or that base), until `rules.limit` |
    | an answer with `Retry-After` | that pause |
    | unreachable or unreadable | until five seconds, or `rules.limit` if that is shorter |
    | silence of a known upstream | until `rules.limit`, because TCP itself would retry for clients |
    | too slow or too large | no retry, because the next answer would be the same |
    | no answer of a known proxy | until `rules.limit`, because it may be restarting |
    | an answer of a proxy | no retry, because the proxy has retried itself; only its shutdown is retried |

    Args:
        verdict: The verdict on the last attempt.
        attempt: The number of attempts so far, from 1.
        elapsed: Seconds since the first of them began.
        rules: The user's settings.
        budget: The class of the request.
        known: Whether the upstream has answered before.
        proxied: Whether the upstream is another imdsproxy.
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
        requested = retry_after(result)
        if requested:
            return requested if elapsed + requested <= limit else None
        if result.status >= 500 and budget is BudgetClass.IDENTITY:
            pause = max(pause, _IDENTITY_PAUSE)
    left = limit - elapsed
    return min(pause, left) if left > _SHORTEST_PAUSE else None


def retry_after(response: Response) -> float | None:
    """Return the seconds of `Retry-After` (RFC 9110 section 10.2.3), or None if it is absent or cannot be read.

    A date is compared with the answer's own `Date`, because IMDS's clock may differ from this machine's.
    """
    seconds = response.seconds(b"retry-after")
    if seconds is None:
        until, now = (read_http_date(response.header(name) or b"") for name in (b"retry-after", b"date"))
        if until is None or now is None:
            return None
        seconds = max(0, until - now)
    return float(min(seconds, _LONGEST_RETRY_AFTER))
