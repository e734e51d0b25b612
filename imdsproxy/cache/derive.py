"""A leaf or subtree of `/metadata/instance`, cut out of a kept answer that holds it.

IMDS walks the segments of a path along keys and array indices of the one document (Microsoft's IMDS page, "Access
instance metadata"), so whoever has the whole has every part. Parts are cut, not written anew: what comes out are
IMDS's own bytes. Whatever is not certain is left to IMDS: a leaf that is no string, a node that is missing or written
in other case, any parameter but `api-version` and `format`, a document that is not compact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from imdsproxy.cache.freshness import Entry, keep
from imdsproxy.policy import Lifetimes
from imdsproxy.protocol.messages import Key, Response, Target

Way = tuple[str, ...]
"""The segments from a whole down to its part, in the client's case."""
Span = tuple[int, int]

_QUERY = re.compile(r"api-version=[0-9-]+(&format=(?:json|text))?")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
# Unrolled: an alternation for each character would take memory by the character.
_STRING = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"')
_DECODER = json.JSONDecoder()


def wholes(target: Target) -> Iterator[tuple[Key, Way]]:
    """Give the keys under which something may be kept that this target is a part of, and the way down from there.

    The nearest comes first. `format=json` is what IMDS answers without it.
    """
    path, _, query = target.key.partition("?")
    match = _QUERY.fullmatch(query)
    if target.segments[:2] != ("metadata", "instance") or target.bypass or match is None:
        return
    version = query.partition("&")[0]
    segments = path.split("/")[1:]
    for length in range(len(segments), 1, -1):
        for asked in (version, f"{version}&format=json"):
            key = Key("/" + "/".join(segments[:length]) + "?" + asked)
            if key != target.key:
                yield key, tuple(segments[length:])


def derive(whole: Entry, way: Way, target: Target, lifetimes: Lifetimes, now: float) -> Entry | None:
    """Make the entry of a part out of that of a whole; None if that is not certain, or the part's time is over.

    It has the part's own lifetimes, counted from when the whole was asked for.
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
    entry = keep(Response(200, headers, body), lifetimes, whole.sent_at, now)
    return None if entry is None else replace(entry, derived=True)


def cut(document: bytes, way: Sequence[str], *, text: bool) -> bytes | None:
    """Give a string leaf as text or a subtree as compact JSON, as IMDS would; None where that is not certain."""
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
    # How IMDS answers with a container that is empty has not been seen.
    if not written.startswith(("{", "[")) or len(written) == len("{}"):
        return None
    return None if re.search(r"\s", _STRING.sub("", written)) else written.encode("utf-8")


def _child(written: str, at: int, name: str) -> Span | None:
    """Find the child of that name in the container that begins at `at`; None if it is not there, or not alone.

    A name that differs in case alone would be a second answer for a reader that does not look at case.
    """
    if written[at] not in "{[":
        return None
    alike = [(child, span) for child, span in _children(written, at) if child.lower() == name.lower()]
    return alike[0][1] if len(alike) == 1 and alike[0][0] == name else None


def _children(written: str, at: int) -> Iterator[tuple[str, Span]]:
    """Give each child's name and place; ValueError where the container is not compact."""
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
