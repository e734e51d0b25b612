"""Write the head of an HTTP/1.1 response."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus


def head(status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the status line and the fields, without the empty line (RFC 9112 section 2.1)."""
    lines = b"".join([b"%b: %b\r\n" % field for field in fields])
    return b"HTTP/1.1 %d %b\r\n%b" % (status, HTTPStatus(status).phrase.encode("ascii"), lines)
