"""Helpers that write hostile requests, and assertions that hold for any request."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO

from imdsproxy.emulator import EmulatorServer
from imdsproxy.ops.metric_labels import ATTEMPT_STATUSES, NONE, OTHER, REASONS, STATUS_CLASSES
from imdsproxy.ops.token_figures import MOST_TOKENS
from imdsproxy.policy.endpoints import ENDPOINTS
from imdsproxy.protocol.messages import BudgetClass
from imdsproxy.records import Outcome
from tests.kit import Answer, ProxyProcess, get, talk
from tests.targets import EVENTS, TOKEN

HOST = b"Host: localhost\r\n"
TRUE = b"Metadata: true\r\n"
CLOSE = b"Connection: close\r\n"
RAW_EVENTS = EVENTS.encode()
RAW_TOKEN = TOKEN.encode()
TOKEN_QUERY = b"?api-version=2018-02-01&resource=https://vault.azure.net"
FORWARDED_FOR = b"X-Forwarded-For: 10.0.0.1\r\n"
IMDS_WORDS = b'{"error":"invalid_request","error_description":"Required metadata header not specified"}'
SMUGGLED = b"GET " + RAW_TOKEN + b"&smuggled=1 HTTP/1.1\r\n" + HOST + TRUE + b"\r\n"
# Every token of the emulator begins so: the encoded header of a JSON Web Token.
TOKEN_MARK = base64.urlsafe_b64encode(b'{"typ":"JWT"')[:14].decode()
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|warning|error) [a-z.]+ ")
_SAMPLE = re.compile(r"^imdsproxy_\w+\{(?P<labels>[^}]*)\} [0-9.e+-]+$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_STATUS = r"[1-5]\d\d"
_VALUES = {
    name: re.compile("|".join(map(re.escape, words)) if isinstance(words, frozenset) else words)
    for name, words in {
        "endpoint": ENDPOINTS,
        "outcome": frozenset(Outcome),
        "class": frozenset(each.value for each in BudgetClass),
        "status_class": frozenset({*STATUS_CLASSES, OTHER}),
        "status": "|".join((_STATUS, *ATTEMPT_STATUSES)),
        "reason": "|".join((_STATUS, NONE, OTHER, *REASONS)),
        "identity": "default|[0-9a-f]{8}",
        "audience": r"[^\x00-\x1f]*",  # a client's word, for which IMDS has issued a token
        "version": "[0-9a-z.+]+",
        "python_version": "[0-9a-z.+]+",
        "le": r"[0-9.e+-]+|\+Inf",
    }.items()
}
"""What each label of a metric may have as its value."""
Starter = Callable[..., contextlib.AbstractContextManager[ProxyProcess]]


def request(target: bytes, *fields: bytes, method: bytes = b"GET", body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """Write a request with these whole field lines and nothing else."""
    return method + b" " + target + b" HTTP/" + version + b"\r\n" + b"".join(fields) + b"\r\n" + body


def converse(port: int, sent: bytes | Sequence[bytes], answers: int = 1, *, head: bool = False) -> list[Answer]:
    """Send the pieces over one connection, and return `answers` answers, or fewer if it ends before."""
    found: list[Answer] = []
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for piece in [sent] if isinstance(sent, bytes) else sent:
            connection.sendall(piece)
            if not isinstance(sent, bytes):
                time.sleep(0.001)
        with connection.makefile("rb") as stream, contextlib.suppress(ConnectionError):
            while len(found) < answers and (answer := read_answer(stream, head=head)):
                found.append(answer)
    return found


def until_closed(port: int, sent: bytes | Sequence[bytes]) -> list[Answer]:
    """Send, and return every answer until the proxy closes the connection, which it must."""
    began = time.monotonic()
    received = io.BytesIO(talk(port, sent, wait=8, pause=0 if isinstance(sent, bytes) else 0.02))
    assert time.monotonic() - began < 7, "the connection was not closed"
    found: list[Answer] = []
    while answer := read_answer(received):
        found.append(answer)
    return found


def read_answer(stream: BinaryIO, *, head: bool = False, to_end: bool = False) -> Answer | None:
    """Read one response, fields of one name joined; None where the connection has ended.

    Args:
        stream: What was received.
        head: The request was a HEAD.
        to_end: A body without a length extends to the end of the stream, as that of another server may.
    """
    line = stream.readline()
    if not line:
        return None
    assert line.startswith(b"HTTP/1.1 "), line
    fields: dict[str, str] = {}
    while (field := stream.readline()) not in {b"\r\n", b""}:
        name, _, value = field.decode("latin-1").partition(":")
        key = name.lower()
        fields[key] = f"{fields[key]}, {value.strip()}" if key in fields else value.strip()
    status = int(line[9:12])
    without_body = head or status < 200 or status in {204, 304}
    if without_body:
        return Answer(status, fields, b"")
    length = fields.get("content-length", "-1") if to_end else fields["content-length"]
    return Answer(status, fields, stream.read(int(length)))


def assert_refused(answer: Answer, status: int, *details: str) -> None:
    """Assert that this is the proxy's own answer: its status, its reason, and JSON that says what to do."""
    assert answer.status == status, answer
    assert answer.headers["cache-status"] in {f"imdsproxy; detail={detail}" for detail in details}, answer
    assert answer.headers["content-type"].startswith("application/json"), answer
    document = json.loads(answer.body)
    assert set(document) == {"error", "error_description"}, answer
    assert all(isinstance(value, str) and value for value in document.values()), answer


@contextlib.contextmanager
def nothing_arrives(imds: EmulatorServer) -> Iterator[None]:
    """Hold that no request reaches IMDS within this context."""
    before = len(imds.emulator.arrivals)
    yield
    arrived = [arrival.target for arrival in imds.emulator.arrivals[before:]]
    assert not arrived, arrived


def check_log(log: str) -> None:
    """Hold that these lines of the text log are the proxy's own, without a traceback or an access token."""
    assert "Traceback" not in log, log[-4000:]
    assert TOKEN_MARK not in log, "an access token is in the log"
    assert all(LOG_LINE.match(line) for line in log.splitlines()), log[-2000:]
    assert "\r" not in log, "a carriage return is in the log"


def check_labels(process: ProxyProcess) -> None:
    """Hold that the metrics are few, and that each label but a token's audience has a word that is known beforehand."""
    text = get(process.port, "/-/metrics").body.decode()
    assert len(text) < 100_000, len(text)
    assert text.count("imdsproxy_token_remaining_seconds{") <= MOST_TOKENS
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        assert sample or "{" not in line or line.startswith(("#", "python_gc_")), line
        for name, value in _LABEL.findall(sample["labels"]) if sample else ():
            assert _VALUES[name].fullmatch(value), line
