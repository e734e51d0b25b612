"""The frozen values that flow through the proxy: requests, responses, refusals, failures."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple, NewType

Headers = tuple[tuple[bytes, bytes], ...]
"""Header fields in the order of the wire, names in lower case."""

IMDS_HOST = "169.254.169.254"
"""The one address of IMDS on every VM, at port 80 (Microsoft's IMDS page)."""

Key = NewType("Key", str)
"""The name of a cache entry: the path and every query parameter, in one canonical spelling."""

# More are longer than any lifetime.
_SECONDS_DIGITS = 9


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
    """Path and query in their canonical spelling, parameters in the client's order. These bytes are sent to IMDS."""
    segments: tuple[str, ...]
    """The path's segments, decoded and in lower case. A trailing slash adds no segment."""
    parameters: tuple[tuple[str, str], ...]
    """Query names, decoded and in lower case, with their decoded values."""
    key: Key
    authority: str | None = None
    """`host:port` of an absolute-form target, in lower case, after `https://` if it has that scheme; otherwise None."""
    bypass: bool = False
    """Whether `bypass_cache=true` is among the parameters."""

    @property
    def path(self) -> str:
        """The path as rules are written: lower case, no trailing slash."""
        return "/" + "/".join(self.segments)

    def has(self, name: str) -> bool:
        """Return whether a query parameter of this (lower-case) name is present."""
        return any(present == name for present, _ in self.parameters)


class Request(NamedTuple):
    """A request that `request_parser` accepted. It is a tuple because every hit makes one, and tuples are fastest."""

    method: str
    target: Target
    metadata: bool = False
    """Whether the client sent `Metadata: true`, once."""
    no_cache: bool = False
    """Whether the client sent `Cache-Control: no-cache` (RFC 9111 section 5.2.1.4)."""
    headers: Headers = ()
    """The client's end-to-end fields. They are forwarded only if the answer is for this client alone."""
    body: bytes = b""
    hops: tuple[str, ...] = ()
    """The imdsproxy instances that the request has passed already, the latest last."""
    wrong_metadata: bool = False
    """Whether the client sent `Metadata` more than once, or with another value."""
    to_imds: bool = False
    """Whether the request was addressed to IMDS, as before a redirect, and not to the proxy."""

    def __repr__(self) -> str:
        """Show no fields and no body, which can hold a client's credentials."""
        return f"Request({self.method} {self.target.path})"


def whole_seconds(value: bytes) -> int | None:
    """Return a number of seconds, of at most nine digits; None if the value is no such number."""
    value = value.strip()
    return int(value[:_SECONDS_DIGITS]) if value.isdigit() else None


@dataclass(frozen=True, slots=True)
class Response:
    """A complete answer, with its end-to-end fields. Content-Length is left out, because it follows from the body."""

    status: int
    headers: Headers
    body: bytes = field(repr=False)
    """Not shown, because it can be an access token."""

    def header(self, name: bytes) -> bytes | None:
        """Return the first value of a field, by its lower-case name, or None."""
        return next((value for field, value in self.headers if field == name), None)

    def seconds(self, name: bytes) -> int | None:
        """Return a field's value as whole seconds, of at most nine digits; None if it is absent or not a number."""
        return whole_seconds(self.header(name) or b"")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The proxy's own answer: why it refuses, and what to do about it."""

    status: int
    reason: str
    """One word for machines: `detail` of Cache-Status, a log field."""
    error: str
    description: str
    headers: Headers = ()
    body: bytes | None = field(default=None, repr=False)
    """IMDS's own wording, to be sent instead of the proxy's; None for the proxy's."""

    def response(self) -> Response:
        """Return the refusal as a response: JSON in the form that IMDS's identity endpoint uses."""
        body = self.body
        if body is None:
            document = {"error": self.error, "error_description": self.description}
            body = json.dumps(document, ensure_ascii=True, separators=(",", ":")).encode("ascii")
        fields = ((b"content-type", b"application/json; charset=utf-8"), *self.headers)
        return Response(self.status, fields, body)


class FailureKind(Enum):
    """Why there is no usable answer of IMDS. The value is the word for machines."""

    UNREACHABLE = "upstream-unreachable"
    TIMEOUT = "upstream-timeout"
    SILENT = "upstream-silent"
    """The connection was neither accepted nor refused in time."""
    RESET = "upstream-reset"
    UNREADABLE = "upstream-unreadable"
    UNEXPECTED = "upstream-unexpected"
    """A complete HTTP answer that the endpoint cannot have sent."""
    TOO_LARGE = "upstream-too-large"
    LOOP = "loop"
    INTERNAL = "internal-error"
    DESCRIPTORS = "descriptors"
    """The process has reached its limit of open files, so nothing was sent to IMDS."""


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
    """There is no usable answer. `sent` is false only if the request certainly never reached IMDS."""

    kind: FailureKind
    description: str
    sent: bool = True

    def refusal(self, retry_after: int) -> Refusal:
        """Return the answer for the client: 504 if IMDS was too slow, 508 for a loop, 502 for most other kinds.

        RFC 9110 sections 15.6.3 and 15.6.5, RFC 5842 section 7.2. `retry_after` is in seconds. A loop has no
        Retry-After, because it ends only when a person fixes it.
        """
        word = self.kind.value
        return Refusal(
            _STATUSES.get(self.kind, 502),
            word,
            _ERRORS.get(self.kind, word.replace("-", "_")),
            self.description,
            () if self.kind is FailureKind.LOOP else ((b"retry-after", b"%d" % retry_after),),
        )
