"""Attack cases as bytes of a request: one table for every server, listener and path of an answer.

The numbers are those of the table in `docs/security.md`. `NOT_BYTES` has the cases that no bytes of a single request
can be, with the reason. Tests with the mark `attack` show those, and the rest of the others.
"""

from __future__ import annotations

from dataclasses import dataclass

from tests.integration.attacks.kit import CLOSE, HOST, RAW_EVENTS, RAW_TOKEN, TOKEN_QUERY, TRUE, request
from tests.targets import INSTANCE

PLAIN = INSTANCE.encode()
WARM = (INSTANCE, RAW_TOKEN.decode())
"""Targets that are stored before the cases are sent."""
ADMIN_ONLY = (404, "admin-only")
BY_SERVER = frozenset({"malformed", "head-too-long", "upgrade-with-body"})
"""Reasons that the server of `imdsproxy serve` gives. Another server has a parser, and words, of its own."""
BY_READER = BY_SERVER | {
    *("bad-target", "bad-host", "host", "other-host", "x-forwarded-for", "loop", "browser", "method"),
}
"""Reasons that are found before it matters what the listener serves, so that the admin port has them as well."""

NOT_BYTES = {
    9: "it is a matter of time and of many connections",
    10: "it is what the upstream sends; `test_answer_of_a_hostile_upstream_is_refused_on_every_way` has a table of it",
    11: "it is a matter of the clock, which tests set in the process",
    12: "it is a matter of the environment in which the process starts",
    14: "it is a matter of very many requests",
    19: "it is a matter of the log and the descriptors that the process is started with",
    20: "it is a matter of a file",
    21: "it is what the upstream sends; `test_answer_of_a_hostile_upstream_is_refused_on_every_way` has a table of it",
    23: "it needs Windows",
}
"""The cases that are no bytes of one request, and what they are."""


@dataclass(frozen=True)
class Case:
    """A request, and what must become of it."""

    number: int
    """The attack case."""
    name: str
    sent: bytes
    status: int
    reason: str = ""
    """`detail` of the answer's Cache-Status; empty if it has none."""
    at_socket: tuple[int, str] | None = None
    """Status and reason at a Unix socket, where those differ."""
    arrives: str = ""
    """Method and target of the request that IMDS may get for it."""
    under_uvicorn: tuple[int, ...] = ()
    """Further statuses under uvicorn, whose parsers read what `imdsproxy serve` refuses to read."""
    ends_sending: bool = False
    """Whether the client ends its sending. uvicorn closes such a connection, so that case is left out there."""

    def __str__(self) -> str:
        return f"case-{self.number} {self.name}"

    def expected(self, kind: str) -> tuple[int, str]:
        """Return status and reason at a listener of `imdsproxy serve`."""
        if kind == "admin" and self.reason not in BY_READER:
            return ADMIN_ONLY if b" /-/" not in self.sent.split(b"\r\n")[0] else (self.status, self.reason)
        if kind == "unix" and self.at_socket is not None:
            return self.at_socket
        return self.status, self.reason

    def accepted(self, kind: str) -> set[int]:
        """Return each status that is right under uvicorn, whose own refusals are 400."""
        return {self.expected(kind)[0], 400, *self.under_uvicorn}


def _get(target: bytes, *fields: bytes, host: bytes = HOST) -> bytes:
    return request(target, host, *fields, CLOSE)


def _path(number: int, path: bytes) -> Case:
    return Case(number, repr(path)[2:-1], _get(path + TOKEN_QUERY, TRUE), 400, "bad-target")


def _framed(name: str, *fields: bytes, body: bytes = b"", under_uvicorn: tuple[int, ...] = ()) -> Case:
    sent = request(RAW_EVENTS, HOST, TRUE, CLOSE, *fields, method=b"POST", body=body)
    return Case(8, name, sent, 400, "malformed", under_uvicorn=under_uvicorn)


_SMUGGLED = request(RAW_TOKEN + b"&smuggled=1", HOST, TRUE)
_LENGTH = b"Content-Length: 4\r\n"
_CHUNKED = b"Transfer-Encoding: chunked\r\n"
_LONG = PLAIN + b"&x=" + b"a" * 60_000

CASES = (
    # A backslash, which some readers take for a slash.
    _path(1, rb"/metadata/identity\oauth2\token"),
    _path(1, rb"/metadata\identity\oauth2\token"),
    Case(1, "no slash", _get(rb"\metadata\identity\oauth2\token", TRUE), 400, "malformed"),
    _path(1, rb"/metadata/instance\..\identity/oauth2/token"),
    # Case: the same rule as for the lower-case path.
    Case(2, "capitals", _get(b"/METADATA/Identity/OAUTH2/Token" + TOKEN_QUERY), 400, "metadata-header"),
    Case(2, "capitals of info", _get(b"/Metadata/Identity/INFO"), 400, "metadata-header"),
    Case(
        2, "capitals of an approval", request(b"/METADATA/SCHEDULEDEVENTS", HOST, CLOSE, method=b"PUT"), 405, "method"
    ),
    # Encoding, dots, parameters of a segment, what is no ASCII.
    _path(3, b"/metadata/identity%2Foauth2/token"),
    _path(3, b"/metadata/identity%2foauth2/token"),
    _path(3, b"/metadata/identity%252Foauth2/token"),
    _path(3, b"/metadata/instance/%2E%2E/identity/oauth2/token"),
    _path(3, b"/metadata/identity/oauth2/token%3F"),
    _path(3, b"/metadata/identity%5Coauth2%5Ctoken"),
    _path(3, b"/metadata/identity/oauth2/token%00"),
    _path(3, b"/metadata/./identity/oauth2/token"),
    _path(3, b"/metadata/instance/../identity/oauth2/token"),
    _path(3, b"/metadata//identity/oauth2/token"),
    _path(3, b"/metadata/identity;x=1/oauth2/token"),
    _path(3, b"/metadata/identity/oauth2/token."),
    _path(3, b"/metadata/%c4%b1dentity/oauth2/token"),
    Case(3, "fragment", _get(PLAIN + b"#x"), 400, "bad-target", under_uvicorn=(200,)),
    Case(3, "look-alike", _get(b"/metadata/\xc4\xb1dentity/oauth2/token"), 400, "malformed"),
    Case(3, "control byte", _get(b"/metadata/identity\x08/oauth2/token"), 400, "malformed"),
    Case(3, "NUL", _get(b"/metadata/identity\x00/oauth2/token"), 400, "malformed"),
    Case(3, "space", _get(b"/metadata/identity /oauth2/token"), 400, "malformed"),
    Case(3, "escaped control in a query", _get(RAW_TOKEN + b"&x=%0d%0aX-Forged:1", TRUE), 400, "bad-target"),
    # Prefixes end at a segment.
    Case(4, "longer segment", _get(b"/metadata-attacker"), 404, "outside"),
    Case(4, "no segment", _get(b"/metadat"), 404, "outside"),
    Case(4, "outside", _get(b"/elsewhere/metadata/instance"), 404, "outside"),
    Case(4, "longer name below", _get(b"/metadata/instanceX"), 404, arrives="GET /metadata/instanceX"),
    Case(4, "no segment below", _get(b"/metadata"), 404, arrives="GET /metadata"),
    Case(4, "longer page", _get(b"/-x/metrics"), 404, "outside"),
    # Queries.
    Case(5, "duplicated name", _get(RAW_TOKEN + b"&resource=b", TRUE), 400, "bad-target"),
    Case(5, "name in another case", _get(RAW_TOKEN + b"&RESOURCE=b", TRUE), 400, "bad-target"),
    Case(5, "escaped name", _get(RAW_TOKEN + b"&resourc%65=b", TRUE), 400, "bad-target"),
    Case(5, "two identities", _get(RAW_TOKEN + b"&client_id=a&client_id=b", TRUE), 400, "bad-target"),
    Case(5, "name without a value, twice", _get(RAW_TOKEN + b"&x&x=1", TRUE), 400, "bad-target"),
    Case(5, "513 parameters", _get(PLAIN + b"&" * 513), 400, "bad-target"),
    Case(5, "60 kB", _get(_LONG), 200, arrives=f"GET {_LONG.decode()}", under_uvicorn=(431, 414)),
    Case(5, "70 kB", _get(PLAIN + b"&x=" + b"a" * 70_000), 431, "head-too-long", under_uvicorn=(200, 414)),
    # Fields.
    Case(6, "no Metadata", _get(RAW_TOKEN), 400, "metadata-header"),
    Case(6, "empty Metadata", _get(RAW_TOKEN, b"Metadata:\r\n"), 400, "metadata-header"),
    Case(6, "Metadata twice", _get(RAW_TOKEN, TRUE, TRUE), 400, "metadata-header"),
    Case(6, "Metadata: false", _get(RAW_TOKEN, b"Metadata: false\r\n"), 400, "metadata-header"),
    Case(6, "X-Forwarded-For", _get(PLAIN, TRUE, b"X-Forwarded-For: 10.0.0.1\r\n"), 400, "x-forwarded-for"),
    Case(6, "x-forwarded-for, empty", _get(PLAIN, TRUE, b"x-forwarded-for:\r\n"), 400, "x-forwarded-for"),
    Case(
        *(6, "X-Forwarded-For twice", _get(PLAIN, b"X-Forwarded-For: a\r\n" * 2), 400, "x-forwarded-for"),
    ),
    Case(
        6, "fields of other proxies", _get(PLAIN, b"Forwarded: for=a\r\n", b"X-Real-IP: a\r\n", b"Via: 1.1 a\r\n"), 200
    ),
    Case(6, "no Host", _get(PLAIN, host=b""), 400, "bad-host"),
    Case(6, "Host twice", _get(PLAIN, HOST), 400, "bad-host"),
    Case(6, "name of another host", _get(PLAIN, host=b"Host: attacker.example\r\n"), 403, "host", at_socket=(200, "")),
    Case(6, "user in Host", _get(PLAIN, host=b"Host: user@localhost\r\n"), 400, "bad-host"),
    Case(6, "dot behind Host", _get(PLAIN, host=b"Host: localhost.\r\n"), 403, "host", at_socket=(200, "")),
    Case(6, "dot behind an address", _get(PLAIN, host=b"Host: 169.254.169.254.\r\n"), 403, "host"),
    Case(6, "mapped address", _get(PLAIN, host=b"Host: [::ffff:169.254.169.254]\r\n"), 400, "metadata-header"),
    Case(6, "decimal address", _get(PLAIN, host=b"Host: 2852039166\r\n"), 403, "host"),
    Case(6, "hexadecimal address", _get(PLAIN, host=b"Host: 0xa9fea9fe\r\n"), 403, "host"),
    # Use as an open proxy.
    Case(7, "CONNECT", request(b"127.0.0.1:9", HOST, CLOSE, method=b"CONNECT"), 405, "method"),
    Case(7, "other host", _get(b"http://attacker.example" + PLAIN), 403, "other-host"),
    Case(7, "other port", _get(b"http://169.254.169.254:8080" + PLAIN), 403, "other-host"),
    Case(7, "HTTPS", _get(b"https://169.254.169.254" + PLAIN), 403, "other-host"),
    Case(7, "user in the target", _get(b"http://169.254.169.254@attacker.example" + PLAIN), 400, "bad-target"),
    Case(7, "upgrade", _get(PLAIN, b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n"), 200),
    Case(
        7,
        "upgrade with a body",
        _get(PLAIN, b"Upgrade: h2c\r\n", b"Connection: upgrade\r\n", _LENGTH) + b"GET ",
        400,
        "upgrade-with-body",
        under_uvicorn=(200,),
    ),
    Case(7, "OPTIONS of everything", request(b"*", HOST, CLOSE, method=b"OPTIONS"), 405, "method"),
    Case(7, "TRACE", request(RAW_TOKEN, HOST, TRUE, CLOSE, method=b"TRACE"), 405, "method"),
    # Framing.
    _framed("length and chunks", _LENGTH, _CHUNKED, body=b"0\r\n\r\n" + _SMUGGLED),
    _framed("two lengths", _LENGTH, b"Content-Length: 5\r\n", body=b"abcde" + _SMUGGLED),
    _framed("signed length", b"Content-Length: +4\r\n", body=b"abcd"),
    _framed("unknown coding", b"Transfer-Encoding: gzip\r\n", body=b"0\r\n\r\n", under_uvicorn=(501,)),
    _framed("coding twice", _CHUNKED, _CHUNKED, body=b"0\r\n\r\n"),
    _framed("chunk without a size", _CHUNKED, body=b"zz\r\n\r\n" + _SMUGGLED),
    Case(8, "body on GET", _get(PLAIN, b"Content-Length: %d\r\n" % len(_SMUGGLED)) + _SMUGGLED, 200),
    Case(
        8,
        "bare LF",
        b"GET " + PLAIN + b" HTTP/1.1\nHost: localhost\nConnection: close\n\n",
        400,
        "malformed",
        under_uvicorn=(200,),
    ),
    Case(8, "folded field", _get(PLAIN, b" folded\r\n"), 400, "malformed", under_uvicorn=(200,)),
    Case(8, "space before the colon", _get(PLAIN, b"Metadata : true\r\n"), 400, "malformed"),
    Case(8, "70 kB of head", _get(PLAIN, b"X: " + b"a" * 70_000 + b"\r\n"), 431, "head-too-long", under_uvicorn=(200,)),
    Case(8, "10,000 fields", _get(PLAIN, b"X: 1\r\n" * 10_000), 431, "head-too-long", under_uvicorn=(200,)),
    Case(8, "no HTTP", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400, "malformed"),
    Case(8, "HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400, "malformed", under_uvicorn=(405,)),
    # What a client can try to write into the log.
    Case(13, "escapes in a target", _get(b"/metadata/\x1b[31m" + b"x"), 400, "malformed"),
    Case(13, "line break in a field", _get(PLAIN, b"X: 1\rForged: 1\r\n"), 400, "malformed", under_uvicorn=(200,)),
    Case(13, "line break in a host", _get(PLAIN, host=b"Host: a%0d%0ab\r\n"), 400, "bad-host"),
    # More than is read.
    Case(15, "101 fields", _get(PLAIN, b"X: 1\r\n" * 100), 431, "head-too-long", under_uvicorn=(200,)),
    Case(15, "5,000 escapes", _get(PLAIN + b"&x=" + b"%2C" * 5_000), 400, "bad-target"),
    Case(15, "65 segments", _get(b"/metadata" + b"/a" * 65), 400, "bad-target"),
    Case(15, "empty lines before", b"\r\n\r\n" + _get(PLAIN), 200),
    # A client that ends its sending.
    Case(16, "HTTP/1.1", request(PLAIN, HOST), 200, ends_sending=True),
    Case(16, "HTTP/1.0", request(PLAIN, HOST, version=b"1.0"), 200, ends_sending=True),
    Case(16, "token", request(RAW_TOKEN, HOST, TRUE), 200, ends_sending=True),
    Case(16, "page", request(b"/-/healthy", HOST), 200, ends_sending=True),
    # A browser.
    Case(17, "Origin", _get(PLAIN, TRUE, b"Origin: https://attacker.example\r\n"), 403, "browser"),
    Case(17, "empty Origin", _get(PLAIN, TRUE, b"Origin:\r\n"), 403, "browser"),
    Case(17, "empty Sec-Fetch-Site", _get(PLAIN, TRUE, b"Sec-Fetch-Site:\r\n"), 403, "browser"),
    Case(17, "Origin: null", _get(PLAIN, b"Origin: null\r\n"), 403, "browser"),
    Case(17, "image", _get(PLAIN, b"Sec-Fetch-Site: cross-site\r\n", b"Sec-Fetch-Dest: image\r\n"), 403, "browser"),
    Case(17, "page of the same site", _get(RAW_TOKEN, TRUE, b"Sec-Fetch-Site: same-origin\r\n"), 403, "browser"),
    Case(
        17,
        "rebinding",
        _get(RAW_TOKEN, TRUE, host=b"Host: rebind.attacker.example:8254\r\n"),
        403,
        "host",
        at_socket=(200, ""),
    ),
    Case(
        17,
        "approval as text",
        request(RAW_EVENTS, HOST, CLOSE, b"Content-Type: text/plain\r\n", _LENGTH, method=b"POST", body=b"{  }"),
        400,
        "metadata-header",
    ),
    Case(
        17,
        "form",
        request(RAW_EVENTS, HOST, CLOSE, b"Origin: null\r\n", _LENGTH, method=b"POST", body=b"a=bc"),
        403,
        "browser",
    ),
    Case(17, "addressed to IMDS", _get(PLAIN, host=b"Host: 169.254.169.254\r\n"), 400, "metadata-header"),
    # Turns that are not the client's own.
    Case(18, "forged hops", _get(PLAIN, b"Imdsproxy-Via: 0123456789abcdef, fedcba9876543210\r\n"), 200),
    Case(18, "hops that are none", _get(PLAIN, b"Imdsproxy-Via: \xff, x, 0123456789ABCDEF\r\n"), 200),
    # Spellings of one target.
    Case(22, "escaped letters", _get(b"/metadata/%69nstance?api-version=2021-02-01"), 200),
    Case(22, "slash behind", _get(b"/metadata/instance/?api-version=2021-02-01"), 200),
    Case(22, "two slashes before", _get(b"//metadata/instance?api-version=2021-02-01"), 200),
    Case(22, "escaped colon", _get(RAW_TOKEN.replace(b":", b"%3a"), TRUE), 200),
    Case(22, "two slashes within", _get(b"/metadata//instance?api-version=2021-02-01"), 400, "bad-target"),
    Case(22, "semicolon in a path", _get(b"/metadata/instance;?api-version=2021-02-01"), 400, "bad-target"),
    Case(22, "escaped dots", _get(b"/metadata/%2e/instance?api-version=2021-02-01"), 400, "bad-target"),
)
