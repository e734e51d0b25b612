"""A request target: read in one way, or refused.

Policy, cache key and forwarded bytes all come from the one result, so that no two of them can disagree
about what was asked (CVE-2022-23551 was such a disagreement, over a backslash). What other software on
the way could read differently is refused rather than repaired: RFC 3986 section 6.2.2 lets a server treat
`%2F`, `//`, `/./`, `;x` or a trailing dot in more than one way.
"""

from __future__ import annotations

import re
from functools import lru_cache
from urllib.parse import quote, unquote_to_bytes

from imdsproxy.protocol.messages import Key, Refusal, Target

# Reading is remembered for targets of ordinary length only, which bounds what remembering can cost.
_REMEMBERED_LENGTH = 1024
_REMEMBERED_TARGETS = 512

# RFC 3986: pchar without ";" (parameters of a segment are read by some servers and dropped by others).
_PATH = re.compile(rb"(?:[A-Za-z0-9\-._~!$&'()*+,=:@/]|%[0-9A-Fa-f]{2})+")
# Any visible ASCII but "#": WHATWG URL writers leave {}|^`\" as they are in a query, where nothing splits on them.
_QUERY = re.compile(rb"(?:[!\"$&-~]|%[0-9A-Fa-f]{2})*")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
# An escape of one of these means the character itself to everyone (RFC 3986 section 6.2.2.2). The dot is
# unreserved too, but an escaped dot has been used to slip "/../" past a reader.
_PLAIN = re.compile(rb"[A-Za-z0-9\-_~]")
# RFC 3986 section 2.3: these are never escaped, so a component of nothing else is its own spelling and meaning.
_UNRESERVED = re.compile(r"[A-Za-z0-9\-._~]*")
_ABSOLUTE = re.compile(rb"(?i)(https?)://([^/?#]*)(.*)", re.DOTALL)
AUTHORITY = re.compile(r"(?P<name>\[[^\[\]@/\\]*\]|[a-z0-9\-._]+)(?::(?P<port>[0-9]{0,5}))?")
"""`uri-host [":" port]` in lower case, without user information (RFC 9110 section 7.2)."""
_BYPASS = "bypass_cache"
# The deepest documented path has ten. Rules and wholes are looked up for each beginning of a path, so thousands of
# segments would cost seconds.
_MOST_SEGMENTS = 64
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class _UnreadableError(Exception):
    """Raised and caught in this module: why a target cannot be read."""


def read_target(raw: bytes) -> Target | Refusal:
    """Read a request target as it was on the wire, origin-form or absolute-form (RFC 9112 section 3.2)."""
    return _remembered(raw) if len(raw) <= _REMEMBERED_LENGTH else _read(raw)


def _read(raw: bytes) -> Target | Refusal:
    try:
        authority, origin = _split(raw)
        path, _, query = origin.partition(b"?")
        written_path, segments = _read_path(path)
        parameters, spelled = _read_query(query)
    except _UnreadableError as why:
        description = f"The request target cannot be read: {why}. Write it as the Azure documentation does."
        return Refusal(400, "bad-target", "invalid_request", description)
    bypass = any(name == _BYPASS and value.lower() == "true" for name, value in parameters)
    if bypass:  # it asks for a renewal of the entry, so it is no part of the entry's name
        spelled = [pair for pair in spelled if not pair.lower().startswith(f"{_BYPASS}=")]
    key = Key(written_path + "?" + "&".join(sorted(spelled)))
    return Target(origin, segments, parameters, key, authority, bypass)


_remembered = lru_cache(maxsize=_REMEMBERED_TARGETS)(_read)


def without_bypass(target: Target) -> Target:
    """Give the same question without the wish that IMDS pass over its own cache; the key is the same."""
    path, _, query = target.raw.partition(b"?")
    pairs = query.split(b"&")
    kept = b"&".join(pair for pair in pairs if _decode(pair.partition(b"=")[0].decode("ascii")).lower() != _BYPASS)
    plain = read_target(path + b"?" + kept)
    return target if isinstance(plain, Refusal) else plain


def _split(raw: bytes) -> tuple[str | None, bytes]:
    """Give the authority of an absolute-form target, if it is one, and its origin-form."""
    if raw.startswith(b"/"):
        return None, raw
    absolute = _ABSOLUTE.fullmatch(raw)
    if absolute is None:
        raise _UnreadableError("it is neither a path nor an http:// address")
    scheme, written, origin = absolute.groups()
    host = AUTHORITY.fullmatch(written.decode("latin-1").lower())
    if host is None:
        raise _UnreadableError("it names no readable host")
    # https is another service wherever it is; with its scheme in front no authority that is served equals it.
    authority = f"{host['name']}:{host['port'] or 80}" if scheme.lower() == b"http" else f"https://{host[0]}"
    return authority, origin if origin.startswith(b"/") else b"/" + origin


def _read_path(path: bytes) -> tuple[str, tuple[str, ...]]:
    """Give the decoded path in the client's case, and its lower-case segments."""
    if not _PATH.fullmatch(path):
        raise _UnreadableError("its path holds a character that does not belong in one")
    for escaped in _ESCAPE.findall(path):
        if not _PLAIN.fullmatch(bytes.fromhex(escaped.decode())):
            raise _UnreadableError(f"its path holds the escape %{escaped.decode()}, which can be read in two ways")
    plain = unquote_to_bytes(path).decode("ascii")
    segments = plain[1:].split("/")
    if segments[-1] == "":
        segments.pop()
    if len(segments) > _MOST_SEGMENTS:
        raise _UnreadableError(f"its path has more than {_MOST_SEGMENTS} segments")
    if any(segment == "" or segment.endswith(".") for segment in segments):
        raise _UnreadableError("its path holds an empty or dotted segment, which can be read in two ways")
    return plain, tuple(segment.lower() for segment in segments)


def _read_query(query: bytes) -> tuple[tuple[tuple[str, str], ...], list[str]]:
    """Give names and values for the policy, and every parameter in its canonical spelling for the key.

    In the key a name keeps its case, and a `+` stays distinct from both `%20` and `%2B`, since it is not
    documented how IMDS reads them: two requests share an entry only where no reader can tell them apart.
    """
    if not _QUERY.fullmatch(query):
        raise _UnreadableError("its query holds a character or an escape that does not belong in one")
    parameters: dict[str, str] = {}
    spelled: list[str] = []
    for pair in query.decode("ascii").split("&") if query else ():
        if not pair:
            # Without meaning, but part of what IMDS gets, which may be too long for it.
            spelled.append("")
            continue
        name, equals, value = pair.partition("=")
        plain = _decode(name).lower()
        if plain in parameters:
            raise _UnreadableError(f"its query gives {plain[:40]!a} twice, which IMDS refuses")
        parameters[plain] = _decode(value)
        spelled.append(_spell(name) + equals + _spell(value))
    return tuple(parameters.items()), spelled


def _decode(component: str) -> str:
    if _UNRESERVED.fullmatch(component):
        return component
    try:
        text = unquote_to_bytes(component.replace("+", " ")).decode("utf-8")
    except UnicodeDecodeError:
        raise _UnreadableError("its query holds an escape that is not UTF-8") from None
    if _CONTROL.search(text):
        raise _UnreadableError("its query holds an escaped control character")
    return text


def _spell(component: str) -> str:
    if _UNRESERVED.fullmatch(component):
        return component
    return "+".join(quote(unquote_to_bytes(part), safe="") for part in component.split("+"))
