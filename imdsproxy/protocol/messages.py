"""The frozen values that flow through the house: what was asked, what was answered, what went wrong."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, NewType

Headers = tuple[tuple[bytes, bytes], ...]
"""Header fields in the order of the wire, names in lower case."""

IMDS_HOST = "169.254.169.254"
"""The one address of IMDS on every VM, at port 80 (Microsoft's IMDS page)."""

Key = NewType("Key", str)
"""The name of a cache entry: the path and every query parameter, in one canonical spelling."""


class BudgetClass(Enum):
    """Which allowance of IMDS a request draws on."""

    GENERAL = "general"
    IDENTITY = "identity"


@dataclass(frozen=True, slots=True, eq=False)
class Target:
    """A request target that can be read in one way only.

    Targets compare by identity: one reading of some bytes is shared by all requests with these bytes.
    """

    raw: bytes
    """Path and query in their canonical spelling, parameters in the client's order; exactly this is sent to IMDS."""
    segments: tuple[str, ...]
    """The path's segments, decoded and in lower case; a trailing slash adds none."""
    parameters: tuple[tuple[str, str], ...]
    """Query names, decoded and in lower case, with their decoded values."""
    key: Key
    authority: str | None = None
    """`host:port` in lower case, where the client wrote an absolute-form target; with `https://` if it did."""
    bypass: bool = False
    """`bypass_cache=true` is among the parameters."""

    @property
    def path(self) -> str:
        """The path in the one spelling that rules are written in: lower case, no trailing slash."""
        return "/" + "/".join(self.segments)

    def has(self, name: str) -> bool:
        """Whether a query parameter of this (lower-case) name is present."""
        return any(present == name for present, _ in self.parameters)


class Request(NamedTuple):
    """A request that passed the normaliser. A tuple, since one is made for every hit, and a tuple is made fastest."""

    method: str
    target: Target
    metadata: bool = False
    """The client itself sent `Metadata: true`, once."""
    no_cache: bool = False
    """The client sent `Cache-Control: no-cache` (RFC 9111 section 5.2.1.4)."""
    headers: Headers = ()
    """The client's own end-to-end fields; sent on only where the request serves this one client."""
    body: bytes = b""
    hops: tuple[str, ...] = ()
    """The imdsproxy instances that the request has passed already."""
    wrong_metadata: bool = False
    """The client sent a `Metadata` that says anything else, or more than one."""
    to_imds: bool = False
    """The request was addressed to IMDS itself, as before a redirect, and not to the proxy."""


@dataclass(frozen=True, slots=True)
class Response:
    """An answer, whole. Headers are end-to-end ones without Content-Length, which follows from the body."""

    status: int
    headers: Headers
    body: bytes

    def header(self, name: bytes) -> bytes | None:
        """The first value of a field, by its lower-case name."""
        return next((value for field, value in self.headers if field == name), None)

    def seconds(self, name: bytes) -> int | None:
        """A field's value as whole seconds, at most nine digits of them; None where it is absent or no number."""
        value = (self.header(name) or b"").strip()
        return int(value[:9]) if value.isdigit() else None


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of the proxy's own: why, and what to do about it."""

    status: int
    reason: str
    """One word for machines: `detail` of Cache-Status, a log field."""
    error: str
    description: str
    headers: Headers = ()
    body: bytes | None = None
    """Given where IMDS's own words are to be used instead of the proxy's."""

    def response(self) -> Response:
        """The refusal as it goes to the client: JSON in the form that IMDS's identity endpoint uses."""
        body = self.body
        if body is None:
            document = {"error": self.error, "error_description": self.description}
            body = json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode("ascii")
        fields = ((b"content-type", b"application/json; charset=utf-8"), *self.headers)
        return Response(self.status, fields, body)


class FailureKind(Enum):
    """The ways in which IMDS gives no usable answer; the value is the one word for machines."""

    UNREACHABLE = "upstream-unreachable"
    TIMEOUT = "upstream-timeout"
    SILENT = "upstream-silent"
    """It took no connection in time: neither an answer nor a refusal came back."""
    RESET = "upstream-reset"
    UNREADABLE = "upstream-unreadable"
    UNEXPECTED = "upstream-unexpected"
    """A whole HTTP answer, but none that the endpoint can have given."""
    TOO_LARGE = "upstream-too-large"
    LOOP = "loop"
    INTERNAL = "internal-error"
    DESCRIPTORS = "descriptors"
    """This process may not open another file, so IMDS was not asked."""


_STATUSES = {
    FailureKind.TIMEOUT: 504,
    FailureKind.SILENT: 504,
    FailureKind.LOOP: 508,
    FailureKind.INTERNAL: 500,
    FailureKind.DESCRIPTORS: 503,
}
_ERRORS = {FailureKind.LOOP: "loop_detected"}


@dataclass(frozen=True, slots=True)
class Failure:
    """No usable answer came. `sent` is false where the request certainly never reached IMDS."""

    kind: FailureKind
    description: str
    sent: bool = True

    def refusal(self, retry_after: int) -> Refusal:
        """What the client is told: 504 where IMDS was too slow, 508 where the way there leads back, else 502.

        RFC 9110 sections 15.6.3 and 15.6.5, RFC 5842 section 7.2. `retry_after` is in seconds; a loop is for
        somebody to mend, and no time can be given for that.
        """
        word = self.kind.value
        return Refusal(
            _STATUSES.get(self.kind, 502),
            word,
            _ERRORS.get(self.kind, word.replace("-", "_")),
            self.description,
            () if self.kind is FailureKind.LOOP else ((b"retry-after", b"%d" % retry_after),),
        )
