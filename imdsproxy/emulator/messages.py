"""The values of the emulator: a request, an answer, and how a path is read."""

from __future__ import annotations

import base64
import http
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

JSON_TYPE = "application/json; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its raw path, decoded query pairs, and headers with lower-case names."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = field(default=b"", repr=False)
    segments: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Split the path once, so that every rule uses the same segments."""
        object.__setattr__(self, "segments", segments_of(self.path))

    def values(self, name: str) -> list[str]:
        """Return every value of one header, in order; `name` is in lower case."""
        return [value for header, value in self.headers if header == name]


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; `delay` is the seconds that IMDS itself takes for it."""

    status: int
    body: bytes = field(default=b"", repr=False)
    content_type: str | None = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0


def read_query(raw: bytes) -> tuple[tuple[str, str], ...]:
    """Return the decoded pairs of a query string, with empty values."""
    return tuple(parse_qsl(raw.decode("latin-1"), keep_blank_values=True))


def segments_of(path: str) -> tuple[str, ...]:
    r"""Split a raw path permissively, so that the emulator answers a path that tricks a proxy's checks.

    Percent escapes are decoded, `\` is read as `/` (which made CVE-2022-23551 possible), dot segments are resolved, and
    empty ones dropped. Not verified: IMDS may be stricter.
    """
    found: list[str] = []
    for segment in unquote(path).replace("\\", "/").split("/"):
        if segment == "..":
            del found[-1:]
        elif segment not in {"", "."}:
            found.append(segment)
    return tuple(found)


def compact(document: Any) -> bytes:
    """Return JSON as IMDS writes it: without spaces, keys in their order."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def base64url(data: bytes) -> str:
    """Return data in base64 for URLs, without padding (RFC 7515)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def json_answer(document: Any, status: int = 200) -> Answer:
    """Return an answer with a JSON document."""
    return Answer(status, compact(document))


def failure(status: int, identity: bool = False, message: str | None = None) -> Answer:
    """Return an error in the form of its category.

    Args:
        status: The status.
        identity: Whether the path belongs to managed identity, which has a form of its own.
        message: The message; None is a general one (not verified, except for 404 and the 429 of identity).
    """
    if status in {204, 304}:
        return Answer(status, content_type=None)
    if message is None:
        message = _general_message(status, identity)
    if identity and status != http.HTTPStatus.NOT_FOUND:
        return json_answer({"error": "invalid_request", "error_description": message}, status)
    return json_answer({"error": message}, status)


def _general_message(status: int, identity: bool) -> str:
    if identity and status == http.HTTPStatus.TOO_MANY_REQUESTS:
        return "Temporarily throttled, too many requests"
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        return "Error"
    return phrase if identity else phrase.capitalize()
