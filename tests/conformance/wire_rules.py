"""Rules of h1spec, http-conformance and the HTTP Garden about bytes that a server receives: one table of requests."""

from __future__ import annotations

from dataclasses import dataclass

from tests.conformance.rules import CISPA, GARDEN, H1SPEC, Rule
from tests.integration.attacks.kit import CLOSE, HOST, RAW_EVENTS, TRUE, request
from tests.targets import INSTANCE

TEST = "conformance/test_wire.py::test_server_keeps_the_rule"
PLAIN = INSTANCE.encode()
PAGE = request(b"/-/healthy", HOST, CLOSE)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
SMUGGLED = request(b"/-/healthy", HOST, b"X-Smuggled: 1\r\n", CLOSE)

FIELD_VALUE = "RFC 9110 section 5.5"
FIELD_NAME = "RFC 9110 section 5.1"
FIELD_LINE = "RFC 9112 section 5.1"
CHUNK = "RFC 9112 section 7.1"
LENGTH = "RFC 9110 section 8.6"
CODING = "RFC 9112 section 6.1"
VERSION = "RFC 9112 section 2.3"
START_LINE = "RFC 9112 section 3"
PARSING = "RFC 9112 section 2.2"
METHOD = "RFC 9110 section 9.1"


@dataclass(frozen=True)
class Wire:
    """A request, and the status of each answer to it until the connection ends."""

    rule: Rule
    sent: bytes
    statuses: tuple[int, ...]
    pause_at: int = 0
    """The number of bytes after which the client pauses."""
    arrives: int = 0
    """How many requests IMDS gets for it."""


def _wire(
    suite: str, name: str, words: str, source: str, sent: bytes, *statuses: int, arrives: int = 0, why: str = ""
) -> Wire:
    return Wire(Rule(suite, name, words, source, TEST, why), sent, statuses or (400,), arrives=arrives)


def _get(*fields: bytes, target: bytes = PLAIN, body: bytes = b"") -> bytes:
    return request(target, HOST, CLOSE, *fields, body=body)


def _post(*fields: bytes, body: bytes) -> bytes:
    return request(RAW_EVENTS, HOST, TRUE, CLOSE, *fields, method=b"POST", body=body)


def _chunks(body: bytes) -> bytes:
    return _post(CHUNKED, body=body + SMUGGLED)


_FRAGMENTS = {
    "the method": b"G",
    "the method and a space": b"GET ",
    "the target": b"GET /-/healthy",
    "the target and a space": b"GET /-/healthy ",
    "the protocol's name": b"GET /-/healthy HTTP",
    "the request line": b"GET /-/healthy HTTP/1.1",
    "the request line and CR": b"GET /-/healthy HTTP/1.1\r",
    "the request line and CRLF": b"GET /-/healthy HTTP/1.1\r\n",
    "a field's name": b"GET /-/healthy HTTP/1.1\r\nHos",
    "a field's name and colon": b"GET /-/healthy HTTP/1.1\r\nHost:",
    "the space before a value": b"GET /-/healthy HTTP/1.1\r\nHost: ",
    "a field's value": b"GET /-/healthy HTTP/1.1\r\nHost: localhost",
    "a field and CR": b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r",
    "a field and CRLF": b"GET /-/healthy HTTP/1.1\r\nHost: localhost\r\n",
    "all but the last LF": PAGE[:-1],
}
_CUTS = tuple(
    Wire(Rule(H1SPEC, f"fragment {number}", f"waits for the rest after {what}", PARSING, TEST), PAGE, (200,), len(part))
    for number, (what, part) in enumerate(_FRAGMENTS.items(), start=1)
)

_H1SPEC = (
    _wire(H1SPEC, "no version", "a request line without a version is refused", START_LINE, b"GET / \r\n\r\n"),
    _wire(
        H1SPEC,
        "Expect",
        "100 comes before the body is read",
        "RFC 9110 section 10.1.1",
        _get(b"Expect: 100-continue\r\n"),
        200,
        why="a GET without a body is answered at once, without 100",
    ),
    _wire(H1SPEC, "valid GET", "a plain GET is served", START_LINE, _get(), 200),
    _wire(
        H1SPEC,
        "valid GET with edge cases",
        "a name in any case, a tab before a value, an empty value",
        FIELD_LINE,
        b"GET " + PLAIN + b" HTTP/1.1\r\nhoSt:\tlocalhost\r\nempty:\r\n" + CLOSE + b"\r\n",
        200,
    ),
    _wire(
        H1SPEC,
        "invalid name",
        "a name with a character that no token has is refused",
        FIELD_NAME,
        _get(b"X-Invalid[]: test\r\n"),
    ),
    _wire(
        H1SPEC,
        "no Host",
        "HTTP/1.1 without Host is refused",
        "RFC 9112 section 3.2",
        request(PLAIN, CLOSE, b"Content-Length: 5\r\n", body=b"abcde"),
    ),
    _wire(H1SPEC, "two Hosts", "two Host fields are refused", "RFC 9112 section 3.2", _get(b"Host: example.org\r\n")),
    _wire(
        H1SPEC,
        "overflowing negative length",
        "refused",
        LENGTH,
        _get(b"Content-Length: -123456789123456789123456789\r\n"),
    ),
    _wire(H1SPEC, "negative length", "refused", LENGTH, _get(b"Content-Length: -1234\r\n")),
    _wire(H1SPEC, "length that is no number", "refused", LENGTH, _get(b"Content-Length: abc\r\n")),
    _wire(
        H1SPEC, "empty value", "a field without a value is accepted", FIELD_VALUE, _get(b"X-Empty-Header: \r\n"), 200
    ),
    _wire(
        H1SPEC,
        "control character",
        "a value with a control character is refused",
        FIELD_VALUE,
        _get(b"X-Bad: test\x07\r\n"),
    ),
    _wire(H1SPEC, "HTTP/9.9", "an unknown version is refused", VERSION, b"GET / HTTP/9.9\r\n" + HOST + b"\r\n"),
    _wire(H1SPEC, "prefix", "words before the method are refused", START_LINE, b"Extra line" + _get()),
    _wire(
        H1SPEC,
        "CR within a head",
        "a CR that no LF follows is refused",
        PARSING,
        b"GET / HTTP/1.1\r\n" + HOST + b"\rSome-Header: Test\r\n\r\n",
    ),
    _wire(
        H1SPEC,
        "POST with a body",
        "the body is read by its length",
        LENGTH,
        _post(b"Content-Length: 20\r\n", body=b'{"StartRequests":[]}'),
        200,
        arrives=1,
    ),
    _wire(
        H1SPEC,
        "chunks",
        "the body is read by its chunks",
        CHUNK,
        _post(CHUNKED, body=b'14\r\n{"StartRequests":[]}\r\n0\r\n\r\n'),
        200,
        arrives=1,
    ),
    _wire(
        H1SPEC,
        "length and chunks",
        "refused, or read by the chunks",
        CODING,
        _post(b"content-LengtH: 5\r\n", b"TransFer-Encoding: chunked\r\n", body=b"0\r\n\r\n"),
    ),
)

_CISPA = (
    _wire(
        CISPA,
        "reject_fields_contaning_cr_lf_nul (NUL)",
        "a value with NUL is refused",
        FIELD_VALUE,
        _get(b"X: a\x00b\r\n"),
    ),
    _wire(
        CISPA, "reject_fields_contaning_cr_lf_nul (CR)", "a value with CR is refused", FIELD_VALUE, _get(b"X: a\rb\r\n")
    ),
    _wire(
        CISPA, "reject_fields_contaning_cr_lf_nul (LF)", "a value with LF is refused", FIELD_VALUE, _get(b"X: a\nb\r\n")
    ),
    _wire(
        CISPA, "code_400_after_bad_host_request (none)", "no Host is 400", "RFC 9112 section 3.2", request(PLAIN, CLOSE)
    ),
    _wire(CISPA, "code_400_after_bad_host_request (two)", "two Hosts are 400", "RFC 9112 section 3.2", _get(HOST)),
    _wire(
        CISPA,
        "code_400_after_bad_host_request (no host)",
        "a Host that is none is 400",
        "RFC 9112 section 3.2",
        request(PLAIN, b"Host: a b\r\n", CLOSE),
    ),
    _wire(
        CISPA,
        "code_501_unknown_methods",
        "an unknown method is 501",
        METHOD,
        request(PLAIN, HOST, CLOSE, method=b"FOO"),
        405,
        why="405 with Allow, as for every method but GET and POST: the proxy names what it accepts",
    ),
    _wire(
        CISPA,
        "code_405_blocked_methods (PUT)",
        "a known method that is not allowed is 405",
        METHOD,
        request(PLAIN, HOST, CLOSE, method=b"PUT"),
        405,
    ),
    _wire(
        CISPA,
        "code_405_blocked_methods (TRACE)",
        "TRACE is 405",
        METHOD,
        request(PLAIN, HOST, CLOSE, method=b"TRACE"),
        405,
    ),
    _wire(CISPA, "allow_crlf_start", "one empty line before a request is ignored", PARSING, b"\r\n" + _get(), 200),
    _wire(
        CISPA,
        "reject_msgs_with_whitespace_between_startline_and_first_header_field",
        "white space before the first field is refused",
        PARSING,
        b"GET / HTTP/1.1\r\n Host: localhost\r\n" + HOST + CLOSE + b"\r\n",
    ),
    _wire(
        CISPA,
        "code_400_if_msg_with_whitespace_between_header_field_and_colon",
        "white space between a name and its colon is 400",
        FIELD_LINE,
        _get(b"X : 1\r\n"),
    ),
    _wire(
        CISPA,
        "content_length_2XX_connect",
        "a 2xx to CONNECT has no Content-Length",
        LENGTH,
        request(b"127.0.0.1:9", HOST, CLOSE, method=b"CONNECT"),
        405,
        why="CONNECT is never a 2xx",
    ),
    _wire(
        CISPA,
        "transfer_encoding_2XX_connect",
        "a 2xx to CONNECT has no Transfer-Encoding",
        CODING,
        request(b"localhost:22", HOST, CLOSE, method=b"CONNECT"),
        405,
        why="CONNECT is never a 2xx",
    ),
    _wire(
        CISPA,
        "continue_before_upgrade",
        "100 comes before 101",
        "RFC 9110 section 7.8",
        _get(b"Expect: 100-continue\r\n", b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n"),
        200,
        why="protocols are never changed",
    ),
    _wire(
        CISPA,
        "switch_protocol_without_client",
        "101 only if the client offered it",
        "RFC 9110 section 7.8",
        _get(b"Upgrade: h2c\r\n"),
        200,
        why="protocols are never changed",
    ),
)


def _server(number: int, words: str, source: str, sent: bytes, *statuses: int, arrives: int = 0, why: str = "") -> Wire:
    return _wire(GARDEN, f"server {number}", words, source, sent, *statuses, arrives=arrives, why=why)


def _proxy(number: int, words: str, source: str, sent: bytes, *statuses: int, arrives: int = 0, why: str = "") -> Wire:
    return _wire(GARDEN, f"proxy {number}", words, source, sent, *statuses, arrives=arrives, why=why)


_GARDEN_SERVERS = (
    _server(1, "`0x`, `_`, `+` and `-` are no part of a chunk's size", CHUNK, _chunks(b"0_2e\r\n")),
    _server(2, "NUL, CR and LF are no part of a value", FIELD_VALUE, _get(b"X: v\x00\ralue\r\n")),
    _server(3, "white space behind a name is refused", FIELD_LINE, _get(b"Content-Length : 34\r\n")),
    _server(
        4, "white space before the first name is refused", PARSING, b"GET / HTTP/1.1\r\n\tX: 1\r\n" + HOST + b"\r\n"
    ),
    _server(5, "a version is read to its end", VERSION, b"GET / HTTP/1.32\r\n" + HOST + b"\r\n"),
    _server(6, "a method is a token", METHOD, b'G=":<>(e),[T];?" / HTTP/1.1\r\n' + HOST + b"\r\n"),
    _server(7, "a target is a path, or a URI", "RFC 9112 section 3.2", request(b"!", HOST, CLOSE)),
    _server(8, "a name is ASCII", FIELD_NAME, _get(b"\xeffoo: bar\r\n")),
    _server(9, "LF separates nothing in a request line", START_LINE, b"GET /\nHTTP/1.1\r\n" + HOST + b"\r\n"),
    _server(10, "a length has digits only", LENGTH, _get(b"Content-Length: +1_0\r\n", body=b"0123456789")),
    _server(11, "chunked is named once", CODING, _post(CHUNKED, CHUNKED, body=b"1\r\nZ\r\n0\r\n\r\n")),
    _server(
        12,
        "0xA0 and 0x85 are no white space",
        FIELD_VALUE,
        _post(b"Transfer-Encoding: \xa0chunked\xa0\r\n", body=b"0\r\n\r\n"),
    ),
    _server(13, "CR ends no field", PARSING, _get(b"Visible: :/\rSmuggled: :)\r\n")),
    _server(14, "a name is a token", FIELD_NAME, _get(b'\x01"(),/;<=>?@[/]{}: whatever\r\n')),
    _server(15, "a version has its form", VERSION, b"GET / HTTP/\r\r1.1\r\n\r\n"),
    _server(16, "an empty length is refused", LENGTH, _get(b"Content-Length: \r\n")),
    _server(17, "an empty chunk size is refused", CHUNK, _chunks(b"\r\n\r\n")),
    _server(18, "an empty name is refused", FIELD_NAME, _get(b": ignored\r\n")),
    _server(19, "only spaces and tabs are dropped before a value", FIELD_VALUE, _get(b"X:\n\nGET / HTTP/1.1\r\n")),
    _server(
        20,
        "0xA0 and 0x85 behind a name are refused",
        FIELD_NAME,
        _get(b"Content-Length\x85: 10\r\n", body=b"0123456789"),
    ),
    _server(
        21,
        "`,chunked` with a length is refused",
        CODING,
        _post(b"Transfer-Encoding: ,chunked\r\n", b"Content-Length: 5\r\n", body=b"0\r\n\r\n"),
    ),
    _server(22, "a chunk's size is read to its end", CHUNK, _chunks(b"2x\r\n{}\r\n0\r\n\r\n")),
    _server(
        23,
        "two lengths are refused, the first shorter",
        LENGTH,
        _get(b"Content-Length: 1\r\n", b"Content-Length: 0\r\n", body=b"Z"),
    ),
    _server(24, "a version does not overflow", VERSION, b"GET / HTTP/4294967295.255\r\n\r\n"),
    _server(25, "a chunk's size has no prefix", CHUNK, _chunks(b"0x2\r\n{}\r\n0\r\n\r\n")),
    _server(26, "a negative length is refused, and costs no time", LENGTH, _get(b"Content-Length: -48\r\n")),
    _server(27, "a field without name and value is refused", FIELD_NAME, _get(b":\r\n", b"I: am here\r\n")),
    _server(28, "a field has a colon", FIELD_LINE, _get(b"Content-Length 10\r\n", body=b"0123456789")),
    _server(29, "a length is read to its end", LENGTH, _get(b"Content-Length: 1Z\r\n", body=b"Z")),
    _server(
        30, "a head ends with CRLF only", PARSING, b"GET / HTTP/1.1\r\n" + HOST + b"\rZGET /evil: HTTP/1.1\r\n\r\n"
    ),
    _server(31, "a chunk's line ends with CRLF only", CHUNK, _chunks(b"5\r\r;ABCD\r\n34\r\nE\r\n0\r\n\r\n")),
    _server(
        32, "a leading zero of a length is decimal", LENGTH, _get(b"Content-Length: 010\r\n", body=b"0123456789"), 200
    ),
    _server(
        33,
        "two lengths are refused, the last longer",
        LENGTH,
        _get(b"Content-Length: 0\r\n", b"Content-Length: 1\r\n", body=b"Z"),
    ),
    _server(34, "CR is no part of a value", FIELD_VALUE, _get(b"X: va\rlue\r\n")),
    _server(35, "a value is not cut at NUL", FIELD_VALUE, _get(b"X: test\x00dropped\r\n")),
    _server(36, "CR is no part of a chunk's extension", CHUNK, _chunks(b"2;a=b\r\rX\r\n{}\r\n0\r\n\r\n")),
    _server(
        37,
        "a name is in one line",
        FIELD_NAME,
        _post(b"Transfer-\r\nEncoding: chunked\r\n", b"Content-Length: 5\r\n", body=b"0\r\n\r\n"),
    ),
    _server(38, "an empty length does not wait", LENGTH, _get(b"Content-Length: \r\n") + PAGE),
    _server(39, "chunks end with CRLF only", CHUNK, _chunks(b"0\r\nX:POST / HTTP/1.1\r\n")),
    _server(40, "method and version are validated", START_LINE, b"\x00 / HTTP/............0596.7407.\r\n\r\n"),
    _server(41, "bytes beyond ASCII are part of a value", FIELD_VALUE, _get(b"User: \x85admin\xa0\r\n"), 200),
    _server(
        42,
        "an empty length before another is refused",
        LENGTH,
        _get(b"Content-Length: \r\n", b"Content-Length: 43\r\n") + PAGE,
    ),
    _server(43, "NUL behind a value is not dropped", FIELD_VALUE, _get(b"Evil: evil\x00\r\n")),
    _server(
        44, "an unknown coding is refused", CODING, _post(b"Transfer-Encoding: blegh\r\n", body=b"1\r\nZ\r\n0\r\n\r\n")
    ),
    _server(
        45, "what comes behind a last request is not read", "RFC 9112 section 9.6", _get() + b"Invalid\r\n\r\n", 200
    ),
    _server(
        46,
        "bytes beyond ASCII are not dropped around a value",
        FIELD_VALUE,
        request(
            RAW_EVENTS,
            b"Host: \xfflocalhost\xff\r\n",
            TRUE,
            CLOSE,
            CHUNKED,
            method=b"POST",
            body=b"1\r\nZ\r\n0\r\n\r\n",
        ),
    ),
    _server(47, "a broken chunk ends the connection", CHUNK, _chunks(b"INVALID!!!\r\n")),
    _server(
        48,
        "what is pipelined is no body",
        LENGTH,
        request(b"/-/healthy", HOST, b"Content-Length: 0\r\n") + request(b"/-/ready", HOST) + PAGE,
        200,
        200,
        200,
    ),
)
_GARDEN_PROXIES = (
    _proxy(1, "a length with `0x` is not forwarded", LENGTH, _post(b"Content-Length: 0x10\r\n", body=b"Z")),
    _proxy(2, "broken chunks are not forwarded", CHUNK, _chunks(b"Z\r\nZZ\r\nZZZ\r\n\r\n")),
    _proxy(3, "CR before a chunk's extension is refused", CHUNK, _chunks(b"2\r\r;a\r\n{}\r\n0\r\n\r\n")),
    _proxy(4, "a message with broken chunks is not forwarded without them", CHUNK, _chunks(b"1\r0\n")),
    _proxy(5, "an empty length is not forwarded", LENGTH, _post(b"content-length: \r\n", body=b"")),
    _proxy(6, "a byte that no name has is not forwarded", FIELD_NAME, _get(b"Header\x85: value\r\n")),
    _proxy(7, "a chunk's size is not cut and written again", CHUNK, _chunks(b"1these-bytes\r\nZ\r\n0\r\n\r\n")),
    _proxy(9, "`,chunked` is not forwarded", CODING, _post(b"Transfer-Encoding: ,chunked\r\n", body=b"0\r\n\r\n")),
    _proxy(10, "CR is not forwarded in a value", FIELD_VALUE, _get(b"X: this\rvalue\ris\rinvalid\r\n")),
    _proxy(
        11,
        "an empty length is not forwarded before another",
        LENGTH,
        _post(b"content-length: \r\n", b"content-length: 59\r\n", body=SMUGGLED),
    ),
    _proxy(12, "NUL is not forwarded in a value", FIELD_VALUE, request(PLAIN, b"Host: localhost\x00.a\r\n", CLOSE)),
    _proxy(13, "LF ends no line of a chunk", CHUNK, _chunks(b"2\r\n{}\n0\r\n\r\n")),
    _proxy(14, "a line without a colon is not forwarded", FIELD_LINE, _get(b"Te\nst: test\r\n")),
    _proxy(
        15,
        "a length beside an unknown coding is not forwarded",
        CODING,
        _get(b"Transfer-Encoding: ,chunked\r\n", b"Content-Length: 5\r\n", body=b"0\r\n\r\n"),
    ),
    _proxy(16, "LF is not forwarded as an end of a line", PARSING, b"GET / HTTP/1.1\nHost: localhost\n\n"),
    _proxy(17, "an empty line before the last chunk is refused", CHUNK, _chunks(b"2\r\n{}\r\n\r\n0\r\n\r\n")),
    _proxy(
        18,
        "`,chunked` is not forwarded beside a length",
        CODING,
        _get(b"Transfer-Encoding: ,chunked\r\n", b"Content-Length: 5\r\n", body=b"0\r\n\r\n"),
    ),
    _proxy(19, "a chunk's size with a sign is not forwarded", CHUNK, _chunks(b"-0x0\r\n\r\n")),
    _proxy(20, "a field with NUL is not joined to the one before", FIELD_NAME, _get(b"a:b\r\n", b"c\x00\r\n")),
    _proxy(
        21,
        "the body of a GET goes nowhere, and neither does its length",
        LENGTH,
        _get(b"Content-Length: 10\r\n", body=b"1234567890", target=b"/metadata/unknown"),
        404,
        arrives=1,
    ),
    _proxy(
        22,
        "two lengths are not forwarded",
        LENGTH,
        _post(b"Content-Length: 0\r\n", b"Content-Length: 31\r\n", body=SMUGGLED),
    ),
    _proxy(
        23, "a length and chunks are not forwarded", CODING, _post(b"Content-Length: 5\r\n", CHUNKED, body=b"0\r\n\r\n")
    ),
    _proxy(24, "a chunk's size behind spaces is refused", CHUNK, _chunks(b"   0\r\n\r\n")),
    _proxy(25, "chunked twice is not forwarded", CODING, _post(CHUNKED, CHUNKED, body=b"0\r\n\r\n")),
    _wire(
        GARDEN, "crash 3", "a byte behind the last chunk does no harm", CHUNK, _get(CHUNKED, body=b"0\r\n\r\n\x00"), 200
    ),
)

_GARDEN_QUIRKS = (
    _wire(
        GARDEN,
        "quirk: persistence",
        "a connection serves a second request",
        "RFC 9112 section 9.3",
        request(b"/-/healthy", HOST) + PAGE,
        200,
        200,
    ),
    _wire(
        GARDEN,
        "quirk: characters of a method",
        "a method may have any character of a token",
        METHOD,
        request(PLAIN, HOST, CLOSE, method=b"GET!"),
        400,
        why="the parser knows letters and `-` only; such a method would be 405",
    ),
    _wire(
        GARDEN,
        "quirk: unknown method",
        "an unknown method is read to its end",
        METHOD,
        request(PLAIN, HOST, CLOSE, method=b"SLUDGE"),
        405,
    ),
    _wire(
        GARDEN,
        "quirk: method of a digit",
        "a method may be a digit",
        METHOD,
        request(PLAIN, HOST, CLOSE, method=b"0"),
        400,
        why="the parser knows letters and `-` only; such a method would be 405",
    ),
    _wire(GARDEN, "quirk: HTTP/0.9", "a line without a version is no request", START_LINE, b"GET /\r\n\r\n"),
    _wire(
        GARDEN,
        "quirk: HTTP/2",
        "the preface of HTTP/2 is refused",
        "RFC 9113 section 3.4",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ),
    _wire(
        GARDEN,
        "quirk: POST without a length",
        "a POST without a length has no body, and goes on so",
        "RFC 9112 section 6.3",
        _post(body=b""),
        400,
        arrives=1,
    ),
    _wire(
        GARDEN, "quirk: missing Host", "HTTP/1.1 without Host is refused", "RFC 9112 section 3.2", request(PLAIN, CLOSE)
    ),
    _wire(GARDEN, "quirk: another version", "HTTP/1.0 is served", VERSION, request(PLAIN, HOST, version=b"1.0"), 200),
)
_FIELDS = "integration/attacks/test_headers.py::test_hop_by_hop_field_ends_at_the_proxy"
_HTTP_2 = "the proxy speaks HTTP/1.1 only"
_NOT_BYTES = (
    Rule(GARDEN, "quirk: fields removed", "fields of one connection are removed", "RFC 9110 section 7.6.1", _FIELDS),
    Rule(GARDEN, "quirk: fields changed", "`Host` is that of the upstream", "RFC 9110 section 7.2", _FIELDS),
    Rule(
        GARDEN,
        "quirk: fields added",
        "only `Imdsproxy-Via` and `Metadata` are added",
        "RFC 9110 section 7.6.3",
        _FIELDS,
    ),
    Rule(
        GARDEN,
        "quirk: fields joined",
        "fields of one name keep their order",
        "RFC 9110 section 5.3",
        "unit/protocol/test_request_parser.py::test_plain_request_is_accepted_with_target_and_headers",
    ),
    Rule(
        GARDEN,
        "quirk: names translated",
        "names keep their spelling but for their case",
        "RFC 9110 section 5.1",
        _FIELDS,
    ),
    Rule(
        GARDEN, "crash 1", "an empty body to a FastCGI upstream does no harm", "no section", "", "the upstream is HTTP"
    ),
    Rule(
        GARDEN,
        "crash 2",
        "no use of freed memory",
        "no section",
        "",
        "the code is Python; its parser is fuzzed by its authors",
    ),
    Rule(
        GARDEN,
        "crash 4",
        "a body in chunks is not echoed",
        "RFC 9112 section 7.1",
        "integration/attacks/test_framing.py::test_post_to_scheduled_events_arrives_whole",
    ),
    Rule(
        GARDEN,
        "crash 5",
        "no reference to nothing",
        "no section",
        "",
        "the code is Python; its parser is fuzzed by its authors",
    ),
    Rule(
        GARDEN,
        "HTTP/2 1",
        "white space around a value of HTTP/2 is dropped for HTTP/1.1",
        "RFC 9113 section 8.2.1",
        "",
        _HTTP_2,
    ),
    Rule(GARDEN, "HTTP/2 2", "an empty name of HTTP/2 is refused", "RFC 9113 section 8.2.1", "", _HTTP_2),
)

WIRES = (*_CUTS, *_H1SPEC, *_CISPA, *_GARDEN_SERVERS, *_GARDEN_PROXIES, *_GARDEN_QUIRKS)
RULES = (*(wire.rule for wire in WIRES), *_NOT_BYTES)
