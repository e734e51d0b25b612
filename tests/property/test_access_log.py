"""Whatever a client writes, a line of the access log is one line, can be read back, and holds no secret.

The fast path tells the observers the bytes of a head, the full path what a parser has made of them. Both lines are the
same.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import pytest
from httptools import HttpParserError, HttpRequestParser
from hypothesis import assume, given
from hypothesis import strategies as st

from imdsproxy.ops import logs
from imdsproxy.ops.access_log import FIELDS, log_request
from imdsproxy.protocol.messages import Response
from imdsproxy.records import Outcome, RequestRecord
from imdsproxy.server.head_rules import head_of

HOSTILE = st.one_of(
    st.binary(max_size=120),
    st.text("\r\n\t\v\f\x00\x1b\x7f\x85\"'\\= {}<>\u2028\u2029\u202e\ud7ff\u00e9A", max_size=60).map(
        lambda text: text.encode("utf-8", "surrogatepass")
    ),
    st.sampled_from([b'" outcome=hit', b"a\r\nuser-agent: b", b"%0d%0a", b"\xe2\x80\xa8", b"\\u2028", b"\\n"]),
)
FIELD = re.compile(r'(\w+)=(?:"((?:[^"\\]|\\.)*)"|(\S+))')
NAMES = st.sampled_from([b"User-Agent", b"x-ms-client-request-id", b"traceparent", b"Metadata", b"x"])


@contextmanager
def log(log_format: str) -> Iterator[list[str]]:
    """Collect the lines that the access log would write, in this form."""
    written: list[str] = []
    logs.configure("info", log_format)
    try:
        with mock.patch.object(logs._writer, "put", written.append):
            yield written
    finally:
        for name in ("imdsproxy", "uvicorn", "uvicorn.access", "httpcore", "httpx", "asyncio"):
            logging.getLogger(name).handlers.clear()
            logging.getLogger(name).propagate = True


def record(words: bytes) -> RequestRecord:
    secret = Response(200, ((b"x-ms-request-id", words), (b"x-other", b"SECRET")), b'{"access_token":"SECRET"}')
    return RequestRecord(secret, "token", Outcome.MISS, upstream="200", waited=0.0)


@pytest.mark.attack(13)
@given(start=st.tuples(HOSTILE, NAMES, HOSTILE), client=HOSTILE, words=HOSTILE)
@pytest.mark.parametrize("log_format", ["text", "json"])
def test_any_bytes_make_one_line_that_reads_back(
    log_format: str, start: tuple[bytes, bytes, bytes], client: bytes, words: bytes
) -> None:
    target, name, value = start
    target = target.replace(b"\r\n", b"\n")  # no server reads a target across lines
    secret = b"?resource=SECRET&client_id=SECRET&api-version=1"
    request = b"GET /%b%b HTTP/1.1\r\n%b: %b\r\n\r\n" % (target, secret, name, value)
    with log(log_format) as lines:
        log_request(record(words), 0.5, (client.decode("latin-1"), 1), request)
    (line,) = lines
    assert line.isprintable(), "no control character, no separator of lines, nothing that turns the writing around"
    assert "SECRET" not in line or b"SECRET" in target
    if log_format == "json":
        entry = json.loads(line)
        assert len(line.splitlines()) == 1
        found = {key: entry[key] for key in entry if key in FIELDS}
    else:
        found = {key: quoted or bare for key, quoted, bare in FIELD.findall(line.partition(" request ")[2])}
    assert set(found) <= set(FIELDS)
    assert found["outcome"] == "miss", "no value can pass for another field"


def parsed(head: bytes) -> tuple[bytes, list[tuple[bytes, bytes]]] | None:
    """Return the start and the fields of a head as the server's parser reads them; None if it refuses them."""
    url, fields = b"", []

    class Protocol:
        def on_url(self, part: bytes) -> None:
            nonlocal url
            url += part

        def on_header(self, name: bytes, value: bytes) -> None:
            fields.append((name.lower(), value))

    parser = HttpRequestParser(Protocol())
    try:
        parser.feed_data(head)
    except HttpParserError:
        return None
    return b"GET " + url, fields


TEXT = st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=100).map(
    lambda text: text.encode("latin-1")
)
LINES = st.lists(st.tuples(NAMES, st.sampled_from([b": ", b":", b":\t", b":  "]), TEXT), max_size=6)


@given(lines=LINES, query=st.sampled_from([b"", b"?api-version=2021-02-01", b"?a=1&API-VERSION=%31"]))
def test_line_of_a_known_head_is_the_line_of_the_full_path(
    lines: list[tuple[bytes, bytes, bytes]], query: bytes
) -> None:
    fields = b"".join(b"\r\n%b%b%b" % line for line in lines)
    head = b"GET /metadata/instance%b HTTP/1.1\r\nHost: localhost%b\r\n\r\n" % (query, fields)
    found = parsed(head)
    assume(found is not None)
    assert found is not None
    written = []
    for request in (head, head_of(*found)):
        with log("json") as each:
            log_request(record(b"1"), 0.5, None, request)
        written.append({name: value for name, value in json.loads(each[0]).items() if name != "time"})
    assert written[0] == written[1]
