"""One record of what happened to a request; header, log line and metrics all come from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from imdsproxy.protocol.messages import BudgetClass, Refusal, Response

# RFC 9110 section 8.6: never in a 204; in a 304 it would speak of the body that was not sent.
_WITHOUT_LENGTH = frozenset({204, 304})
_OF_THE_CACHE = frozenset({b"cache-status"})
_OF_THE_ENTRY = frozenset({b"cache-status", b"age"})


class Outcome(StrEnum):
    """The `outcome` label: exactly one for every request."""

    HIT = "hit"
    STALE = "stale"
    MISS = "miss"
    COLLAPSED = "collapsed"
    BYPASS = "bypass"
    REFUSED = "refused"
    ERROR = "error"


class RequestRecord(NamedTuple):
    """An answer and how it came about, in the words of RFC 9211. A tuple, as `Request` is one."""

    response: Response
    endpoint: str
    outcome: Outcome
    age: int | None = None
    """Whole seconds; set exactly where the answer came out of the cache."""
    ttl: int | None = None
    """Whole seconds of freshness left; negative for a stale answer."""
    forward: str | None = None
    """Why the request had to go to IMDS: an RFC 9211 `fwd` token."""
    forward_status: int | None = None
    stored: bool = False
    detail: str | None = None

    def cache_status(self) -> bytes:
        """The Cache-Status member (RFC 9211 section 2)."""
        parts = ["imdsproxy"]
        if self.age is not None:
            parts.append("hit")
        elif self.forward is not None:
            parts.append(f"fwd={self.forward}")
        if self.forward_status is not None:
            parts.append(f"fwd-status={self.forward_status}")
        if self.ttl is not None:
            parts.append(f"ttl={self.ttl}")
        if self.stored:
            parts.append("stored")
        if self.outcome is Outcome.COLLAPSED:
            parts.append("collapsed")
        if self.detail is not None:
            parts.append(f"detail={self.detail}")
        return "; ".join(parts).encode("ascii")

    def headers(self) -> list[tuple[bytes, bytes]]:
        """The answer's header fields as they go to the client."""
        response = self.response
        replaced = _OF_THE_CACHE if self.age is None else _OF_THE_ENTRY
        fields = [field for field in response.headers if field[0] not in replaced]
        replaced_any = len(fields) < len(response.headers)  # not by IMDS itself, which is the rule
        if response.status not in _WITHOUT_LENGTH:
            fields.append((b"content-length", b"%d" % len(response.body)))
        if self.age is not None:
            fields.append((b"age", b"%d" % self.age))
        # What caches before this one said is kept, and stands before one's own (RFC 9211 section 2).
        status = self.cache_status()
        if replaced_any:
            theirs = [value for name, value in response.headers if name == b"cache-status"]
            status = b", ".join((*theirs, status))
        fields.append((b"cache-status", status))
        return fields


def refused(refusal: Refusal, endpoint: str = "none", outcome: Outcome = Outcome.REFUSED) -> RequestRecord:
    """Record an answer of the proxy's own."""
    return RequestRecord(refusal.response(), endpoint, outcome, detail=refusal.reason)


@dataclass(frozen=True, slots=True)
class UpstreamAttempt:
    """One try at IMDS, or one that was turned away for want of a token."""

    endpoint: str
    budget: BudgetClass
    waited: float
    """Seconds it waited for its token."""
    status: str | None
    """IMDS's status, or the word for the failure; None where the request was turned away."""
    seconds: float = 0.0
    """From sending to the last byte of the answer."""
    retried_after: str | None = None
    """What the try before it had failed of, in the words of `status`."""
