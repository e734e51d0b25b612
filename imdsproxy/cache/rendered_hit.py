"""Answers from the cache: their record, and a hit rendered as the bytes to send.

`Age`, `ttl` and a token's `expires_in` are whole seconds, so a hit is rendered once and repeated until the first of
them changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

from imdsproxy.cache.freshness import Entry
from imdsproxy.protocol.messages import Response
from imdsproxy.protocol.response_writer import head
from imdsproxy.records import Outcome, RequestRecord

# A hit expires this many seconds before its bytes change, because floating-point time is rounded.
_ROUNDING = 1e-6
_LINE_END = b"\r\n"


@dataclass(slots=True)
class Uses:
    """How many answers came from the entries of one key. It is a plain number, because every hit adds to it."""

    count: int = 0


class RenderedHit(NamedTuple):
    """A fresh answer from the cache as HTTP/1.1, for a connection that stays open."""

    served: RequestRecord
    body: bytes
    head: bytes
    """Status line and fields, the empty line included (RFC 9112 section 2.1)."""
    until: float
    """The monotonic moment before which another hit of the same entry is the same bytes."""
    form: tuple[bytes, bytes, bytes]
    """The head without the figures of `Age` and `ttl`: the bytes before, between and after them."""
    uses: Uses
    """The count to which each use of the hit adds."""

    def __repr__(self) -> str:
        """Show no body, because it can be an access token."""
        return f"RenderedHit({self.served!r}, until={self.until})"

    @property
    def last_head(self) -> bytes:
        """The head of the last answer on a connection (RFC 9112 section 9.6)."""
        return self.head[: -len(_LINE_END)] + b"connection: close\r\n\r\n"


def from_cache(entry: Entry, endpoint: str, now: float, detail: str | None = None) -> RequestRecord:
    """Return the record of an answer from this entry; `detail` is the reason for serving it stale, if it needs one."""
    stored = entry.response
    return RequestRecord(
        stored if entry.token is None else Response(stored.status, stored.headers, entry.body(now)),
        endpoint,
        Outcome.HIT if now < entry.fresh_until else Outcome.STALE,
        entry.age(now),
        math.floor(entry.fresh_until - now),  # RFC 9211 section 2.4: below zero is stale
        detail=detail or ("derived" if entry.derived else None),
    )


def write(
    entry: Entry, endpoint: str, now: float, before: RenderedHit | None = None, uses: Uses | None = None
) -> RenderedHit:
    """Render the hit of an entry that is fresh now.

    Args:
        entry: The entry.
        endpoint: The name of its endpoint.
        now: The current monotonic time, in seconds.
        before: An earlier hit of the same entry.
        uses: The count of its key's uses; None begins another.
    """
    served = from_cache(entry, endpoint, now)
    # A token's Content-Length may change as well, when `expires_in` loses a digit.
    form = _form(served) if before is None or entry.token is not None else before.form
    front, between, back = form
    written = b"%b%d%b%d%b" % (front, served.age, between, served.ttl, back)  # type: ignore[str-format]  # a hit has both
    return RenderedHit(served, served.response.body, written, same_until(entry, now), form, uses or Uses())


def same_until(entry: Entry, now: float) -> float:
    """Return the moment until which the hit of a fresh entry stays the same bytes.

    Until then it stays fresh, and its refresh does not become due.
    """
    older = entry.sent_at + max(0, int(now - entry.sent_at)) + 1
    nearer = entry.fresh_until - math.floor(entry.fresh_until - now)
    until = min(older, nearer)
    if now < entry.refresh_from:
        until = min(until, entry.refresh_from)
    if entry.token is not None:
        left = entry.token.expires_in - (now - entry.sent_at)  # rounded as in the body
        until = min(until, now + left - math.floor(left))
    return until - _ROUNDING


def _form(served: RequestRecord) -> tuple[bytes, bytes, bytes]:
    """Return a head without its two changing figures. `RequestRecord.headers` ends with their fields, in this order."""
    *fields, (age, _), (name, status) = served.headers()
    front = b"%b%b: " % (head(served.response.status, fields), age)
    # The proxy's own member is the last. After its `ttl` comes nothing but the word of `detail`.
    before, ttl, behind = status.rpartition(b"ttl=")
    return front, b"\r\n%b: %b%b" % (name, before, ttl), behind.lstrip(b"0123456789") + b"\r\n\r\n"
