"""Answers out of the cache: the record of one, and a fresh one in the bytes in which it goes out.

Within a second nothing in a hit changes: `Age`, `ttl` and a token's `expires_in` are whole seconds. So it is written
once and repeated until the first of them moves on.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from imdsproxy.cache.freshness import Entry
from imdsproxy.protocol.messages import Response
from imdsproxy.protocol.response_writer import head
from imdsproxy.records import Outcome, RequestRecord

# written anew too early rather than too late.
_ROUNDING = 1e-6


class RenderedHit(NamedTuple):
    """A fresh answer out of the cache as HTTP/1.1 on a connection that stays open."""

    served: RequestRecord
    body: bytes
    head: bytes
    """Status line and fields, the empty line included (RFC 9112 section 2.1)."""
    until: float
    """The monotonic moment before which a hit of the same entry would be the same to the byte."""
    form: tuple[bytes, bytes, bytes]
    """The head without its figures: what stands before that of `Age`, between it and that of `ttl`, and behind."""


def from_cache(entry: Entry, endpoint: str, now: float, detail: str | None = None) -> RequestRecord:
    """Record that an entry answers now; `detail` says why, where its staleness needs a reason."""
    kept = entry.response
    return RequestRecord(
        kept if entry.token is None else Response(kept.status, kept.headers, entry.body(now)),
        endpoint,
        Outcome.HIT if now < entry.fresh_until else Outcome.STALE,
        entry.age(now),
        math.floor(entry.fresh_until - now),  # RFC 9211 section 2.4: below zero is stale
        detail=detail or ("derived" if entry.derived else None),
    )


def write(entry: Entry, endpoint: str, now: float, before: RenderedHit | None = None) -> RenderedHit:
    """Write the hit that an entry, fresh at this moment, is; `before` is an earlier one of the same entry."""
    served = from_cache(entry, endpoint, now)
    # Of a token's head the length of its body may change as well, when `expires_in` loses a digit.
    form = _form(served) if before is None or entry.token is not None else before.form
    front, between, back = form
    written = b"%b%d%b%d%b" % (front, served.age, between, served.ttl, back)  # type: ignore[str-format]  # a hit has both
    return RenderedHit(served, served.response.body, written, same_until(entry, now), form)


def same_until(entry: Entry, now: float) -> float:
    """Give the moment until which an entry that is fresh now is served in the same bytes; it is fresh until then."""
    older = entry.sent_at + max(0, int(now - entry.sent_at)) + 1
    nearer = entry.fresh_until - math.floor(entry.fresh_until - now)
    until = min(older, nearer)
    if entry.token is not None:
        left = entry.token.expires_in - (now - entry.sent_at)  # rounded as in the body
        until = min(until, now + left - math.floor(left))
    return until - _ROUNDING


def _form(served: RequestRecord) -> tuple[bytes, bytes, bytes]:
    """Write a head without the two figures that change. `Served.headers` has their fields at its end, in this order."""
    *fields, (age, _), (name, status) = served.headers()
    front = b"%b%b: " % (head(served.response.status, fields), age)
    # Our own member is the last, and behind its `ttl` comes nothing but a word for `detail`.
    before, ttl, behind = status.rpartition(b"ttl=")
    return front, b"\r\n%b: %b%b" % (name, before, ttl), behind.lstrip(b"0123456789") + b"\r\n\r\n"
