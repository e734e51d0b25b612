"""A leaf or subtree of `/metadata/instance`, cut out of a stored answer that contains it.

IMDS walks the segments of a path along keys and array indices of one document (Microsoft's IMDS page, "Access
instance metadata"), so a stored document contains every part below it. A part is a slice of IMDS's own bytes.

Every uncertain case goes to IMDS: a leaf that is not a string, a node that is missing or differs in case, any parameter
but `api-version` and `format`, a document that is not compact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from imdsproxy.cache.freshness import Entry, make_entry
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.messages import Key, Response, Target

Way = tuple[str, ...]
"""The segments from a whole down to its part, in the client's case."""
Span = tuple[int, int]

_QUERY = re.compile(r"api-version=[0-9-]+(&format=(?:json|text))?")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
# Unrolled, because an alternation for each character would take memory for each character.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_DECODER = json.JSONDecoder()


def wholes(target: Target) -> Iterator[tuple[Key, Way]]:
    """Yield each key whose answer could contain this target, with the way down from there, the nearest first.

    Without `format`, IMDS answers with JSON, so `format=json` is tried as well.
    """
    path, _, query = target.key.partition("?")
    match = _QUERY.fullmatch(query)
    if target.segments[:2] != ("metadata", "instance") or target.bypass or match is None:
        return
    version = query.partition("&")[0]
    segments = path.split("/")[1:]
    for length in range(len(segments), 1, -1):
        for whole_query in (version, f"{version}&format=json"):
            key = Key("/" + "/".join(segments[:length]) + "?" + whole_query)
            if key != target.key:
                yield key, tuple(segments[length:])


def derive(whole: Entry, way: Way, target: Target, lifetimes: Lifetimes, now: float) -> Entry | None:
    """Return the entry of a part, cut out of the entry of a whole.

    Args:
        whole: The entry to cut from.
        way: The segments from the whole down to the part.
        target: The part's target.
        lifetimes: The part's own lifetimes. They count from when the request for the whole was sent.
        now: The current monotonic time, in seconds.

    Returns:
        None if the result is uncertain, or the part would be expired.
    """
    response = whole.response
    if response.status != 200 or not (response.header(b"content-type") or b"").startswith(b"application/json"):
        return None
    text = target.key.endswith("&format=text")
    body = cut(response.body, way, text=text)
    if body is None:
        return None
    headers = response.headers
    if text:
        headers = tuple(_TEXT if field[0] == b"content-type" else field for field in headers)
    entry = make_entry(Response(200, headers, body), lifetimes, whole.sent_at, now)
    return None if entry is None else replace(entry, derived=True)


def cut(document: bytes, way: Sequence[str], *, text: bool) -> bytes | None:
    """Return a string leaf as text, or a subtree as compact JSON, as IMDS would; None if the result is uncertain."""
    try:
        written = document.decode("utf-8")
        span: Span | None = (0, _end(written, 0))
        if span != (0, len(written)):
            return None
        for name in way:
            span = None if span is None else _child(written, span[0], name)
        return None if span is None else _part(written[slice(*span)], text=text)
    except (ValueError, IndexError, RecursionError):
        return None


def _part(written: str, *, text: bool) -> bytes | None:
    if text:
        return str(json.loads(written)).encode("utf-8") if written.startswith('"') else None
    # No answer of IMDS for an empty container has been captured.
    if not written.startswith(("{", "[")) or len(written) == len("{}"):
        return None
    return None if re.search(r"\s", _STRING.sub("", written)) else written.encode("utf-8")


def _child(written: str, at: int, name: str) -> Span | None:
    """Return the span of the named child in the container that begins at `at`, or None if there is no unique one.

    A second name that differs only in case makes the child ambiguous, because some readers ignore case.
    """
    if written[at] not in "{[":
        return None
    alike = [(child, span) for child, span in _children(written, at) if child.lower() == name.lower()]
    return alike[0][1] if len(alike) == 1 and alike[0][0] == name else None


def _children(written: str, at: int) -> Iterator[tuple[str, Span]]:
    """Yield each child's name and span. Raises ValueError if the container is not compact."""
    named, closing = written[at] == "{", "}" if written[at] == "{" else "]"
    index = 0
    at += 1
    while written[at] != closing:
        name = str(index)
        if named:
            name, at = _DECODER.raw_decode(written, at)
            at = _past(":", written, at)
        end = _end(written, at)
        yield name, (at, end)
        index += 1
        at = end if written[end] == closing else _past(",", written, end)


def _end(written: str, at: int) -> int:
    return _DECODER.raw_decode(written, at)[1]


def _past(sign: str, written: str, at: int) -> int:
    if written[at] != sign:
        raise ValueError(f"{sign} expected")
    return at + 1
