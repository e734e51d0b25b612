"""Heads without their tracing fields: nothing else is removed, and what is left decides about the whole."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from imdsproxy.protocol.tracing import TRACING_FIELDS, is_sampled, trace_context, trace_context_of_head, without_tracing

PLAIN = b"GET /a HTTP/1.1\r\nHost: localhost\r\nMetadata: true\r\n\r\n"


def head(*lines: bytes) -> bytes:
    return (
        b"GET /a HTTP/1.1\r\nHost: localhost\r\n"
        + b"".join(line + b"\r\n" for line in lines)
        + b"Metadata: true\r\n\r\n"
    )


@pytest.mark.parametrize("name", sorted(TRACING_FIELDS))
@pytest.mark.parametrize("value", [b": 00-4bf92f3577b34da6-01", b":", b":a", b":  a b  "])
def test_each_tracing_field_is_removed_however_it_is_written(name: bytes, value: bytes) -> None:
    for spelling in (name, name.title(), name.upper()):
        assert without_tracing(head(spelling + value)) == PLAIN
        assert without_tracing(PLAIN[:-2] + spelling + value + b"\r\n\r\n") == PLAIN


def test_several_tracing_fields_are_removed() -> None:
    assert without_tracing(head(b"traceparent: 1", b"x-ms-client-request-id: 2", b"baggage: 3")) == PLAIN


@pytest.mark.parametrize(
    "line",
    [
        b"traceparents: 1",
        b"x-traceparent: 1",
        b"traceparent : 1",
        b" traceparent: 1",
        b"traceparent: 1\r\n folded",
        b"traceparent: 1\r\n\tfolded",
        b"traceparent: \xe4",
        b"traceparent: a\tb",
        b"traceparent: a\x00b",
        b"traceparent: a\nb: c",
        b"traceparent: a\rb: c",
        b"traceparent",
        b"x-ms-return-client-request-id: true",
        b"user-agent: a",
    ],
)
def test_everything_else_stays(line: bytes) -> None:
    assert without_tracing(head(line)) == head(line)


@pytest.mark.parametrize(
    "data",
    [
        PLAIN + b"traceparent: 1\r\n",
        PLAIN + b"traceparent: 1\r\n\r\n",
        PLAIN[:-2] + b"\r\n\r\ntraceparent: 1\r\n\r\n",
        PLAIN[:-2] + b"traceparent: 1\r\n",
        PLAIN[:-2] + b"traceparent: 1",
        b"traceparent: 1\r\n" + PLAIN,
        b"\r\ntraceparent: 1\r\n" + PLAIN,
        b"\r\ntraceparent: 1" + PLAIN,
    ],
)
def test_incomplete_head_stays_incomplete(data: bytes) -> None:
    assert without_tracing(data) != PLAIN


class _Reading:
    """What llhttp finds in bytes."""

    def __init__(self, data: bytes) -> None:
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.requests = 0
        parser = httptools.HttpRequestParser(self)
        parser.feed_data(data)
        self.found = (parser.get_method(), parser.get_http_version(), self.url)

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_message_complete(self) -> None:
        self.requests += 1


_LINES = st.sampled_from(
    [
        *(
            b"traceparent: 1",
            b"Traceparent:2",
            b"X-Ms-Client-Request-Id: 3",
            b"x-ms-client-request-id:",
            b"baggage: a=b",
        ),
        *(
            b"Host: localhost",
            b"Metadata: true",
            b"metadata: false",
            b" folded",
            b"\tfolded",
            b"",
            b"traceparent",
            b"a: b",
        ),
        *(b"traceparent: \xe4", b"GET /b HTTP/1.1", b"traceparent: 1\n", b"\rtraceparent: 1", b"Connection: close"),
    ]
)


@given(before=st.lists(_LINES, max_size=6), after=st.lists(_LINES, max_size=4), cut=st.integers(0, 30))
@example(before=[b"traceparent: 1"], after=[], cut=0)
def test_heads_that_are_alike_without_tracing_are_alike(before: list[bytes], after: list[bytes], cut: int) -> None:
    data = b"\r\n".join([b"GET /a HTTP/1.1", *before, b"", b"", *after])
    data = data[: len(data) - cut]
    plain = without_tracing(data)
    if plain == data:
        return
    try:
        expected = _Reading(plain)
    except httptools.HttpParserError:
        return
    if expected.requests != 1 or plain.find(b"\r\n\r\n") != len(plain) - 4:
        return  # it is never a known head
    found = _Reading(data)
    assert (found.requests, found.found) == (1, expected.found)
    assert data.find(b"\r\n\r\n") == len(data) - 4
    rest = [field for field in found.headers if field[0] not in TRACING_FIELDS]
    assert rest == [field for field in expected.headers if field[0] not in TRACING_FIELDS]


PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
TEXT = PARENT.decode()


@pytest.mark.parametrize(
    ("fields", "context"),
    [
        ([], {}),
        ([(b"traceparent", PARENT)], {"traceparent": TEXT}),
        ([(b"traceparent", b" " + PARENT + b"\t")], {"traceparent": TEXT}),
        ([(b"tracestate", b"a=1")], {}),
        ([(b"traceparent", PARENT), (b"traceparent", PARENT)], {}),
        (
            [(b"tracestate", b"a=1"), (b"traceparent", PARENT), (b"tracestate", b"b=2")],
            {"traceparent": TEXT, "tracestate": "a=1,b=2"},
        ),
        (
            [(b"traceparent", PARENT), (b"tracestate", b"a=" + b"b" * 509), (b"tracestate", b"")],
            {"traceparent": TEXT, "tracestate": "a=" + "b" * 509 + ","},
        ),
        ([(b"traceparent", PARENT), (b"tracestate", b"a=" + b"b" * 511)], {"traceparent": TEXT}),
        ([(b"traceparent", PARENT), (b"tracestate", b"a=" + b"b" * 509), (b"tracestate", b"c")], {"traceparent": TEXT}),
        ([(b"x-traceparent", PARENT)], {}),
        ([(b"traceparent", b"\xff")], {"traceparent": "\xff"}),
    ],
)
def test_trace_context_is_read_alike_from_fields_and_from_a_head(
    fields: list[tuple[bytes, bytes]], context: dict[str, str]
) -> None:
    assert trace_context(iter(fields)) == context
    for written in (bytes.lower, bytes.title, bytes.upper):
        lines = b"".join(b"\r\n%b:%b" % (written(name), value) for name, value in fields)
        head = b"GET /a HTTP/1.1\r\nHost: traceparent%b\r\nAccept: */*\r\n\r\n" % lines
        assert trace_context_of_head(head) == ({} if context == {"traceparent": "\xff"} else context)


def test_trace_context_is_read_from_the_head_only_as_a_whole_line() -> None:
    assert trace_context_of_head(b"GET /?\r\ntraceparent: " + PARENT) == {}
    assert trace_context_of_head(b"GET /traceparent:" + PARENT + b" HTTP/1.1\r\n\r\n") == {}


@pytest.mark.parametrize(
    ("traceparent", "sampled"),
    [
        (TEXT, True),
        (TEXT[:-2] + "03", True),
        (TEXT[:-2] + "ff", True),
        (TEXT[:-2] + "00", False),
        (TEXT[:-2] + "02", False),
        (TEXT[:-1], False),
        (TEXT.upper(), False),
        ("cc" + TEXT[2:] + "-more", True),
        ("cc" + TEXT[2:] + "more", False),
        ("ff" + TEXT[2:], False),
        ("", False),
    ],
)
def test_sampled_flag_is_read_from_a_whole_traceparent(traceparent: str, sampled: bool) -> None:
    assert is_sampled({"traceparent": traceparent}) is sampled
    assert not is_sampled({"tracestate": traceparent})
