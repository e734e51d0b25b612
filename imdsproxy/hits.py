"""Answers out of the cache: the record of one, and a fresh one in the bytes in which it goes out.

Within a second nothing in a hit changes: `Age`, `ttl` and a token's `expires_in` are whole seconds. So it is written
once and repeated until the first of them moves on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from http import HTTPStatus

from imdsproxy.freshness import Entry
from imdsproxy.messages import Response
from imdsproxy.served import Outcome, Served

# Seconds, far more than the rounding of a moment's arithmetic and far less than anybody notices: by so much a hit is
# written anew too early rather than too late.
_ROUNDING = 1e-6


@dataclass(frozen=True, slots=True)
class Hit:
    """A fresh answer out of the cache as HTTP/1.1 on a connection that stays open."""

    served: Served
    head: bytes
    """Status line and fields, the empty line included (RFC 9112 section 2.1)."""
    until: float
    """The monotonic moment before which a hit of the same entry would be the same to the byte."""

    @property
    def message(self) -> bytes:
        """The whole of it."""
        return self.head + self.served.response.body


def from_cache(entry: Entry, endpoint: str, now: float, detail: str | None = None) -> Served:
    """Record that an entry answers now; `detail` says why, where its staleness needs a reason."""
    kept = entry.response
    return Served(
        kept if entry.token is None else Response(kept.status, kept.headers, entry.body(now)),
        endpoint,
        Outcome.HIT if now < entry.fresh_until else Outcome.STALE,
        age=entry.age(now),
        ttl=math.floor(entry.fresh_until - now),  # RFC 9211 section 2.4: below zero is stale
        detail=detail or ("derived" if entry.derived else None),
    )


def write(entry: Entry, endpoint: str, now: float) -> Hit:
    """Write the hit that an entry, fresh at this moment, is."""
    served = from_cache(entry, endpoint, now)
    status = served.response.status
    fields = b"".join([b"%b: %b\r\n" % field for field in served.headers()])
    head = b"HTTP/1.1 %d %b\r\n%b\r\n" % (status, HTTPStatus(status).phrase.encode("ascii"), fields)
    return Hit(served, head, same_until(entry, now))


def same_until(entry: Entry, now: float) -> float:
    """Give the moment until which an entry that is fresh now is served in the same bytes; it is fresh until then."""
    older = entry.sent_at + max(0, int(now - entry.sent_at)) + 1
    nearer = entry.fresh_until - math.floor(entry.fresh_until - now)
    until = min(older, nearer)
    if entry.expires_at is not None:
        until = min(until, entry.expires_at - math.floor(entry.expires_at - now))
    return until - _ROUNDING
