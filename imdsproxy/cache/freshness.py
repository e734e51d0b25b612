"""How fresh an entry is at a moment, and what to do with a request for it.

An entry has absolute deadlines on the monotonic clock. They never change, even if it is served stale, so staleness is
bounded.

All deadlines count from when the request was sent, as RFC 9111 section 4.2.3 counts a response's age (response delay
included). An entry is therefore never used longer than its lifetime after IMDS wrote it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from imdsproxy.cache.access_token import MARGIN, TokenBody, read_token
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.expectation import is_coded
from imdsproxy.protocol.messages import Response, whole_seconds

_NEGATIVE = frozenset({400, 404})
# The bytes of the objects around an entry, and of its places in the cache's own tables.
_OVERHEAD = 1660
_TOKEN_OVERHEAD = 400
# Fields by which an answer may vary and still be the same for every client: the proxy sends the same ones for all of
# them. An empty member means nothing.
_SAME_FOR_ALL = frozenset({b"", b"accept", b"accept-encoding", b"accept-language", b"host", b"metadata", b"user-agent"})


class Freshness(Enum):
    """How an entry may be used."""

    FRESH = "fresh"
    EXPIRING = "expiring"
    """Fresh; is refreshed in the background a little before it has to be (`refresh_spread`)."""
    REVALIDATE = "revalidate"
    """Stale; may be served while it is refreshed in the background (RFC 5861 section 3)."""
    ON_ERROR = "on-error"
    """Stale; may be served only if IMDS fails (RFC 5861 section 4)."""
    MISS = "miss"


class Plan(Enum):
    """What to do with a request for a cacheable target."""

    SERVE = "serve"
    SERVE_AND_REFRESH = "serve and refresh"
    FETCH_OR_STALE = "fetch, or serve stale at the first failure"
    FETCH = "fetch"


# The whole decision: (freshness, whether IMDS is known to fail) → plan. While IMDS fails, an entry within its stale
# bound is served at once, and refreshed in the background.
_PLANS = {
    (Freshness.FRESH, False): Plan.SERVE,
    (Freshness.FRESH, True): Plan.SERVE,
    (Freshness.EXPIRING, False): Plan.SERVE_AND_REFRESH,
    (Freshness.EXPIRING, True): Plan.SERVE,
    (Freshness.REVALIDATE, False): Plan.SERVE_AND_REFRESH,
    (Freshness.REVALIDATE, True): Plan.SERVE_AND_REFRESH,
    (Freshness.ON_ERROR, False): Plan.FETCH_OR_STALE,
    (Freshness.ON_ERROR, True): Plan.SERVE_AND_REFRESH,
    (Freshness.MISS, False): Plan.FETCH,
    (Freshness.MISS, True): Plan.FETCH,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored answer. All moments are monotonic seconds; `sent_at` is when its request was sent."""

    response: Response
    sent_at: float
    fresh_until: float
    revalidate_until: float
    error_until: float
    token: TokenBody | None = None
    initial_age: int = 0
    """The seconds that the answer had spent in other caches when it arrived."""
    derived: bool = False
    """Whether it was cut out of the entry of a whole."""
    refresh_from: float = math.inf
    """From when it is refreshed although it is still fresh."""

    @property
    def written_at(self) -> float:
        """The earliest moment at which IMDS can have written it."""
        return self.sent_at - self.initial_age

    @property
    def gone_at(self) -> float:
        """The moment from which the entry may not be used at all."""
        return max(self.fresh_until, self.revalidate_until, self.error_until)

    @property
    def size(self) -> int:
        """The bytes it takes, rounded up, including its rendered head and a token's aged body."""
        body = 3 * len(self.response.body) + _TOKEN_OVERHEAD if self.token else len(self.response.body)
        return body + sum(2 * (len(name) + len(value)) + 100 for name, value in self.response.headers) + _OVERHEAD

    @property
    def expires_at(self) -> float | None:
        """When its access token expires; None if it contains none."""
        return self.sent_at + self.token.expires_in if self.token else None

    def age(self, now: float) -> int:
        """Return an upper bound of the whole seconds since IMDS wrote it (RFC 9111 section 4.2.3)."""
        return self.initial_age + max(0, int(now - self.sent_at))

    def body(self, now: float) -> bytes:
        """Return the body to serve now, with a token's remaining seconds at this moment."""
        return self.token.aged(now - self.sent_at) if self.token else self.response.body


def lookup(entry: Entry | None, now: float) -> Freshness:
    """Return how fresh an entry is. At a deadline itself it is already past it."""
    if entry is None:
        return Freshness.MISS
    if now < entry.fresh_until:
        return Freshness.FRESH if now < entry.refresh_from else Freshness.EXPIRING
    if now < entry.revalidate_until:
        return Freshness.REVALIDATE
    return Freshness.ON_ERROR if now < entry.error_until else Freshness.MISS


def plan(freshness: Freshness, *, failing: bool) -> Plan:
    """Return the plan, given whether IMDS is known to fail at this moment."""
    return _PLANS[freshness, failing]


def make_entry(response: Response, lifetimes: Lifetimes, sent_at: float, now: float) -> Entry | None:
    """Return the entry of an answer that is not a failure, or None if it must not be stored.

    A 200 is stored for its lifetimes, 400 and 404 for the negative lifetime, anything else never. A token is fresh for
    half of its life, and may be used stale until `access_token.MARGIN` seconds before it expires. An `Age` does not
    shorten a token's lifetimes, because every cache on the way has aged its `expires_in`.

    Args:
        response: The answer of IMDS.
        lifetimes: The lifetimes of its endpoint.
        sent_at: When its request was sent, in monotonic seconds.
        now: The current monotonic time, in seconds.
    """
    if not _storable(response):
        return None
    initial_age = _age(response)
    written_at = sent_at - initial_age
    if response.status in _NEGATIVE:
        deadline = written_at + lifetimes.negative
        entry = Entry(response, sent_at, deadline, deadline, deadline, None, initial_age)
    elif response.status != 200:
        return None
    elif lifetimes.token:
        token = read_token(response.body)
        if token is None:
            return None
        end = sent_at + token.expires_in - MARGIN
        fresh_until = min(sent_at + token.expires_in / 2, sent_at + lifetimes.fresh, end)
        error_until = min(end, fresh_until + lifetimes.stale_if_error)
        revalidate_until = min(end, fresh_until + lifetimes.revalidate)
        entry = Entry(response, sent_at, fresh_until, revalidate_until, error_until, token, initial_age)
    else:
        fresh_until = written_at + lifetimes.fresh
        entry = Entry(
            response,
            sent_at,
            fresh_until,
            fresh_until + lifetimes.revalidate,
            fresh_until + lifetimes.stale_if_error,
            None,
            initial_age,
        )
    return entry if now < entry.gone_at else None


def replaces(entry: Entry, present: Entry | None, now: float) -> bool:
    """Return whether a new entry may replace the present one. An error never replaces a token that still lives."""
    living_token = present is not None and present.token is not None and now < present.gone_at
    return entry.response.status == 200 or not living_token


def aged_by_wait(response: Response, lifetimes: Lifetimes, seconds: float) -> Response:
    """Return the answer for clients that waited `seconds` for it, with those subtracted from a token's `expires_in`.

    Only whole seconds are subtracted, so that a fast answer has IMDS's own digits.
    """
    token = read_token(response.body) if lifetimes.token and response.status == 200 else None
    return response if token is None else Response(response.status, response.headers, token.aged(int(seconds)))


def _storable(response: Response) -> bool:
    """Return whether the answer is the same for every client (RFC 9111 section 4.1), and without a content coding.

    IMDS sends none of these fields, so an answer with one comes from something on the way.
    """
    varies = {
        member.strip().lower() for name, value in response.headers if name == b"vary" for member in value.split(b",")
    }
    return varies <= _SAME_FOR_ALL and response.header(b"set-cookie") is None and not is_coded(response)


def _age(response: Response) -> int:
    """Return the seconds that the answer spent in another cache, such as a node's imdsproxy.

    The first member counts, and a value that is no number counts for nothing (RFC 9111 section 5.1).
    """
    return whole_seconds((response.header(b"age") or b"").partition(b",")[0]) or 0
