"""Fields, statuses and bodies of answers, as `field_rules` lists them."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, run_in_thread
from tests.integration.attacks.kit import CLOSE, HOST, RAW_EVENTS, TRUE, request
from tests.kit import ProxyProcess, running_proxy
from tests.servers import AnsweringServer, ok
from tests.targets import INSTANCE

pytestmark = [pytest.mark.any_python, pytest.mark.process]

TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
DATE = (
    rb"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d GMT"
)
PAGES = (b"/-/healthy", b"/-/ready", b"/-/metrics", b"/-/status", b"/-/status.json", b"/-/nothing")
GRAMMAR = {
    "date": DATE,
    "content-type": TOKEN + rb"/" + TOKEN + rb"(; " + TOKEN + rb"=" + TOKEN + rb")*",
    "content-length": rb"\d+",
    "transfer-encoding": rb"chunked",
    "connection": rb"close",
    "cache-status": rb"imdsproxy(; [a-z-]+(=[^;,]+)?)+",
    "cache-control": rb"no-store",
    "age": rb"\d+",
    "allow": rb"(GET|HEAD|POST)(, (GET|HEAD|POST))*",
    "retry-after": rb"\d+",
    "vary": TOKEN,
    "x-content-type-options": rb"nosniff",
    "x-frame-options": rb"DENY",
    "referrer-policy": rb"no-referrer",
    "cross-origin-opener-policy": rb"same-origin",
    "cross-origin-resource-policy": rb"same-origin",
    "content-security-policy": rb"[a-z-]+( [^;,\s]+)*(; [a-z-]+( [^;,\s]+)*)*",
}
"""Every field that the proxy sends of its own, and its form."""
OWN = {
    "pages": [request(path, HOST, CLOSE) for path in PAGES],
    "HEAD": [request(path, HOST, CLOSE, method=b"HEAD") for path in PAGES],
    "browser": [request(b"/-/status", HOST, CLOSE, b"Accept: text/html\r\n", version=b"1.0")],
    "refusals": [
        request(b"/elsewhere", HOST, CLOSE),
        request(INSTANCE.encode(), HOST, CLOSE, method=b"PUT"),
        request(INSTANCE.encode(), HOST, CLOSE, b"Origin: null\r\n"),
        request(INSTANCE.encode(), CLOSE),
        request(INSTANCE.encode() + b"&x=%", HOST, CLOSE),
        request(b"/metadata/identity/oauth2/token", HOST, CLOSE),
        request(RAW_EVENTS, HOST, TRUE, CLOSE, b"Content-Length: 70000\r\n", method=b"POST", body=b"x" * 70_000),
    ],
    "unreadable": [b"x\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n", request(b"/", HOST, *[b"a: b\r\n"] * 200)],
    "slow": [b"GET / HT"],
    "failure": [request(b"/metadata/fails", HOST, CLOSE)],
}


class Head:
    """The head of an answer, as bytes, and its body."""

    def __init__(self, received: bytes) -> None:
        self.bytes, _, self.body = received.partition(b"\r\n\r\n")
        line, *lines = self.bytes.split(b"\r\n")
        self.status = int(line.split()[1])
        self.fields = [(name.decode("ascii"), value[1:]) for name, _, value in (each.partition(b":") for each in lines)]

    def get(self, name: str) -> bytes | None:
        return dict(self.fields).get(name)


@pytest.fixture(scope="module")
def imds() -> Iterator[EmulatorServer]:
    with run_in_thread(Emulator(rate=0, identity_rate=0, identity_concurrency=0)) as server:
        yield server


def _answer(head: bytes) -> bytes:
    if b" /metadata/fails" in head:
        return b"no HTTP\r\n\r\n"
    if b" /metadata/status/" in head:
        status = head.split(b"/metadata/status/")[1][:3]
        field = {b"401": b"WWW-Authenticate: x", b"206": b"Content-Range: bytes 0-1/9"}.get(status, b"Location: /x")
        if status in {b"204", b"304"}:
            return b"HTTP/1.1 %s x\r\nServer: IMDS/1\r\n\r\n" % status
        return ok(b"{}", field, b"Server: IMDS/1", status=status + b" x")
    return ok(b'{"apiVersions":[]}' if b"/versions" in head else b'{"compute":{}}')


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    with (
        AnsweringServer(_answer) as upstream,
        running_proxy(
            tmp_path_factory.mktemp("fields"),
            upstream=upstream.url,
            budget_requests=1000,
            budget_window=0.01,
            retry_max=0,
            header_timeout=1,
        ) as process,
    ):
        yield process


def ask(proxy: ProxyProcess, sent: bytes) -> Head:
    """Send, and return the answer and the end of the connection."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(sent)
        received = b""
        while part := connection.recv(65536):
            received += part
    return Head(received)


@pytest.mark.parametrize("kind", OWN)
def test_own_answers_have_known_fields_of_the_right_form(proxy: ProxyProcess, kind: str) -> None:
    for sent in OWN[kind]:
        answer = ask(proxy, sent)
        assert b"\r" not in answer.bytes.replace(b"\r\n", b"")
        assert len(dict(answer.fields)) == len(answer.fields)
        for name, value in answer.fields:
            assert name in GRAMMAR, name
            assert re.fullmatch(GRAMMAR[name], value), (name, value)
        assert answer.get("date") is not None
        assert answer.get("content-type") is not None
        assert (answer.status == 405) is (answer.get("allow") is not None)


@pytest.mark.parametrize("path", PAGES)
@pytest.mark.parametrize("accept", [b"", b"Accept: text/html\r\n"], ids=["any", "HTML"])
def test_head_of_a_page_has_the_fields_of_a_get(proxy: ProxyProcess, path: bytes, accept: bytes) -> None:
    changes = {"date", "transfer-encoding"}  # the page of a browser comes in chunks, which HEAD has none of
    head = ask(proxy, request(path, HOST, CLOSE, accept, method=b"HEAD"))
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.sendall(request(path, HOST, CLOSE, accept))
        get = Head(connection.recv(1 << 16))
    assert head.body == b""
    assert head.status == get.status
    names = [name for name, _ in get.fields]
    assert {name for name, _ in head.fields} - changes == set(names) - changes
    if path != b"/-/metrics":  # whose figures differ from one moment to the next
        length, other = (each.get("content-length") for each in (head, get))
        assert (length is None) is (other is None)
        if path != b"/-/status":
            assert length == other


@pytest.mark.parametrize("path", [*PAGES, INSTANCE.encode(), b"/elsewhere"])
@pytest.mark.parametrize("accept", [b"", b"Accept: text/html\r\n"], ids=["any", "HTML"])
def test_http_1_0_gets_no_chunks(proxy: ProxyProcess, path: bytes, accept: bytes) -> None:
    answer = ask(proxy, request(path, HOST, accept, version=b"1.0"))
    assert answer.get("transfer-encoding") is None
    length = answer.get("content-length")
    assert length is not None
    assert int(length) == len(answer.body)


@pytest.mark.parametrize("sent", [sent for kind in OWN for sent in OWN[kind]], ids=repr)
def test_last_answer_says_close(proxy: ProxyProcess, sent: bytes) -> None:
    assert ask(proxy, sent).get("connection") == b"close"


@pytest.mark.parametrize("status", [200, 204, 206, 300, 301, 302, 303, 304, 307, 308, 401, 407, 415, 416, 426])
def test_answers_of_imds_keep_their_fields_and_get_date_and_length(proxy: ProxyProcess, status: int) -> None:
    answer = ask(proxy, request(b"/metadata/status/%d" % status, HOST, CLOSE))
    assert answer.status == status
    assert answer.get("server") == b"IMDS/1"
    assert answer.get("date") is not None
    assert answer.get("transfer-encoding") is None
    if status in {204, 304}:
        assert (answer.get("content-length"), answer.body) == (None, b"")
    else:
        assert answer.get("content-length") == b"2"
        name = {401: "www-authenticate", 206: "content-range"}.get(status, "location")
        assert answer.get(name) is not None
