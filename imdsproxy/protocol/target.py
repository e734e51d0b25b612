r"""A request target: read in one way, or refused.

Policy, cache key and forwarded bytes all come from one reading, so that they cannot disagree about the target.
CVE-2022-23551 was such a disagreement, over a backslash. A target that other software could read differently is
refused, not repaired: RFC 3986 section 6.2.2 allows several readings of `%2F`, `/./`, `;x` in a path or a trailing dot.

**Every target is sent in one canonical spelling, and that spelling is its key.** Two targets share an entry only if
the same bytes go to IMDS for both, except for the order of parameters. Otherwise the first client's spelling would
decide what all other clients get. The spelling is:

- An escaped letter, digit, `-`, `.`, `_` or `~` is written as itself (RFC 3986 section 6.2.2.2); in a query `:`, `/`,
  `?` and `@` are too, because they delimit nothing there (section 3.4) and Azure's clients write them either way.
- What may not stand in a query unescaped (`"<>[\]^{|}` and the backtick) is escaped. The digits of an escape are in
  upper case.
- The delimiters `!$'()*+,;=` are left as the client wrote them, because some readers split a query at `;`, `,` or `+`
  before they decode it. Written and escaped they are two targets with two entries.
- A path has no trailing slash, and one slash before `metadata`. Several Azure clients join their URLs with one slash
  too many. IMDS gives the same answer with and without a trailing slash.
- The case of a path and of a query's names is kept, and is part of the key. Rules match in any case.
"""

from __future__ import annotations

import re
from itertools import product

from imdsproxy.protocol.messages import Key, Refusal, Target

# The quantifiers are possessive, because backtracking would try every division of a long run of characters.
# RFC 3986: pchar without ";", because some servers read the parameters of a segment and others drop them. Only escapes
# of unreserved characters mean the same to every reader (RFC 3986 section 6.2.2.2). The dot is unreserved too, but an
# escaped dot has been used to get "/../" past a reader.
_PATH = re.compile(
    rb"(?:[A-Za-z0-9\-._~!$&'()*+,=:@/]++"
    rb"|%(?:2[Dd]|3[0-9]|4[1-9A-Fa-f]|5[0-9AaFf]|6[1-9A-Fa-f]|7[0-9AaEe]))*+"
)
_ESCAPE = re.compile(rb"%[0-9A-Fa-f]{2}")
# Any visible ASCII but "#": WHATWG URL writers leave {}|^`\" as they are in a query, where nothing splits on them.
_QUERY = re.compile(rb"(?:[!\"$&-~]++|%[0-9A-Fa-f]{2})*+")
# A query without these characters is in its canonical spelling already.
_NOT_CANONICAL = re.compile(rb"[%\"<>\[\\\]^`{|}]")
_UNESCAPED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~:/?@")
_ALWAYS_ESCAPED = tuple((character, f"%{ord(character):X}") for character in '"<>[\\]^`{|}')
_HEXADECIMAL = "0123456789abcdefABCDEF"
_CANONICAL_ESCAPES = {
    digits: character if (character := chr(int(digits, 16))) in _UNESCAPED else f"%{digits.upper()}"
    for digits in map("".join, product(_HEXADECIMAL, repeat=2))
}
_ABSOLUTE = re.compile(rb"(?i)(https?)://([^/?#]*)(.*)", re.DOTALL)
AUTHORITY = re.compile(r"(?P<name>\[[^\[\]@/\\]*\]|[a-z0-9\-._]+)(?::(?P<port>[0-9]{0,5}))?")
"""`uri-host [":" port]` in lower case, without user information (RFC 9110 section 7.2)."""
_BYPASS = "bypass_cache"
# The deepest documented path has ten segments, and the longest query six parameters. Each segment, parameter and escape
# takes time of its own, so thousands of them would delay every other client.
_MOST_SEGMENTS = 64
_MOST_PARAMETERS = 512
_MOST_ESCAPES = 4096
# The escapes of C0 controls and DEL, in the canonical spelling.
_CONTROL = re.compile(r"%(?:[01][0-9A-F]|7F)")


class _UnreadableError(Exception):
    """Why a target cannot be read; raised and caught in this module."""


def read_target(raw: bytes) -> Target | Refusal:
    """Read a request target as it was on the wire, origin-form or absolute-form (RFC 9112 section 3.2)."""
    try:
        authority, origin = _split(raw)
        written_path, _, written_query = origin.partition(b"?")
        path, segments = _read_path(written_path)
        query, parameters = _read_query(written_query)
    except _UnreadableError as why:
        description = f"The request target cannot be read: {why}. Write it as the Azure documentation does."
        return Refusal(400, "bad-target", "invalid_request", description)
    pairs = query.split("&")
    bypass = any(name == _BYPASS and value.lower() == "true" for name, value in parameters)
    if bypass:  # it asks for a renewal of the entry, so it is not part of the entry's key
        pairs = [pair for pair in pairs if not pair.lower().startswith(f"{_BYPASS}=")]
    key = Key(path + "?" + "&".join(sorted(pairs)))
    spelled = (f"{path}?{query}" if query else path).encode("ascii")
    return Target(spelled, segments, parameters, key, authority, bypass)


def size_of_reading(raw: bytes, reading: Target | Refusal) -> int:
    """Return the bytes that a target and its reading take in memory, rounded up."""
    if isinstance(reading, Refusal):
        return 1200 + len(raw)
    size = 700 + len(raw) + len(reading.raw) + len(reading.key) + 60 * len(reading.segments)
    # A string takes up to four bytes a character.
    return size + sum(220 + 4 * (len(name) + len(value)) for name, value in reading.parameters)


def without_bypass(target: Target) -> Target:
    """Return the target without `bypass_cache`. Its key is the same."""
    path, _, query = target.raw.partition(b"?")
    pairs = query.split(b"&")
    kept = b"&".join(pair for pair in pairs if pair.partition(b"=")[0].lower() != _BYPASS.encode("ascii"))
    plain = read_target(path + b"?" + kept)
    return target if isinstance(plain, Refusal) else plain


def _split(raw: bytes) -> tuple[str | None, bytes]:
    """Return the authority of an absolute-form target, or None for an origin-form one, and the origin-form."""
    if raw.startswith(b"/"):
        return None, raw
    absolute = _ABSOLUTE.fullmatch(raw)
    if absolute is None:
        raise _UnreadableError("it is neither a path nor an http:// address")
    scheme, written, origin = absolute.groups()
    host = AUTHORITY.fullmatch(written.decode("latin-1").lower())
    if host is None:
        raise _UnreadableError("it names no readable host")
    # https is another service, at any host. With its scheme in front, the authority equals none that is served.
    authority = f"{host['name']}:{host['port'] or 80}" if scheme.lower() == b"http" else f"https://{host[0]}"
    return authority, origin if origin.startswith(b"/") else b"/" + origin


def _read_path(path: bytes) -> tuple[str, tuple[str, ...]]:
    """Return the path in its canonical spelling, in the client's case, and its lower-case segments."""
    if not _PATH.fullmatch(path):
        raise _UnreadableError(_why_not(path))
    plain = path.decode("ascii")
    if "%" in plain:
        plain = _unescape(plain)
    if plain.startswith("//"):
        stripped = "/" + plain.lstrip("/")
        # Some clients join URLs like this. In front of any other segment it could be taken for a host.
        if stripped[1:].partition("/")[0].lower() == "metadata":
            plain = stripped
    plain = plain.removesuffix("/")
    if plain.count("/") > _MOST_SEGMENTS:
        raise _UnreadableError(f"its path has more than {_MOST_SEGMENTS} segments")
    segments = tuple(plain.lower().split("/")[1:])
    if any(segment == "" or segment.endswith(".") for segment in segments):
        raise _UnreadableError("its path holds an empty or dotted segment, which can be read in two ways")
    return plain or "/", segments


def _why_not(path: bytes) -> str:
    """Return what is wrong with a path that `_PATH` does not match."""
    readable = _PATH.match(path)
    escape = _ESCAPE.match(path, readable.end() if readable else 0)
    if escape is None:
        return "its path holds a character that does not belong in one"
    return f"its path holds the escape {escape[0].decode()}, which can be read in two ways"


def _read_query(query: bytes) -> tuple[str, tuple[tuple[str, str], ...]]:
    """Return the query in its canonical spelling, and its decoded names and values.

    In the spelling a name keeps its case. A `+` stays distinct from `%20` and `%2B`, because it is not documented how
    IMDS reads them.
    """
    if not _QUERY.fullmatch(query):
        raise _UnreadableError("its query holds a character or an escape that does not belong in one")
    spelled = query.decode("ascii")
    if _NOT_CANONICAL.search(query):
        spelled = _spell(spelled)
        if _CONTROL.search(spelled):
            raise _UnreadableError("its query holds an escaped control character")
    if spelled.count("&") >= _MOST_PARAMETERS:
        raise _UnreadableError(f"its query has more than {_MOST_PARAMETERS} parameters")
    parameters: dict[str, str] = {}
    for pair in spelled.split("&"):
        if pair:  # an empty one has no meaning, but is part of what IMDS gets, and of the key
            name, _, value = pair.partition("=")
            plain = _decode(name).lower()
            if plain in parameters:
                raise _UnreadableError(f"its query has {plain[:40]!a} twice, which IMDS refuses")
            parameters[plain] = _decode(value)
    return spelled, tuple(parameters.items())


def _spell(query: str) -> str:
    """Write a query in its canonical spelling."""
    if query.count("%") > _MOST_ESCAPES:
        raise _UnreadableError(f"its query has more than {_MOST_ESCAPES} escapes")
    first, *escaped = query.split("%")
    canonical = _CANONICAL_ESCAPES
    query = first + "".join([canonical[part[:2]] + part[2:] for part in escaped])
    for character, escape in _ALWAYS_ESCAPED:
        query = query.replace(character, escape)
    return query


def _decode(component: str) -> str:
    """Decode a name or a value in its canonical spelling, a `+` as a space."""
    if "+" in component:
        component = component.replace("+", " ")
    if "%" not in component:
        return component
    try:
        return _unescape(component).encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        raise _UnreadableError("its query holds an escape that is not UTF-8") from None


def _unescape(text: str) -> str:
    """Return the text with each escape as the character of that number; the text holds no backslash.

    In one step of the codec, since 60 kB hold 20,000 escapes.
    """
    return text.replace("%", "\\x").encode("ascii").decode("unicode_escape")
