"""Rules for a complete head: its length, and whether it is certain where its body ends (RFC 9112 section 6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from imdsproxy.protocol.messages import Refusal
from imdsproxy.server.connection_refusals import HEAD_TOO_LONG, LONGEST_HEAD, MALFORMED, UPGRADE_WITH_BODY

FRAMING = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade"})
"""The fields that say what follows the head of a request, or on which terms."""

_VERSIONS = frozenset({"1.0", "1.1"})


def refusal_of(target: bytes, headers: Sequence[tuple[bytes, bytes]], version: str, *, upgrade: bool) -> Refusal | None:
    """Return why a request is refused by its head, or None if it may be read on.

    Args:
        target: The target.
        headers: The fields. Their names are in lower case.
        version: The version of HTTP.
        upgrade: Whether the parser takes the following bytes for another protocol.
    """
    # Counted again, because the count while reading is not exact for a head that began in the middle of a read.
    if len(target) + sum(len(name) + len(value) for name, value in headers) > LONGEST_HEAD:
        return HEAD_TOO_LONG
    if version not in _VERSIONS:
        return MALFORMED
    codings = [value.strip().lower() for name, value in headers if name == b"transfer-encoding"]
    if codings and codings != [b"chunked"]:
        return MALFORMED  # RFC 9112 section 6.1: the length of the body is in doubt
    if upgrade and (codings or any(name == b"content-length" and value != b"0" for name, value in headers)):
        return UPGRADE_WITH_BODY
    return None


def head_of(start: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return a head as observers read it, for a request whose own bytes are not exactly one head.

    Args:
        start: The method and the target, with a space between them.
        headers: The fields.
    """
    fields = b"".join(b"\r\n%b: %b" % (name, value) for name, value in headers)
    return b"%b HTTP/1.1%b\r\n\r\n" % (start, fields)
