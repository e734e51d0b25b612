"""What an entry is worth at a moment, and what follows from that.

An entry keeps absolute deadlines on the monotonic clock and answers questions about a moment. It is never
re-stamped: an entry that was served stale has the deadlines it was born with, so staleness is bounded.

All deadlines count from the moment the request was sent, as RFC 9111 section 4.2.3 counts a response's age
(response delay included), so nothing is ever used longer after IMDS wrote it than its lifetime says.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from imdsproxy.cache.access_token import MARGIN, TokenBody, read_token
from imdsproxy.policy import Lifetimes
from imdsproxy.protocol.expectation import is_coded
from imdsproxy.protocol.messages import Response

_NEGATIVE = frozenset({400, 404})
# What an entry costs beside its bytes: the objects around it and its places in the cache's own tables.
_OVERHEAD = 1550
_TOKEN_OVERHEAD = 400


class Freshness(Enum):
    """What an entry is good for."""

    FRESH = "fresh"
    REVALIDATE = "revalidate"
    """Stale; may be served while it is renewed in the background."""
    ON_ERROR = "on-error"
    """Stale; may be served only if IMDS fails."""
    MISS = "miss"


class Plan(Enum):
    """What is to be done with a request for a cacheable target."""

    SERVE = "serve"
    SERVE_AND_REFRESH = "serve and refresh"
    FETCH_OR_STALE = "fetch, or serve stale at the first failure"
    FETCH = "fetch"


# The whole decision: standing and (IMDS is known to be failing) → plan. While IMDS fails, an entry within its
# stale bound is served at once and the asking goes on behind it.
_PLANS = {
    (Freshness.FRESH, False): Plan.SERVE,
    (Freshness.FRESH, True): Plan.SERVE,
    (Freshness.REVALIDATE, False): Plan.SERVE_AND_REFRESH,
    (Freshness.REVALIDATE, True): Plan.SERVE_AND_REFRESH,
    (Freshness.ON_ERROR, False): Plan.FETCH_OR_STALE,
    (Freshness.ON_ERROR, True): Plan.SERVE_AND_REFRESH,
    (Freshness.MISS, False): Plan.FETCH,
    (Freshness.MISS, True): Plan.FETCH,
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A kept answer. All moments are monotonic seconds; `sent_at` is when its request went out."""

    response: Response
    sent_at: float
    fresh_until: float
    revalidate_until: float
    error_until: float
    token: TokenBody | None = None
    initial_age: int = 0
    """Seconds that the answer had already spent in a cache on its way here."""
    derived: bool = False
    """It was cut out of the entry of a whole."""

    @property
    def written_at(self) -> float:
        """When IMDS wrote it, at the earliest."""
        return self.sent_at - self.initial_age

    @property
    def gone_at(self) -> float:
        """The moment from which the entry is good for nothing."""
        return max(self.fresh_until, self.revalidate_until, self.error_until)

    @property
    def size(self) -> int:
        """The bytes it takes, rounded up, with what is written of it to be served: a head, and a token's aged body."""
        body = 3 * len(self.response.body) + _TOKEN_OVERHEAD if self.token else len(self.response.body)
        return body + sum(2 * (len(name) + len(value)) + 100 for name, value in self.response.headers) + _OVERHEAD

    @property
    def expires_at(self) -> float | None:
        """When the token in it expires, if it holds one."""
        return self.sent_at + self.token.expires_in if self.token else None

    def age(self, now: float) -> int:
        """Whole seconds since IMDS wrote it, at the most (RFC 9111 section 4.2.3)."""
        return self.initial_age + max(0, int(now - self.sent_at))

    def body(self, now: float) -> bytes:
        """The body as it is to be served now: a token's `expires_in` is what is left of it."""
        return self.token.aged(now - self.sent_at) if self.token else self.response.body


def lookup(entry: Entry | None, now: float) -> Freshness:
    """Say what an entry is good for. A deadline itself is already past it."""
    if entry is None:
        return Freshness.MISS
    if now < entry.fresh_until:
        return Freshness.FRESH
    if now < entry.revalidate_until:
        return Freshness.REVALIDATE
    return Freshness.ON_ERROR if now < entry.error_until else Freshness.MISS


def plan(standing: Freshness, *, failing: bool) -> Plan:
    """Say what to do, given whether IMDS is known to be failing at this moment."""
    return _PLANS[standing, failing]


def keep(response: Response, lifetimes: Lifetimes, sent_at: float, now: float) -> Entry | None:
    """Make the entry of an answer that is no failure, or return None if it is not to be kept.

    200 is kept as the lifetimes say, 400 and 404 for the negative lifetime, anything else never. A token is
    fresh for half of its life and usable, stale, until `access_token.MARGIN` seconds before its end; its `expires_in`
    was aged by every cache it passed, so only for it an `Age` shortens nothing.
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
    """Whether a new entry may take the place of the present one: an error never that of a token that still lives."""
    living_token = present is not None and present.token is not None and now < present.gone_at
    return entry.response.status == 200 or not living_token


def as_told(response: Response, lifetimes: Lifetimes, seconds: float) -> Response:
    """Give an answer as those get it who waited `seconds` for it: what IMDS took is off a token's `expires_in`.

    In whole seconds, so that an answer that came at once is told in IMDS's own digits.
    """
    token = read_token(response.body) if lifetimes.token and response.status == 200 else None
    return response if token is None else Response(response.status, response.headers, token.aged(int(seconds)))


def _storable(response: Response) -> bool:
    """Whether the answer is the same for every client (RFC 9111 section 4.1), and in a form that can be read.

    IMDS sends none of these fields, so an answer with one has passed something else.
    """
    fields = dict(response.headers)
    return b"set-cookie" not in fields and fields.get(b"vary", b"").strip() != b"*" and not is_coded(response)


def _age(response: Response) -> int:
    """Give the seconds that the answer spent in another cache, such as a node's imdsproxy (RFC 9111 section 5.1)."""
    return response.seconds(b"age") or 0
