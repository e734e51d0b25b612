"""What the emulator reads and what it answers: frozen values, and the one way a path is read."""

from __future__ import annotations

import http
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

JSON_TYPE = "application/json; charset=utf-8"
TEXT_TYPE = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived: the raw path, decoded query pairs, lower-case header names."""

    method: str
    path: str
    query: tuple[tuple[str, str], ...] = ()
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    segments: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Read the path once; every rule uses that reading."""
        object.__setattr__(self, "segments", segments_of(self.path))

    def values(self, name: str) -> list[str]:
        """Every value of one header, in order; `name` in lower case."""
        return [value for header, value in self.headers if header == name]


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back; `delay` is how many seconds IMDS itself takes before it answers."""

    status: int
    body: bytes = b""
    content_type: str | None = JSON_TYPE
    headers: tuple[tuple[str, str], ...] = ()
    delay: float = 0.0


def read_query(raw: bytes) -> tuple[tuple[str, str], ...]:
    """Return the decoded name and value pairs of a query string, empty values kept."""
    return tuple(parse_qsl(raw.decode("latin-1"), keep_blank_values=True))


def segments_of(path: str) -> tuple[str, ...]:
    r"""
    Split a raw path the generous way, so that a caller who slips something past a proxy really gets it.

    Percent escapes are decoded, `\` is read as `/` (what made CVE-2022-23551 possible), dot segments
    are resolved and empty ones dropped. NV: IMDS may be stricter than this.
    """
    found: list[str] = []
    for segment in unquote(path).replace("\\", "/").split("/"):
        if segment == "..":
            del found[-1:]
        elif segment not in {"", "."}:
            found.append(segment)
    return tuple(found)


def compact(document: Any) -> bytes:
    """Write JSON the way IMDS does: no spaces, keys in the order they were given."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def json_answer(document: Any, status: int = 200) -> Answer:
    """Answer with a JSON document."""
    return Answer(status, compact(document))


def failure(status: int, identity: bool = False, message: str | None = None) -> Answer:
    """
    Answer a status in the form its category uses; without a message, in general words.

    NV: the general words of every status but 404 and the identity 429.
    """
    if status in {204, 304}:
        return Answer(status, content_type=None)
    if message is None:
        message = _general_words(status, identity)
    if identity and status != http.HTTPStatus.NOT_FOUND:
        return json_answer({"error": "invalid_request", "error_description": message}, status)
    return json_answer({"error": message}, status)


def _general_words(status: int, identity: bool) -> str:
    if identity and status == http.HTTPStatus.TOO_MANY_REQUESTS:
        return "Temporarily throttled, too many requests"
    try:
        phrase = http.HTTPStatus(status).phrase
    except ValueError:
        return "Error"
    return phrase if identity else phrase.capitalize()
