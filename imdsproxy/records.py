"""The records of what happened: header fields, log lines and metrics all come from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Protocol, Self

from imdsproxy.protocol.messages import BudgetClass, Refusal, Response, Target
from imdsproxy.protocol.peer import UNKNOWN, Peer, describe

# RFC 9110 section 8.6: a 204 has no Content-Length, and in a 304 it would mean the body that was not sent.
_WITHOUT_LENGTH = frozenset({204, 304})
_OF_THE_CACHE = frozenset({b"cache-status"})
_OF_THE_ENTRY = frozenset({b"cache-status", b"age"})


class Outcome(StrEnum):
    """The `outcome` label. Every request has exactly one."""

    # Every hit is counted by its outcome, and the hash of an ordinary member is computed in Python.
    __hash__ = str.__hash__

    HIT = "hit"
    STALE = "stale"
    MISS = "miss"
    COLLAPSED = "collapsed"
    BYPASS = "bypass"
    REFUSED = "refused"
    ERROR = "error"


class RequestRecord(NamedTuple):
    """An answer and its origin, in the terms of RFC 9211. It is a tuple for the same reason as `Request`."""

    response: Response
    endpoint: str
    outcome: Outcome
    age: int | None = None
    """Whole seconds; None unless the answer came from the cache."""
    ttl: int | None = None
    """Whole seconds of freshness left; negative for a stale answer."""
    forward: str | None = None
    """Why the request was forwarded to IMDS: a `fwd` parameter of RFC 9211; None if it was not."""
    forward_status: int | None = None
    """The status of IMDS; None if the request was not forwarded."""
    stored: bool = False
    """Whether the answer was stored."""
    detail: str | None = None
    """One word for the reason: `detail` in Cache-Status and in the log."""
    fetch: int | None = None
    """The number of the fetch that the client waited for; None if it waited for none."""
    upstream: str | None = None
    """The status of the latest upstream attempt that the answer waited for, or the word for its failure; None if the
    answer waited for none."""
    waited: float | None = None
    """Seconds that the fetch waited for its permits; None if the answer waited for no fetch."""

    def cache_status(self) -> bytes:
        """Return the Cache-Status member (RFC 9211 section 2)."""
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
        """Return the answer's header fields as they are sent to the client."""
        response = self.response
        replaced = _OF_THE_CACHE if self.age is None else _OF_THE_ENTRY
        fields = [field for field in response.headers if field[0] not in replaced]
        replaced_any = len(fields) < len(response.headers)  # rare: IMDS itself sends none of them
        if response.status not in _WITHOUT_LENGTH:
            fields.append((b"content-length", b"%d" % len(response.body)))
        if self.age is not None:
            fields.append((b"age", b"%d" % self.age))
        # The members of earlier caches are kept, and come before this one (RFC 9211 section 2).
        status = self.cache_status()
        if replaced_any:
            theirs = [value for name, value in response.headers if name == b"cache-status"]
            status = b", ".join((*theirs, status))
        fields.append((b"cache-status", status))
        return fields


def refused(refusal: Refusal, endpoint: str = "none", outcome: Outcome = Outcome.REFUSED) -> RequestRecord:
    """Return the record of the proxy's own answer."""
    return RequestRecord(refusal.response(), endpoint, outcome, detail=refusal.reason)


@dataclass(frozen=True, slots=True)
class UpstreamAttempt:
    """One request sent to IMDS, or one that was refused because no permit would be free in time."""

    endpoint: str
    budget: BudgetClass
    waited: float
    """Seconds that it waited for its permit."""
    status: str | None
    """IMDS's status, or the word for the failure; None if the request was refused."""
    seconds: float = 0.0
    """Seconds from sending to the last byte of the answer."""
    retried_after: str | None = None
    """The `status` of the previous attempt, which failed; None for a first attempt."""
    client: Peer = UNKNOWN
    """The client whose request started the fetch."""
    target: Target | None = None
    """The target that was requested."""
    failure: str | None = None
    """Why IMDS failed, in a sentence for people; None if it did not fail."""
    fetch: int | None = None
    """The number of the fetch that sent it."""
    response: Response | None = field(default=None, repr=False)
    """IMDS's answer; None if there is none. It may hold an access token."""


AttemptObserver = Callable[[UpstreamAttempt], None]
"""Called with each upstream attempt, in the step in which it ended. It neither waits nor raises."""


Client = tuple[str, int]
"""The name and port of a client, as ASGI has them: an address, or the process at the other end of a Unix socket."""


_NO_NAME = "-"


class KnownClient(tuple[str, int]):  # noqa: SLOT001  # a tuple can have no slots beside its items
    """A client that was looked up. It is what `Client` is, and has a description for people as well."""

    description: str
    """Its user and process, or its address if they are unknown."""

    def __new__(cls, peer: Peer, address: Client | None) -> Self:
        """Make the client of a connection; `address` is its address over TCP, and None at a Unix socket."""
        description = describe(peer)
        if address is not None and description == _NO_NAME:  # the connection ended before the lookup
            description = address[0]
        made = super().__new__(cls, address or (description, 0))
        made.description = description
        return made


def description_of(client: Client | None) -> str:
    """Return the name of a client for people, or `-` if it is not known."""
    if isinstance(client, KnownClient):
        return client.description
    return client[0] if client else _NO_NAME


class RequestObserver(Protocol):
    """Called with each answer, in the step in which it was written. It neither waits nor raises."""

    def __call__(self, record: RequestRecord, seconds: float, client: Client | None, request: bytes, /) -> None:
        """Observe an answer.

        The fast path reports its hits in the same way. All hits of one entry within a second share one record, so the
        other arguments are values that the connection has at hand, and the call makes no object.

        Args:
            record: What happened.
            seconds: The time from the request to the end of the answer.
            client: The client; None if it is not known.
            request: The request's head: from its first byte, at least to the end of its target, and to its end if an
                observer uses the fields (`names_clients`). Empty if the bytes were not a request.
        """
        ...


def notify_all(observers: Sequence[RequestObserver]) -> RequestObserver:
    """Return one observer that calls all of these, in their order.

    It is the observer itself if there is only one, because the fast path would notice the additional call.
    """
    if len(observers) == 1:
        return observers[0]
    each = tuple(observers)

    def notify(record: RequestRecord, seconds: float, client: Client | None, request: bytes, /) -> None:
        for observe in each:
            observe(record, seconds, client, request)

    return notify
