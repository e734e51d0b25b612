"""Hostile and odd requests, byte by byte, against the real process with the emulator behind it.

Whatever is sent: the answer is the documented one, what is refused never reaches IMDS, and afterwards the process
serves the next client, has logged no traceback, no access token and no line of a client's making.
"""

from __future__ import annotations

import base64
import contextlib
import io
import itertools
import json
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, Fault, run_in_thread
from imdsproxy.emulator.identity import SYSTEM_ASSIGNED, USER_ASSIGNED
from imdsproxy.messages import FailureKind
from imdsproxy.policy import ENDPOINTS
from tests.kit import INSTANCE, METADATA, TOKEN, Answer, ProxyProcess, get, running_proxy, talk

pytestmark = pytest.mark.process

HOST = b"Host: localhost\r\n"
TRUE = b"Metadata: true\r\n"
CLOSE = b"Connection: close\r\n"
EVENTS = b"/metadata/scheduledevents?api-version=2020-07-01"
RAW_TOKEN = TOKEN.encode()
IMDS_WORDS = b'{"error":"invalid_request","error_description":"Required metadata header not specified"}'
# Every token of the emulator begins so: the encoded header of a JSON Web Token.
TOKEN_MARK = base64.urlsafe_b64encode(b'{"typ":"JWT"')[:14].decode()
Starter = Callable[..., contextlib.AbstractContextManager[ProxyProcess]]
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (debug|info|warning|error) [a-z.]+ ")
SMUGGLED = b"GET " + RAW_TOKEN + b"&smuggled=1 HTTP/1.1\r\n" + HOST + TRUE + b"\r\n"


def read_answer(stream: BinaryIO, *, head: bool = False) -> Answer | None:
    """Read one response, fields of one name joined; None where the connection has ended."""
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
    body = b"" if without_body else stream.read(int(fields["content-length"]))
    return Answer(status, fields, body)


def converse(port: int, sent: bytes | Sequence[bytes], answers: int = 1, *, head: bool = False) -> list[Answer]:
    """Send the pieces over one connection and give so many answers, or fewer if it ends before."""
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
    """Send and give every answer that comes before the proxy closes, which it has to."""
    began = time.monotonic()
    received = io.BytesIO(talk(port, sent, wait=8, pause=0 if isinstance(sent, bytes) else 0.02))
    assert time.monotonic() - began < 7, "the connection was not closed"
    found: list[Answer] = []
    while answer := read_answer(received):
        found.append(answer)
    return found


def request(target: bytes, *fields: bytes, method: bytes = b"GET", body: bytes = b"", version: bytes = b"1.1") -> bytes:
    """Write a request with these whole field lines and nothing else."""
    return method + b" " + target + b" HTTP/" + version + b"\r\n" + b"".join(fields) + b"\r\n" + body


def assert_refused(answer: Answer, status: int, *details: str) -> None:
    """The proxy's own answer: its status, its reason, and JSON that says what to do."""
    assert answer.status == status, answer
    assert answer.headers["cache-status"] in {f"imdsproxy; detail={detail}" for detail in details}, answer
    assert answer.headers["content-type"].startswith("application/json")
    document = json.loads(answer.body)
    assert set(document) == {"error", "error_description"}
    assert all(isinstance(value, str) and value for value in document.values())


@contextlib.contextmanager
def nothing_arrives(imds: EmulatorServer) -> Iterator[None]:
    before = len(imds.emulator.arrivals)
    yield
    assert [arrival.target for arrival in imds.emulator.arrivals[before:]] == []


def check_log(log: str) -> None:
    assert "Traceback" not in log, log[-4000:]
    assert TOKEN_MARK not in log
    assert all(LOG_LINE.match(line) for line in log.splitlines()), log[-2000:]
    assert "\r" not in log


@pytest.fixture(scope="module")
def imds() -> Iterator[EmulatorServer]:
    with run_in_thread(Emulator(rate=0, identity_rate=0, identity_concurrency=0)) as server:
        yield server


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Starter:
    """Start a proxy that says all it can, asks as often as it likes and tries nothing twice."""

    def started(upstream: str, **settings: Any) -> contextlib.AbstractContextManager[ProxyProcess]:
        ours: dict[str, Any] = {
            "upstream": upstream,
            "budget_requests": 1000,
            "budget_window": 0.01,
            "retry_max": 0,
            "header_timeout": 2,
            "log_level": "debug",
            "access_log": "true",
        }
        return running_proxy(tmp_path_factory.mktemp("proxy"), **{**ours, **settings})

    return started


@pytest.fixture(scope="module")
def shared(imds: EmulatorServer, start: Starter) -> Iterator[ProxyProcess]:
    with start(imds.url) as process:
        yield process


@pytest.fixture
def proxy(shared: ProxyProcess) -> Iterator[ProxyProcess]:
    """The proxy of all these tests, which has to come through each of them unhurt."""
    seen = len(shared.log)
    yield shared
    assert shared.process.poll() is None
    assert get(shared.port, "/metadata/versions").status == 200
    check_log(shared.log[seen:])


@pytest.fixture(scope="module")
def guarded(imds: EmulatorServer, start: Starter) -> Iterator[ProxyProcess]:
    with start(
        imds.url,
        allow="/metadata/instance,/metadata/identity,/metadata/versions",
        deny="/metadata/identity/oauth2,/metadata/instance/compute/userData",
        require_metadata_header="always",
        allowed_hosts="imds.internal",
    ) as process:
        yield process


class Trap:
    """A listener on loopback to which nobody may ever connect."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._socket.settimeout(0)
        self.port = int(self._socket.getsockname()[1])

    def check(self) -> None:
        with pytest.raises(BlockingIOError):
            self._socket.accept()

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def trap() -> Iterator[Trap]:
    found = Trap()
    yield found
    found.check()
    found.close()


class Upstream:
    """A server of few words in place of IMDS: `answer` gives the bytes to send for a request's head."""

    def __init__(self, answer: Callable[[bytes], bytes]) -> None:
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.heads: list[bytes] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as stream, contextlib.suppress(OSError):
            while head := _read_head(stream):
                self.heads.append(head)
                connection.sendall(self._answer(head))


def _read_head(stream: BinaryIO) -> bytes:
    lines = []
    while (line := stream.readline()) not in {b"\r\n", b""}:
        lines.append(line)
    return b"".join(lines)


def ok(body: bytes, status: bytes = b"200 OK") -> bytes:
    fields = b"Content-Type: application/json; charset=utf-8\r\nContent-Length: %d\r\n\r\n" % len(body)
    return b"HTTP/1.1 " + status + b"\r\n" + fields + body


# --- one reading of a path


_TAIL = b"?api-version=2018-02-01&resource=https://vault.azure.net"


@pytest.mark.parametrize("fields", [(HOST,), (HOST, TRUE)], ids=["no-metadata", "metadata"])
@pytest.mark.parametrize(
    "path",
    [
        rb"/metadata/identity\oauth2\token",
        rb"/metadata\identity\oauth2\token",
        rb"/metadata/instance\..\identity/oauth2/token",
        rb"\metadata\identity\oauth2\token",
        b"/metadata/identity%2Foauth2%2Ftoken",
        b"/metadata/identity%2foauth2/token",
        b"/metadata/identity%252Foauth2/token",
        b"/metadata/identity%5Coauth2%5ctoken",
        b"/metadata/instance/%2E%2E/identity/oauth2/token",
        b"/metadata/instance/%2e%2e/identity/oauth2/token",
        b"/metadata/instance/.%2e/identity/oauth2/token",
        b"/metadata/instance/../identity/oauth2/token",
        b"/metadata/./identity/oauth2/token",
        b"/./metadata/identity/oauth2/token",
        b"/metadata//identity/oauth2/token",
        b"//metadata/identity/oauth2/token",
        b"/metadata/identity/oauth2/token//",
        b"/metadata/identity/oauth2/token/.",
        b"/metadata/identity/oauth2/token.",
        b"/metadata./identity/oauth2/token",
        b"/metadata/identity;x=1/oauth2/token",
        b"/metadata/identity/oauth2/token;x=1",
        b"/metadata/identity%3Bx/oauth2/token",
        b"/metadata/identity/oauth2/token%3F",
        b"/metadata/identity/oauth2/token%00",
        b"/metadata/identity/oauth2/token%0d%0aX-Log:%20forged",
        b"/metadata/identity/oauth2/token%20",
        b"/metadata/identity/oauth2/token%23",
        b"/metadata/identity/oauth2/token#",
        b"/metadata/instance#/../identity/oauth2/token",
        b"/metadata/identity/oauth2/token%",
        b"/metadata/identity/oauth2/token%4",
        b"/metadata/identity/oauth2/token%zz",
        b"/metadata/identity/oauth2/token%u002e",
        b"/metadata/\xc4\xb1dentity/oauth2/token",
        b"/metadata/identity\xef\xbc\x8foauth2\xef\xbc\x8ftoken",
        b"/metadata/%c4%b1dentity/oauth2/token",
        b"/metadata/identity%ef%bc%8foauth2/token",
        b"/metadata/identity\xff/oauth2/token",
        b"/metadata/identity\x00/oauth2/token",
        b"/metadata/identity\x08/oauth2/token",
        b"/metadata/identity\x7f/oauth2/token",
        b"/metadata/identity\t/oauth2/token",
        b"/metadata/identity /oauth2/token",
        b"/metadata/identity\r/oauth2/token",
        b"/metadata/identity\n/oauth2/token",
        b'/metadata/identity"/oauth2/token',
        b"/metadata/identity</oauth2/token",
        b"/metadata/identity^/oauth2/token",
        b"/metadata/identity|/oauth2/token",
        b"/metadata/identity`/oauth2/token",
        b"/metadata/[identity]/oauth2/token",
        b"/metadata/{identity}/oauth2/token",
    ],
)
def test_what_can_be_read_in_two_ways_is_refused(
    proxy: ProxyProcess, imds: EmulatorServer, path: bytes, fields: tuple[bytes, ...]
) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(path + _TAIL, *fields, CLOSE))
    assert_refused(answer, 400, "bad-target", "malformed")


@pytest.mark.parametrize(
    "path",
    [
        b"/metadata/identity/oauth2/token",
        b"/METADATA/Identity/oauth2/token",
        b"/metadata/IDENTITY/OAUTH2/TOKEN",
        b"/metadata/identity/oauth2/token/",
        b"/metadata/%69dentity/oauth2/token",
        b"/metadata/%49DENTITY/o%61uth2/token",
        b"/metadat%61/identity/oauth2/%74oken",
        b"/metadata/identity/info",
        b"/Metadata/Identity/Info/",
    ],
)
@pytest.mark.parametrize(
    "fields",
    [
        (),
        (b"Metadata:\r\n",),
        (b"Metadata: false\r\n",),
        (b"Metadata: true\r\n", b"Metadata: true\r\n"),
        (b"Metadata: true\r\n", b"metadata: false\r\n"),
        (b"Metadata: true, true\r\n",),
        (b"Metadata: true;q=1\r\n",),
        (b'Metadata: "true"\r\n',),
        (b"Metadata: tru\xc3\xa9\r\n",),
        (b"Metadata: 1\r\n",),
        (b"X-Metadata: true\r\n",),
        (b"Meta-data: true\r\n",),
        (b"Meta_data: true\r\n",),
        (b"Metadata_: true\r\n",),
    ],
    ids=repr,
)
def test_credentials_need_the_clients_own_header(
    proxy: ProxyProcess, imds: EmulatorServer, path: bytes, fields: tuple[bytes, ...]
) -> None:
    assert converse(proxy.port, request(RAW_TOKEN, HOST, TRUE))[0].status == 200  # it could be had from the cache
    with nothing_arrives(imds):
        (answer,) = converse(proxy.port, request(path + _TAIL, HOST, *fields))
    assert_refused(answer, 400, "metadata-header")
    assert answer.body == IMDS_WORDS


@pytest.mark.parametrize("value", [b"true", b"True", b"TRUE", b"  true", b"\ttrue", b"true ", b"true\t"])
def test_the_header_is_read_as_clients_write_it(proxy: ProxyProcess, value: bytes) -> None:
    (answer,) = converse(proxy.port, request(RAW_TOKEN, HOST, b"mEtAdAtA:" + value + b"\r\n"))
    assert answer.status == 200
    assert json.loads(answer.body)["access_token"].startswith(TOKEN_MARK)


@pytest.mark.parametrize(
    "fields",
    [
        (HOST, b"Metadata : true\r\n"),
        (HOST, b"Metadata\t: true\r\n"),
        (HOST, b"Metadata\r\n: true\r\n"),
        (HOST, b"Metadata:\r\n true\r\n"),
        (HOST, b"X-A: 1\r\n Metadata: true\r\n"),
        (HOST, b"X-A: 1\rMetadata: true\r\n"),
        (HOST, b"X-A: 1\nMetadata: true\r\n"),
        (HOST, b"X-A: 1\x00\r\nMetadata: true\r\n"),
        (b" Metadata: true\r\n", HOST),
        (HOST, b"Metadata: \x0btrue\r\n"),
        (HOST, b"Metadata\x00: true\r\n"),
        (HOST, b"Metadata true\r\n"),
        (HOST, b": true\r\n"),
        (HOST, b"Metadata: true\x7f\r\n"),
    ],
    ids=repr,
)
def test_a_field_that_could_be_read_in_two_ways_ends_the_connection(
    proxy: ProxyProcess, imds: EmulatorServer, fields: tuple[bytes, ...]
) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(RAW_TOKEN, *fields) + SMUGGLED)
    assert_refused(answer, 400, "malformed")


@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_a_trailer_is_no_header(proxy: ProxyProcess, imds: EmulatorServer, method: bytes, pieces: int) -> None:
    """RFC 9110 section 6.5.1: a trailer field is not merged into the header section."""
    path = RAW_TOKEN + b"&trailer=%d" % pieces if method == b"GET" else b"/metadata/identity/issuecredential"
    head = request(path, HOST, CLOSE, b"Transfer-Encoding: chunked\r\n", method=method)
    parts = [head, b"0\r\n", b"Metadata: true\r\n\r\n"]
    sent = {1: [b"".join(parts)], 2: [head, parts[1] + parts[2]], 3: parts}[pieces]
    before = len(imds.emulator.arrivals)
    answers = until_closed(proxy.port, sent)
    assert [answer.status for answer in answers if answer.status == 200] == []
    for arrival in imds.emulator.arrivals[before:]:
        assert method == b"POST"  # a path unknown to the proxy goes as it came, without the header
        assert b"metadata" not in dict(arrival.headers)


def test_a_trailer_does_not_stand_in_for_host(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    sent = request(
        RAW_TOKEN + b"&t=host", TRUE, CLOSE, b"Transfer-Encoding: chunked\r\n", body=b"0\r\n" + HOST + b"\r\n"
    )
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, sent)
    assert_refused(answer, 400, "bad-host", "malformed")


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        (b"/", 404, "outside"),
        (b"/metadata-attacker", 404, "outside"),
        (b"/metadataX/identity/oauth2/token", 404, "outside"),
        (b"/metadat/identity/oauth2/token", 404, "outside"),
        (b"/x/metadata/identity/oauth2/token", 404, "outside"),
        (b"/latest/meta-data/", 404, "outside"),
        (b"/-/nothing", 404, "no-page"),
        (b"/-/metricsX", 404, "no-page"),
        (b"/-", 404, "no-page"),
    ],
)
def test_prefixes_end_at_a_segment(
    proxy: ProxyProcess, imds: EmulatorServer, path: bytes, status: int, detail: str
) -> None:
    with nothing_arrives(imds):
        (answer,) = converse(proxy.port, request(path + _TAIL, HOST, TRUE))
    assert_refused(answer, status, detail)


@pytest.mark.parametrize(
    "path", [b"/metadata", b"/metadata/", b"/metadata/instanceX", b"/metadata/identityX/oauth2/token"]
)
def test_an_unknown_path_is_nobodys_entry(proxy: ProxyProcess, imds: EmulatorServer, path: bytes) -> None:
    for _ in range(2):
        before = len(imds.emulator.arrivals)
        (answer,) = converse(proxy.port, request(path + _TAIL, HOST))
        assert answer.status == 404
        assert answer.headers["cache-status"] == "imdsproxy; fwd=bypass; fwd-status=404"
        assert len(imds.emulator.arrivals) == before + 1


def test_an_unknown_identity_path_never_gets_the_header_added(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    for path in (
        b"/metadata/identity",
        b"/metadata/identity/getplatformmetadata",
        b"/metadata/identity/oauth2/token/x",
    ):
        for fields in ((HOST,), (HOST, b"Metadata: false\r\n"), (HOST, TRUE, TRUE)):
            before = len(imds.emulator.arrivals)
            converse(proxy.port, request(path, *fields))
            (arrival,) = imds.emulator.arrivals[before:]
            assert b"metadata" not in dict(arrival.headers)


@pytest.mark.parametrize(
    ("path", "status", "detail"),
    [
        (b"/metadata/identity/oauth2/token", 403, "denied"),
        (b"/METADATA/IDENTITY/OAUTH2/TOKEN", 403, "denied"),
        (b"/metadata/identity/%6fauth2/token", 403, "denied"),
        (b"/metadata/identity/oauth2/", 403, "denied"),
        (b"/metadata/identity/oauth2", 403, "denied"),
        (b"/metadata/instanceX", 403, "denied"),
        (b"/metadata", 403, "denied"),
        (b"/metadata/loadbalancer", 403, "denied"),
        (b"/metadata/instance/compute/USERDATA", 403, "denied"),
        (b"/metadata/instance/compute/userdat%61/", 403, "denied"),
    ],
)
def test_a_rule_holds_for_every_spelling(
    guarded: ProxyProcess, imds: EmulatorServer, path: bytes, status: int, detail: str
) -> None:
    with nothing_arrives(imds):
        (answer,) = converse(guarded.port, request(path + _TAIL, HOST, TRUE))
    assert_refused(answer, status, detail)


def test_what_no_rule_names_stays_open(guarded: ProxyProcess) -> None:
    host = b"Host: IMDS.Internal:80\r\n"
    assert converse(guarded.port, request(b"/metadata/identity/oauth2x", host, TRUE))[0].status == 404
    assert converse(guarded.port, request(INSTANCE.encode(), host, TRUE))[0].status == 200
    (answer,) = converse(guarded.port, request(INSTANCE.encode(), host))
    assert answer.status == 400
    assert answer.headers["cache-status"] == "imdsproxy; detail=metadata-header"


# --- one reading of a query


@pytest.mark.parametrize(
    "query",
    [
        b"resource=a&resource=b",
        b"resource=a&resource=a",
        b"resource=a&Resource=b",
        b"resource=a&RESOURCE=a",
        b"resource=a&resourc%65=b",
        b"resource=a&client_id=x&client_id=y",
        b"resource=a&client_id=x&Client_Id=y",
        b"resource=a&client_id&client_id=y",
        b"resource=a&bypass_cache=false&bypass_cache=true",
        b"resource=a&bypass_cache=true&bypass%5fcache=true",
        b"resource=a&=1&=2",
        b"resource=a&x=%00",
        b"resource=a&x=%0d%0aX-Forged:1",
        b"resource=a&x=%0a",
        b"resource=a&x=%7f",
        b"resource=a&x=%ff",
        b"resource=a&x=%c0%af",
        b"resource=a&x=%ed%a0%80",
        b"resource=a&x=%",
        b"resource=a&x=%2",
        b"resource=a&x=%gg",
        b"resource=a#&client_id=x",
        b"resource=a&x=\xc3\xa9",
    ],
)
def test_a_query_that_could_be_read_in_two_ways_is_refused(
    proxy: ProxyProcess, imds: EmulatorServer, query: bytes
) -> None:
    target = b"/metadata/identity/oauth2/token?api-version=2018-02-01&" + query
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(target, HOST, TRUE, CLOSE))
    assert_refused(answer, 400, "bad-target", "malformed")


def test_a_query_of_60_kilobytes_is_served_and_one_of_70_refused(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    (answer,) = converse(proxy.port, request(INSTANCE.encode() + b"&x=" + b"a" * 60_000, HOST))
    assert answer.status == 200
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(INSTANCE.encode() + b"&x=" + b"a" * 70_000, HOST))
    assert_refused(answer, 431, "head-too-long")


# No two of these can be taken for the same thing by every reader, so no two share an entry.
_DIFFERENT = [
    "resource=a",
    "resource=A",
    "resource=a/",
    "resource=a%2F%2F",
    "resource=a%26client_id=x",
    "resource=a%2526client_id=x",
    "resource=a;client_id=x",
    "resource=a+b",
    "resource=a%20b",
    "resource=a%2Bb",
    "Resource=a",
    "resource=",
    "resource",
    "resource=a&client_id=",
    "resource=a&client_id",
    *(f"resource=a&client_id={identity.client_id}" for identity in (SYSTEM_ASSIGNED, *USER_ASSIGNED)),
    *(f"resource=a&object_id={identity.object_id}" for identity in (SYSTEM_ASSIGNED, *USER_ASSIGNED)),
    *(f"resource=a&msi_res_id={identity.resource_id}" for identity in USER_ASSIGNED),
    *(f"resource=a&mi_res_id={identity.resource_id}" for identity in USER_ASSIGNED),
    f"resource=a&Client_ID={USER_ASSIGNED[0].client_id}",
    f"resource=a&client_id={USER_ASSIGNED[0].client_id.upper()}",
    "resource=a&unknown=1",
    "resource=a&unknown=2",
    "resource=a&Unknown=1",
    "resource=a&unknown=1%26x=2",
    "resource=a&unknown=1&x=2",
    "resource=a&=1",
    "resource=a&bypass_cache=false",
]


def _token_target(query: str) -> str:
    return f"/metadata/identity/oauth2/token?api-version=2018-02-01&{query}"


def test_two_identities_never_share_an_entry(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    answers: dict[str, list[Answer]] = {query: [] for query in _DIFFERENT}
    before = len(imds.emulator.arrivals)
    order = random.Random(1)
    for _ in range(3):
        for query in order.sample(_DIFFERENT, len(_DIFFERENT)):
            answers[query].append(get(proxy.port, _token_target(query)))
    asked = Counter(arrival.target.decode() for arrival in imds.emulator.arrivals[before:])
    assert all(asked[_token_target(query)] == 1 for query in _DIFFERENT)
    assert asked.total() == len(_DIFFERENT)
    for query, given in answers.items():
        direct = get(imds.port, _token_target(query))
        assert {answer.status for answer in given} == {direct.status}, query
        if direct.status == 200:
            document = json.loads(direct.body)
            for answer in given:
                told = json.loads(answer.body)
                names = ("access_token", "client_id", "resource")
                assert [told[name] for name in names] == [document[name] for name in names], query


def test_a_random_query_gets_what_imds_itself_would_give(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    """IMDS is asked directly for the same bytes: whatever the cache holds, the token has to be the same."""
    chance = random.Random(2)
    clients = [identity.client_id for identity in USER_ASSIGNED]
    names = ["resource", "client_id", "Client_Id", "object_id", "api-version", "x", "%72esource", ""]
    values = [
        *clients,
        "a",
        "b",
        "a%26client_id=" + clients[0],
        "a+b",
        "a%20b",
        "a%2Bb",
        "",
        "2018-02-01",
        "%61",
        "=",
        "a=b",
    ]
    for _ in range(150):
        count = chance.randint(1, 4)
        pairs = [f"{chance.choice(names)}={chance.choice(values)}" for _ in range(count)]
        pairs += ["api-version=2018-02-01"] * (chance.random() < 0.9) + ["resource=a"] * (chance.random() < 0.5)
        chance.shuffle(pairs)
        target = "/metadata/identity/oauth2/token?" + chance.choice(["&", "&&"]).join(pairs)
        given, direct = get(proxy.port, target), get(imds.port, target)
        if given.status == 200:
            told, document = json.loads(given.body), json.loads(direct.body)
            assert direct.status == 200, target
            assert (told["access_token"], told["client_id"]) == (document["access_token"], document["client_id"]), (
                target
            )
        else:
            assert given.status == direct.status == 400, target


def test_the_same_question_in_another_order_is_a_hit(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    target = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://same.net&x=1"
    assert get(proxy.port, target).status == 200
    with nothing_arrives(imds):
        for other in (
            "/metadata/identity/oauth2/token?x=1&resource=https://same.net&api-version=2018-02-01",
            "/metadata/identity/oauth2/token?x=1&resource=https%3A%2F%2Fsame.net&api-version=2018-02-01",
            "/metadata/identity/oauth2/t%6Fken?x=%31&re%73ource=https%3a%2f%2fsame.net&api-version=2018-02-01",
        ):
            assert "; hit" in get(proxy.port, other).headers["cache-status"]


# --- headers


_XFF = [
    b"X-Forwarded-For: 10.0.0.1\r\n",
    b"x-forwarded-for: 10.0.0.1\r\n",
    b"X-FORWARDED-FOR:10.0.0.1\r\n",
    b"X-Forwarded-For:\r\n",
    b"X-Forwarded-For:   \t \r\n",
    b"X-Forwarded-For: a\r\nX-Forwarded-For: b\r\n",
    b"Connection: X-Forwarded-For\r\nX-Forwarded-For: a\r\n",
    b"X-Forwarded-For: \xff\r\n",
]


@pytest.mark.parametrize("field", _XFF, ids=repr)
@pytest.mark.parametrize("fields", [(HOST, TRUE), (HOST,)], ids=["metadata", "no-metadata"])
@pytest.mark.parametrize(
    "target",
    [RAW_TOKEN, INSTANCE.encode(), b"/metadata/unknown", b"/metadata/identity/unknown", b"/-/metrics", b"/elsewhere"],
)
def test_x_forwarded_for_is_refused(
    proxy: ProxyProcess, imds: EmulatorServer, target: bytes, fields: tuple[bytes, ...], field: bytes
) -> None:
    with nothing_arrives(imds):
        (answer,) = converse(proxy.port, request(target, *fields, field))
    assert_refused(answer, 400, "x-forwarded-for")


@pytest.mark.parametrize(
    "field",
    [
        b"X-Forwarded-For : a\r\n",
        b"X-Forwarded-For\t: a\r\n",
        b"X-A: 1\r\n X-Forwarded-For: a\r\n",
        b" X-Forwarded-For: a\r\n",
        b"X-Forwarded-For\x00: a\r\n",
        b"X-Forwarded-For\xff: a\r\n",
        b"X-A: 1\nX-Forwarded-For: a\r\n",
        b"X-A: 1\rX-Forwarded-For: a\r\n",
        b"X-Forwarded\r\n-For: a\r\n",
    ],
    ids=repr,
)
def test_no_odd_spelling_carries_x_forwarded_for(proxy: ProxyProcess, imds: EmulatorServer, field: bytes) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(b"/metadata/unknown", HOST, TRUE, field))
    assert_refused(answer, 400, "malformed")


def test_nothing_that_speaks_of_another_proxy_reaches_imds(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    """Some servers read `_` as `-` in a field's name, so that both spellings speak of the same thing."""
    names = [
        "Forwarded",
        "Via",
        "X-Real-IP",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X_Forwarded_For",
        "x_forwarded-for",
    ]
    sent = [f"{name}: for=10.0.0.1\r\n".encode() for name in names]
    for target in (b"/metadata/unknown", b"/metadata/identity/unknown", INSTANCE.encode() + b"&others=1"):
        before = len(imds.emulator.arrivals)
        for field in sent:
            converse(proxy.port, request(target, HOST, TRUE, field))
        for arrival in imds.emulator.arrivals[before:]:
            arrived = {name.decode().replace("_", "-") for name, _ in arrival.headers}
            assert arrived.isdisjoint({name.lower().replace("_", "-") for name in names}), arrival


def test_a_hop_by_hop_field_ends_at_the_proxy(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    fields = (
        *(b"Connection: close, X-Secret, Metadata, Host, imdsproxy-via\r\n", b"X-Secret: 1\r\n"),
        *(b"Proxy-Authorization: Basic aHVudGVyMg==\r\n", b"TE: trailers\r\n", b"Keep-Alive: 5\r\n"),
        *(b"Proxy-Connection: close\r\n", b"X-Kept: 1\r\n"),
    )
    before = len(imds.emulator.arrivals)
    until_closed(proxy.port, request(b"/metadata/unknown", HOST, *fields))
    (arrival,) = imds.emulator.arrivals[before:]
    arrived = dict(arrival.headers)
    assert arrived.keys().isdisjoint({b"x-secret", b"proxy-authorization", b"te", b"keep-alive", b"proxy-connection"})
    assert arrived.get(b"connection", b"close") == b"close"  # the proxy's own, if any
    assert arrived[b"x-kept"] == b"1"
    assert arrived[b"metadata"] == b"true"
    assert arrived[b"host"] == f"127.0.0.1:{imds.port}".encode()
    assert b"imdsproxy-via" in arrived


@pytest.mark.parametrize(
    "field",
    [
        b"X-Padded: value \r\n",
        b"X-Padded: value\t \t\r\n",
        b"X-Padded: \t value\r\n",
        b"X-Padded:\r\n",
        b"X-Padded: \r\n",
        b"X-Padded: \x80\xff\r\n",
        b"!#$%&'*+-.^_`|~: 1\r\n",
        b"Accept-Encoding: gzip \r\n",
        b"Content-Length: 0 \r\n",
        b"User-Agent:\t\r\n",
    ],
    ids=repr,
)
def test_a_clients_odd_field_is_not_taken_for_trouble_at_imds(
    proxy: ProxyProcess, imds: EmulatorServer, field: bytes
) -> None:
    """White space around a value is no part of it (RFC 9112 section 5.1)."""
    seen, before = len(proxy.log), len(imds.emulator.arrivals)
    (answer,) = converse(proxy.port, request(b"/metadata/unknown", HOST, field))
    assert answer.status == 404
    assert len(imds.emulator.arrivals) == before + 1
    assert "IMDS fails" not in proxy.log[seen:]


@pytest.mark.parametrize(
    ("host", "status", "detail"),
    [
        (b"", 400, "bad-host"),
        (b"Host:\r\n", 400, "bad-host"),
        (b"Host: localhost\r\nHost: localhost\r\n", 400, "bad-host"),
        (b"Host: localhost\r\nhost: evil.example\r\n", 400, "bad-host"),
        (b"Host: localhost, evil.example\r\n", 400, "bad-host"),
        (b"Host: user@localhost\r\n", 400, "bad-host"),
        (b"Host: localhost@evil.example\r\n", 400, "bad-host"),
        (b"Host: localhost:80@evil.example\r\n", 400, "bad-host"),
        (b"Host: localhost/evil\r\n", 400, "bad-host"),
        (b"Host: localhost#\r\n", 400, "bad-host"),
        (b"Host: local host\r\n", 400, "bad-host"),
        (b"Host: localhost:http\r\n", 400, "bad-host"),
        (b"Host: localhost:123456\r\n", 400, "bad-host"),
        (b"Host: localhost:-1\r\n", 400, "bad-host"),
        (b"Host: [::1\r\n", 400, "bad-host"),
        (b"Host: ::1\r\n", 400, "bad-host"),
        (b"Host: [localhost]\r\n", 400, "bad-host"),
        (b"Host: [fe80::1%25lo]\r\n", 400, "bad-host"),
        (b"Host: [v1.fe]\r\n", 400, "bad-host"),
        (b"Host: \xef\xbc\x91127.0.0.1\r\n", 400, "bad-host"),
        (b"Host: 127.0.0.1%2eevil.example\r\n", 400, "bad-host"),
        (b"Host: http://localhost\r\n", 400, "bad-host"),
        (b"Host: " + b"a" * 1000 + b"\r\n", 400, "bad-host"),
        (b"Host: evil.example\r\n", 403, "host"),
        (b"Host: evil.example:8254\r\n", 403, "host"),
        (b"Host: localhost.evil.example\r\n", 403, "host"),
        (b"Host: 127.0.0.1.evil.example\r\n", 403, "host"),
        (b"Host: evil-localhost\r\n", 403, "host"),
        (b"Host: localhost.\r\n", 403, "host"),
        (b"Host: 127.0.0.1.\r\n", 403, "host"),
        (b"Host: 169.254.169.254.\r\n", 403, "host"),
        (b"Host: 2130706433\r\n", 403, "host"),
        (b"Host: 2852039166\r\n", 403, "host"),
        (b"Host: 0x7f000001\r\n", 403, "host"),
        (b"Host: 0x7f.0.0.1\r\n", 403, "host"),
        (b"Host: 0177.0.0.1\r\n", 403, "host"),
        (b"Host: 127.1\r\n", 403, "host"),
        (b"Host: 127.0.0.1.1\r\n", 403, "host"),
        (b"Host: 256.0.0.1\r\n", 403, "host"),
        (b"Host: localhost-\r\n", 403, "host"),
    ],
    ids=repr,
)
@pytest.mark.parametrize("target", [RAW_TOKEN, b"/-/metrics", b"/-/healthy"])
def test_a_host_by_another_name_is_refused(
    proxy: ProxyProcess, imds: EmulatorServer, *, target: bytes, host: bytes, status: int, detail: str
) -> None:
    with nothing_arrives(imds):
        (answer,) = converse(proxy.port, request(target, host, TRUE))
    assert_refused(answer, status, detail)


@pytest.mark.parametrize(
    "host",
    [
        *(b"localhost", b"LOCALHOST", b"localhost:8254", b"localhost:", b"127.0.0.1", b"169.254.169.254:80"),
        *(b"[::1]", b"[::1]:8254", b"[::ffff:127.0.0.1]", b"[::FFFF:a9fe:a9fe]", b"10.0.0.4"),
    ],
)
def test_an_address_is_always_accepted(proxy: ProxyProcess, host: bytes) -> None:
    assert converse(proxy.port, request(RAW_TOKEN, b"Host: " + host + b"\r\n", TRUE))[0].status == 200


# --- no open proxy


@pytest.mark.parametrize("authority", ["169.254.169.254:80", "evil.example:443", "localhost:22"])
def test_connect_opens_nothing(proxy: ProxyProcess, imds: EmulatorServer, trap: Trap, authority: str) -> None:
    for target in (authority, f"127.0.0.1:{trap.port}", f"127.0.0.1:{imds.port}"):
        with nothing_arrives(imds):
            (answer,) = until_closed(proxy.port, f"CONNECT {target} HTTP/1.1\r\n".encode() + HOST + b"\r\n" + SMUGGLED)
        assert_refused(answer, 405, "method")
        assert answer.headers["allow"] == "GET"


@pytest.mark.parametrize(
    ("prefix", "status", "details"),
    [
        ("http://evil.example", 403, ("other-host",)),
        ("http://127.0.0.1:{trap}", 403, ("other-host",)),
        ("http://localhost", 403, ("other-host",)),
        ("http://localhost:{own}", 403, ("other-host",)),
        ("http://127.0.0.1:{own}", 403, ("other-host",)),
        ("http://169.254.169.254:8080", 403, ("other-host",)),
        ("http://169.254.169.254:{trap}", 403, ("other-host",)),
        ("http://169.254.169.254.", 403, ("other-host",)),
        ("http://169.254.169.254.evil.example", 403, ("other-host",)),
        ("http://2852039166", 403, ("other-host",)),
        ("http://0xa9fea9fe", 403, ("other-host",)),
        ("http://0251.0376.0251.0376", 403, ("other-host",)),
        ("http://[::ffff:169.254.169.254]", 403, ("other-host",)),
        ("http://metadata.google.internal", 403, ("other-host",)),
        ("http://user@169.254.169.254", 400, ("bad-target", "malformed")),
        ("http://user:hunter2@169.254.169.254", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254@evil.example", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254:80@127.0.0.1:{trap}", 400, ("bad-target", "malformed")),
        (r"http://169.254.169.254\@evil.example", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254%2eevil.example", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254%00", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254#", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254:x", 400, ("bad-target", "malformed")),
        ("http://", 400, ("bad-target", "malformed")),
        ("http:", 400, ("bad-target", "malformed")),
        ("https://169.254.169.254", 403, ("other-host",)),
        ("ftp://169.254.169.254", 400, ("bad-target", "malformed")),
        ("file://", 400, ("bad-target", "malformed")),
        ("//169.254.169.254", 400, ("bad-target", "malformed")),
        ("//evil.example", 400, ("bad-target", "malformed")),
        ("169.254.169.254", 400, ("bad-target", "malformed")),
        ("http://169.254.169.254/http://127.0.0.1:{trap}", 400, ("bad-target", "malformed")),
    ],
)
def test_an_absolute_target_for_another_host_is_refused(
    proxy: ProxyProcess, imds: EmulatorServer, trap: Trap, *, prefix: str, status: int, details: tuple[str, ...]
) -> None:
    target = prefix.format(trap=trap.port, own=proxy.port).encode() + RAW_TOKEN
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(target, HOST, TRUE, CLOSE))
    assert_refused(answer, status, *details)


@pytest.mark.parametrize(
    "prefix",
    [
        *("http://169.254.169.254", "http://169.254.169.254:80", "HTTP://169.254.169.254", "http://169.254.169.254:"),
        "http://127.0.0.1:{imds}",
    ],
)
def test_an_absolute_target_for_imds_is_served_by_the_same_rules(
    proxy: ProxyProcess, imds: EmulatorServer, prefix: str
) -> None:
    target = prefix.format(imds=imds.port).encode() + RAW_TOKEN
    before = len(imds.emulator.arrivals)
    # It stands above Host (RFC 9112 section 3.2.2), which clients of a proxy set to the same.
    (answer,) = converse(proxy.port, request(target, b"Host: 169.254.169.254\r\n", TRUE))
    assert answer.status == 200
    assert all(arrival.target.startswith(b"/metadata/") for arrival in imds.emulator.arrivals[before:])
    with nothing_arrives(imds):
        assert_refused(converse(proxy.port, request(target, HOST))[0], 400, "metadata-header")
        assert_refused(converse(proxy.port, request(target, HOST, TRUE, _XFF[0]))[0], 400, "x-forwarded-for")
        assert_refused(converse(proxy.port, request(target, HOST, HOST, TRUE))[0], 400, "bad-host")


@pytest.mark.parametrize(
    "method", ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND", "POST", "PURGE", "QUERY"]
)
@pytest.mark.parametrize("target", [TOKEN, INSTANCE, "/metadata/identity/info", "/-/metrics", "/elsewhere"])
def test_any_other_method_is_refused(proxy: ProxyProcess, imds: EmulatorServer, method: str, target: str) -> None:
    with nothing_arrives(imds):
        sent = request(target.encode(), HOST, TRUE, b"Cookie: secret\r\n", method=method.encode())
        (answer,) = converse(proxy.port, sent, head=method == "HEAD")
    assert answer.headers["allow"] == "GET"
    assert b"secret" not in answer.body
    if method == "HEAD":
        assert (answer.status, answer.headers["cache-status"]) == (405, "imdsproxy; detail=method")
    else:
        assert_refused(answer, 405, "method")


def test_a_method_names_both_where_both_are_allowed(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    with nothing_arrives(imds):
        for target in (EVENTS, b"/Metadata/ScheduledEvents/", b"/metadata/identity/issuecredential"):
            (answer,) = converse(proxy.port, request(target, HOST, TRUE, method=b"DELETE"))
            assert_refused(answer, 405, "method")
            assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize("target", [b"*", b"http://evil.example/", b"/metadata/../x", b"evil.example:80"])
def test_options_asks_nobody(proxy: ProxyProcess, imds: EmulatorServer, target: bytes) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(target, HOST, CLOSE, method=b"OPTIONS"))
    assert answer.status in {400, 405}
    assert_refused(answer, answer.status, "method", "malformed")


@pytest.mark.parametrize(
    ("method", "status", "reason"),
    [
        *((word, 405, "method") for word in (b"FOO", b"get", b"GETT")),
        *((word, 400, "malformed") for word in (b"G\x00T", b"", b"A" * 100_000)),
    ],
)
def test_a_word_that_is_no_method_ends_the_connection(
    proxy: ProxyProcess, imds: EmulatorServer, method: bytes, status: int, reason: str
) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(RAW_TOKEN, HOST, TRUE, method=method) + SMUGGLED)
    assert_refused(answer, status, reason)
    assert answer.headers.get("allow") == ("GET" if status == 405 else None)


@pytest.mark.parametrize("protocol", [b"h2c", b"websocket", b"TLS/1.0", b"HTTP/2.0", b"h2c, websocket"])
def test_an_upgrade_is_not_taken(proxy: ProxyProcess, imds: EmulatorServer, protocol: bytes) -> None:
    fields = (
        *(HOST, b"Connection: Upgrade, HTTP2-Settings\r\n", b"Upgrade: " + protocol + b"\r\n"),
        *(b"HTTP2-Settings: AAMAAABkAAQAAP__\r\n", b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
        b"Sec-WebSocket-Version: 13\r\n",
    )
    answers = until_closed(proxy.port, request(INSTANCE.encode(), *fields))
    assert [answer.status for answer in answers] == [200]
    with nothing_arrives(imds):
        # What follows is in whatever protocol: it must not be taken for a request on the quiet.
        answers = until_closed(proxy.port, request(b"/-/healthy", *fields) + SMUGGLED)
        assert [answer.status for answer in answers] == [200]
        answers = until_closed(proxy.port, request(RAW_TOKEN, *fields) + b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert_refused(answers[0], 400, "metadata-header")
        assert len(answers) == 1


def test_a_body_behind_an_upgrade_is_refused_rather_than_lost(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    """Java's client offers h2c with every request, and the parser takes the body for the other protocol."""
    fields = (HOST, TRUE, b"Connection: Upgrade, HTTP2-Settings\r\n", b"Upgrade: h2c\r\n", b"Content-Length: 2\r\n")
    with nothing_arrives(imds):
        answers = until_closed(proxy.port, request(EVENTS, *fields, method=b"POST", body=b"{}"))
    assert_refused(answers[0], 400, "upgrade-with-body")


@pytest.mark.parametrize(
    "sent",
    [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        b"\x05\x01\x00",
        b"\x04\x01\x00\x50\xa9\xfe\xa9\xfe\x00",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"PROXY TCP4 10.0.0.1 10.0.0.2 1 2\r\n" + SMUGGLED,
        b"\r\n\r\n\x0d\x0a\x0d\x0a\x00\x0d\x0a\x51\x55\x49\x54\x0a\x21\x11\x00\x0c" + bytes(12) + SMUGGLED,
        b"\x00" * 100,
        b"\xff" * 100,
        b"\n\n\n\x00",
        b"GET\r\n\r\n",
        b"GET /metadata/instance HTTP/1.1\r\r\n\n",
        b"GET /metadata/instance HTTP/11\r\n\r\n",
        b"GET /metadata/instance HTTP/3.0\r\n\r\n",
        b"GET /metadata/instance http/1.1\r\n\r\n",
        b"GET /metadata/instance HTTP/1.1 \r\nHost: localhost\r\n\r\n",
        b"GET\t/metadata/instance HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metadata/instance\tHTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET /metadata/instance /other HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
    ids=repr,
)
def test_what_is_no_http_is_answered_and_dropped(proxy: ProxyProcess, imds: EmulatorServer, sent: bytes) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, sent)
    assert_refused(answer, 400, "malformed")


@pytest.mark.parametrize("version", [b"HTTP/2.0", b"HTTP/0.9", b"RTSP/1.1", b"ICE/1.0"])
def test_another_protocols_name_opens_no_door(proxy: ProxyProcess, imds: EmulatorServer, version: bytes) -> None:
    """Only HTTP/1.0 may do without Host; what is not HTTP/1 is not to be served as if it were."""
    with nothing_arrives(imds):
        answers = until_closed(proxy.port, b"GET " + RAW_TOKEN + b" " + version + b"\r\n" + TRUE + CLOSE + b"\r\n")
    assert [answer.status for answer in answers] == [400]


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ((TRUE,), 200),
        ((TRUE, HOST), 200),
        ((TRUE, b"Connection: keep-alive\r\n", HOST), 200),
        ((), 400),
        ((HOST,), 400),
        ((TRUE, b"Host: evil.example\r\n"), 403),
        ((TRUE, HOST, HOST), 400),
        ((TRUE, _XFF[0]), 400),
    ],
)
def test_http_1_0_meets_the_same_rules(proxy: ProxyProcess, fields: tuple[bytes, ...], status: int) -> None:
    answers = until_closed(proxy.port, request(RAW_TOKEN, *fields, version=b"1.0"))
    assert [answer.status for answer in answers] == [status]


# --- framing


def _status_of(imds: EmulatorServer, event_id: str) -> str:
    document: dict[str, Any] = imds.emulator.events.document("2020-07-01", time.time())
    statuses: dict[str, str] = {event["EventId"]: event["EventStatus"] for event in document["Events"]}
    return statuses[event_id]


@pytest.mark.parametrize(
    "fields",
    [
        b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n",
        b"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
        b"Content-Length: 0\r\nContent-Length: 4\r\n",
        b"Content-Length: 4\r\nContent-Length: 0\r\n",
        b"Content-Length: 4\r\nContent-Length: 4\r\n",
        b"Content-Length: 4, 4\r\n",
        b"Content-Length: 0, 4\r\n",
        b"Content-Length: +4\r\n",
        b"Content-Length: -4\r\n",
        b"Content-Length: 0x4\r\n",
        b"Content-Length: 4.0\r\n",
        b"Content-Length: 4 4\r\n",
        b"Content-Length:\r\n",
        b"Content-Length: 18446744073709551616\r\n",
        b"Content-Length : 4\r\n",
        b"Content-Length\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: identity\r\nContent-Length: 4\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b'Transfer-Encoding: "chunked"\r\n',
        b"X: 1\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding\r\n : chunked\r\n",
    ],
    ids=repr,
)
@pytest.mark.parametrize("method", [b"POST", b"GET"])
def test_a_body_whose_length_is_in_doubt_ends_the_connection(
    proxy: ProxyProcess, imds: EmulatorServer, method: bytes, fields: bytes
) -> None:
    target = EVENTS if method == b"POST" else RAW_TOKEN + b"&framing=1"
    with nothing_arrives(imds):
        answers = until_closed(
            proxy.port, request(target, HOST, TRUE, fields, method=method, body=b"0\r\n\r\n" + SMUGGLED)
        )
    assert len(answers) == 1
    assert_refused(answers[0], 400, "malformed")


@pytest.mark.parametrize(
    "body",
    [
        b"0x2\r\n{}\r\n0\r\n\r\n",
        b"-2\r\n{}\r\n0\r\n\r\n",
        b" 2\r\n{}\r\n0\r\n\r\n",
        b"2 \r\n{}\r\n0\r\n\r\n",
        b"\r\n{}\r\n0\r\n\r\n",
        b"fffffffffffffffff\r\n{}\r\n0\r\n\r\n",
        b"2\n{}\n0\n\n",
        b"2\r{}\r\n0\r\n\r\n",
        b"2\r\n{}0\r\n\r\n",
        b"2\r\n{}xx0\r\n\r\n",
        b"2\r\n{}\n0\r\n\r\n",
        b"2;a\nb\r\n{}\r\n0\r\n\r\n",
        b"0\r\nX : 1\r\n\r\n",
        b"0\r\nX: 1\n\r\n",
        b"0\r\n X: 1\r\n\r\n",
    ],
    ids=repr,
)
def test_a_broken_chunk_ends_the_connection(proxy: ProxyProcess, imds: EmulatorServer, body: bytes) -> None:
    sent = request(EVENTS, HOST, TRUE, b"Transfer-Encoding: chunked\r\n", method=b"POST", body=body + SMUGGLED)
    with nothing_arrives(imds):
        answers = until_closed(proxy.port, sent)
    assert len(answers) == 1
    assert_refused(answers[0], 400, "malformed")


def test_an_unknown_transfer_coding_is_not_passed_off_as_plain(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    """RFC 9112 section 6.1: a coding that is not understood is refused."""
    chunked = b"2\r\n{}\r\n0\r\n\r\n"
    sent = request(EVENTS, HOST, TRUE, CLOSE, b"Transfer-Encoding: gzip, chunked\r\n", method=b"POST", body=chunked)
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, sent)
    assert answer.status in {400, 501}


def test_a_body_on_get_is_swallowed_and_never_read_as_a_request(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    following = request(b"/-/healthy", HOST)
    with nothing_arrives(imds):
        for target, status in (
            (RAW_TOKEN, 400),
            (b"/elsewhere", 404),
            (b"/-/healthy", 200),
            (b"/metadata/versions", 200),
        ):
            for framed in (
                request(target, HOST, b"Content-Length: %d\r\n" % len(SMUGGLED), body=SMUGGLED),
                request(
                    target,
                    HOST,
                    b"Transfer-Encoding: chunked\r\n",
                    body=b"%x\r\n%s\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
                ),
            ):
                for pieces in (framed + following, [framed, following], [framed[:-20], framed[-20:] + following]):
                    answers = converse(proxy.port, pieces, 2)
                    assert [answer.status for answer in answers] == [status, 200]
                    assert answers[1].body == b'{"status":"ok"}'


def test_a_refused_posts_body_is_never_read_as_a_request(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    with nothing_arrives(imds):
        framed = request(RAW_TOKEN, HOST, b"Content-Length: %d\r\n" % len(SMUGGLED), method=b"POST", body=SMUGGLED)
        answers = converse(proxy.port, [framed[:-30], framed[-30:] + request(b"/-/healthy", HOST)], 2)
    assert [answer.status for answer in answers] == [405, 200]


@pytest.mark.parametrize("framing", ["length", "chunked", "one-byte-chunks", "expect"])
def test_a_post_to_scheduled_events_arrives_whole(proxy: ProxyProcess, imds: EmulatorServer, framing: str) -> None:
    event = imds.emulator.events.add()
    body = json.dumps({"StartRequests": [{"EventId": event}]}).encode()
    length = b"Content-Length: %d\r\n" % len(body)
    before = len(imds.emulator.arrivals)
    if framing == "expect":
        with (
            socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection,
            connection.makefile("rb") as read,
        ):
            connection.sendall(request(EVENTS, HOST, length, b"Expect: 100-continue\r\n", method=b"POST"))
            assert read.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert read.readline() == b"\r\n"
            connection.sendall(body)
            answer = read_answer(read)
            assert answer is not None
    else:
        pieces = {
            "length": request(EVENTS, HOST, length, method=b"POST", body=body),
            "chunked": request(
                EVENTS,
                HOST,
                b"Transfer-Encoding: chunked\r\n",
                method=b"POST",
                body=b"%X;x=y\r\n%s\r\n000\r\nT: 1\r\n\r\n" % (len(body), body),
            ),
            "one-byte-chunks": request(
                EVENTS,
                HOST,
                b"Transfer-Encoding: Chunked\r\n",
                method=b"POST",
                body=b"".join(b"1\r\n%c\r\n" % byte for byte in body) + b"0\r\n\r\n",
            ),
        }[framing]
        (answer,) = converse(proxy.port, pieces)
    assert answer.status == 200
    assert answer.headers["cache-status"] == "imdsproxy; fwd=method; fwd-status=200"
    (arrival,) = imds.emulator.arrivals[before:]
    arrived = dict(arrival.headers)
    assert arrived[b"content-length"] == str(len(body)).encode()
    assert arrived.keys().isdisjoint({b"transfer-encoding", b"expect", b"t"})
    assert _status_of(imds, event) == "Started"
    imds.emulator.events.clear()


def test_expectation_of_a_request_that_is_refused_is_not_met(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    fields = (HOST, b"Content-Length: 2\r\n", b"Expect: 100-continue\r\n", CLOSE)
    with nothing_arrives(imds):
        for target, method, status in (
            (RAW_TOKEN, b"POST", 405),
            (b"/metadata/../x", b"POST", 400),
            (RAW_TOKEN, b"PUT", 405),
        ):
            (answer,) = converse(proxy.port, request(target, *fields, method=method))
            assert answer.status == status
        (answer,) = converse(proxy.port, request(EVENTS, *fields, _XFF[0], method=b"POST"))
        assert_refused(answer, 400, "x-forwarded-for")


@pytest.mark.parametrize("chunked", [False, True])
def test_a_long_post_is_refused(proxy: ProxyProcess, imds: EmulatorServer, chunked: bool) -> None:
    body = b"x" * 70_000
    field = b"Transfer-Encoding: chunked\r\n" if chunked else b"Content-Length: 70000\r\n"
    framed = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if chunked else body
    with nothing_arrives(imds):
        answers = converse(
            proxy.port, request(EVENTS, HOST, field, method=b"POST", body=framed) + request(b"/-/healthy", HOST), 2
        )
    assert_refused(answers[0], 413, "body-too-long")
    assert [answer.status for answer in answers[1:]] in ([200], [])


def test_pipelined_requests_are_answered_in_order(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=0.3, times=1))
    event = imds.emulator.events.add()
    body = json.dumps({"StartRequests": [{"EventId": event}]}).encode()
    balancer = b"/metadata/loadbalancer?api-version=2021-02-01&order=1"
    conversation = [
        (request(balancer, HOST), 200, b'{"loadbalancer"'),
        (request(b"/-/healthy", HOST), 200, b'{"status":"ok"}'),
        (request(RAW_TOKEN, HOST), 400, IMDS_WORDS),
        (request(RAW_TOKEN, HOST, TRUE), 200, b'{"access_token"'),
        (request(b"/elsewhere", HOST), 404, b'{"error":"not_found"'),
        (request(EVENTS, HOST, b"Content-Length: %d\r\n" % len(body), method=b"POST", body=body), 200, b""),
        (request(b"/metadata/versions", HOST, b"Content-Length: 3\r\n", body=b"GET"), 200, b'{"apiVersions"'),
        (request(RAW_TOKEN, HOST, TRUE, method=b"DELETE"), 405, b'{"error":"method_not_allowed"'),
        (request(balancer, HOST), 200, b'{"loadbalancer"'),
        (request(b"/-/healthy", HOST, CLOSE), 200, b'{"status":"ok"}'),
    ]
    sent = b"".join(raw for raw, _, _ in conversation)
    for pieces in (sent, [sent[at : at + 50] for at in range(0, len(sent), 50)]):
        answers = until_closed(proxy.port, pieces)
        assert [answer.status for answer in answers] == [status for _, status, _ in conversation]
        for answer, (_, _, beginning) in zip(answers, conversation, strict=True):
            assert answer.body.startswith(beginning)
    imds.emulator.events.clear()


@pytest.mark.parametrize(
    "garbage",
    [b"\x00\xff\r\n\r\n", b"GET / HTTP/1.1\r\nA : 1\r\n\r\n", b"GET / HTTP/1.1\r\nA: " + b"a" * 200_000],
    ids=["garbage", "malformed", "too-long"],
)
@pytest.mark.parametrize("apart", [False, True], ids=["at-once", "apart"])
def test_what_cannot_be_read_does_not_overtake_an_answer(
    proxy: ProxyProcess, imds: EmulatorServer, garbage: bytes, apart: bool
) -> None:
    target = b"/metadata/loadbalancer?api-version=2021-02-01&overtake=%d-%d" % (len(garbage), apart)
    asked = request(target, HOST) + request(b"/-/healthy", HOST)
    imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=0.2, times=1))
    answers = until_closed(proxy.port, [asked, garbage] if apart else asked + garbage)
    assert [answer.status for answer in answers[:2]] == [200, 200]
    assert answers[0].body.startswith(b'{"loadbalancer"')
    assert [answer.status for answer in answers[2:]] in ([], [400], [431])


def test_a_request_split_anywhere_is_the_same_request(proxy: ProxyProcess) -> None:
    sent = request(RAW_TOKEN, HOST, TRUE)
    whole = converse(proxy.port, sent)[0]
    token = json.loads(whole.body)["access_token"]
    (answer,) = converse(proxy.port, [sent[at : at + 1] for at in range(len(sent))])
    assert json.loads(answer.body)["access_token"] == token
    for at in range(1, len(sent), 5):
        (answer,) = converse(proxy.port, [sent[:at], sent[at:]])
        assert json.loads(answer.body)["access_token"] == token
    twice = sent * 2
    for at in range(1, len(twice), 11):
        answers = converse(proxy.port, [twice[:at], twice[at:]], 2)
        assert [json.loads(answer.body)["access_token"] for answer in answers] == [token, token]


def test_bytes_that_were_once_served_open_no_door_to_others(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    """Whatever is remembered of a head that is sent again and again: one byte more is another head."""
    head = request(RAW_TOKEN, HOST, TRUE)
    assert [answer.status for answer in converse(proxy.port, head * 5, 5)] == [200] * 5
    with nothing_arrives(imds):
        for other, status, detail in (
            (request(RAW_TOKEN, HOST), 400, "metadata-header"),
            (request(RAW_TOKEN, HOST, TRUE, TRUE), 400, "metadata-header"),
            (request(RAW_TOKEN, HOST, TRUE, _XFF[0]), 400, "x-forwarded-for"),
            (request(RAW_TOKEN, HOST, HOST, TRUE), 400, "bad-host"),
            (request(RAW_TOKEN, b"Host: localhosu\r\n", TRUE), 403, "host"),
            (request(RAW_TOKEN, HOST, TRUE, method=b"PUT"), 405, "method"),
            (head[:-2] + b" : 1\r\n\r\n", 400, "malformed"),
        ):
            for prefix, count in ((b"", 0), (head, 1), (head * 3, 3)):
                for pieces in (prefix + other, [prefix, other] if prefix else [other[:40], other[40:]]):
                    answers = converse(proxy.port, pieces, count + 1)
                    assert [answer.status for answer in answers[:count]] == [200] * count
                    if len(answers) == count and detail == "malformed":
                        continue  # closed without a word, since an answer was still on its way
                    assert_refused(answers[count], status, detail)
    smuggling = request(RAW_TOKEN, HOST, TRUE, b"Content-Length: %d\r\n" % len(head), body=head)
    answers = until_closed(proxy.port, smuggling + request(b"/-/healthy", HOST, CLOSE))
    assert [answer.body[:10] for answer in answers] == [b'{"access_t', b'{"status":']


@pytest.mark.parametrize(
    "sent",
    [
        request(RAW_TOKEN, HOST, TRUE, b"X: " + b"a" * 65_537 + b"\r\n"),
        request(RAW_TOKEN, HOST, TRUE, b"a" * 65_537 + b": 1\r\n"),
        request(RAW_TOKEN, HOST, TRUE, *(b"X-%d: 1\r\n" % number for number in range(10_000))),
        request(RAW_TOKEN, HOST, TRUE, *(b"X: 1\r\n" for _ in range(101))),
        request(RAW_TOKEN, HOST, TRUE, *(b"Metadata: true\r\n" for _ in range(10_000))),
        request(RAW_TOKEN + b"&x=" + b"a" * 65_537, HOST, TRUE),
        b"GET " + b"/metadata" * 20_000,
        b"GET / HTTP/1.1\r\nX: " + b"a" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"a" * 200_000,
        b"GET / HTTP/1.1\r\n" + b"X: 1\r\n" * 50_000,
        b"\r\n" * 100_000,
        request(RAW_TOKEN, HOST, b"Transfer-Encoding: chunked\r\n", body=b"0\r\n" + b"X: 1\r\n" * 20_000 + b"\r\n"),
    ],
    ids=[
        *("value", "name", "10000-fields", "101-fields", "10000-metadata", "target", "endless-target"),
        *("endless-value", "endless-name", "endless-fields", "endless-lines", "trailers"),
    ],
)
def test_a_head_that_is_too_long_is_refused(proxy: ProxyProcess, imds: EmulatorServer, sent: bytes) -> None:
    with nothing_arrives(imds):
        answers = until_closed(proxy.port, [sent[at : at + 30_000] for at in range(0, len(sent), 30_000)])
    # Where the proxy closes while the client still sends, the answer can be lost on the client's side.
    for answer in answers[-1:]:
        assert answer.status in {400, 431}
        assert_refused(answer, answer.status, "head-too-long", "metadata-header", "malformed")
    assert all(answer.status != 200 for answer in answers)


def test_a_hundred_fields_are_served(proxy: ProxyProcess) -> None:
    fields = [b"X-%d: 1\r\n" % number for number in range(98)]
    assert converse(proxy.port, request(RAW_TOKEN, HOST, TRUE, *fields))[0].status == 200


@pytest.mark.parametrize(
    "beginning", [b"0\r\nX: ", b"0\r\n", b"1;x="], ids=["trailer-value", "trailer-name", "extension"]
)
def test_what_follows_a_body_is_not_kept_without_end(proxy: ProxyProcess, beginning: bytes) -> None:
    before = proxy.resident_bytes()
    head = request(RAW_TOKEN + b"&endless=1", HOST, b"Transfer-Encoding: chunked\r\n")
    most = 0
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as connection, contextlib.suppress(OSError):
        connection.sendall(head + beginning)
        end = time.monotonic() + 1.5
        while time.monotonic() < end:
            connection.sendall(b"a" * 65_536)
            most = max(most, proxy.resident_bytes() - before)
    assert most < 8_000_000


# --- poisoning


def test_a_client_cannot_spoil_an_entry_by_its_own_headers(
    start: Starter,
) -> None:
    """What is fetched for everyone is asked for in the proxy's own words.

    Servers refuse a long head (http.sys over 16 kB) with a 400, which would be remembered for everyone.
    """
    upstream = Upstream(lambda head: ok(b'{"good":true}') if len(head) < 16_000 else ok(b"{}", b"400 Bad Request"))
    with start(upstream.url) as process:
        nasty = [
            b"imdsproxy-via: " + b"a" * 20_000 + b"\r\n",
            b"imdsproxy-via: a\r\nimdsproxy-via: " + b"b" * 20_000 + b"\r\n",
            b"Accept: " + b"a" * 20_000 + b"\r\n",
            b"Cookie: " + b"a" * 20_000 + b"\r\n",
            b"User-Agent: " + b"a" * 20_000 + b"\r\n",
        ]
        for number, field in enumerate(nasty):
            target = INSTANCE.encode() + b"&spoil=%d" % number
            converse(process.port, request(target, HOST, field))
            assert converse(process.port, request(target, HOST))[0].status == 200, field[:30]
            converse(process.port, request(target, HOST, field, b"Cache-Control: no-cache\r\n"))
            assert converse(process.port, request(target, HOST))[0].status == 200, field[:30]
        for head in upstream.heads:
            assert len(head) < 1000
    upstream.close()


def test_what_is_fetched_for_everyone_carries_nothing_of_one_client(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    before = len(imds.emulator.arrivals)
    fields = [
        *(b"Authorization: Bearer x\r\n", b"Cookie: x\r\n", b"Accept: text/plain\r\n", b"Accept-Encoding: gzip\r\n"),
        *(
            b"Range: bytes=0-1\r\n",
            b"If-None-Match: *\r\n",
            b"If-Modified-Since: x\r\n",
            b"X-Original-URL: /metadata/x\r\n",
        ),
        *(b"X-HTTP-Method-Override: DELETE\r\n", b"Content-Type: text/plain\r\n", b"imdsproxy-via: somebody\r\n"),
    ]
    (answer,) = converse(proxy.port, request(INSTANCE.encode() + b"&everyone=1", HOST, *fields))
    assert answer.status == 200
    (arrival,) = imds.emulator.arrivals[before:]
    allowed = {b"host", b"accept", b"accept-encoding", b"user-agent", b"metadata", b"imdsproxy-via"}
    assert {name for name, _ in arrival.headers} - {b"connection"} == allowed
    assert dict(arrival.headers)[b"accept"] == b"*/*"


def test_a_clients_made_up_hops_spoil_nothing_further_up(imds: EmulatorServer, start: Starter) -> None:
    """Two proxies in a row, as on a node with one for each pod: one pod's client must not blind the other."""
    with start(imds.url) as node, start(node.url) as pod:
        for count in range(1, 10):
            hops = b"imdsproxy-via: " + b", ".join(b"%016x" % number for number in range(count)) + b"\r\n"
            target = INSTANCE.encode() + b"&hops=%d" % count
            (answer,) = converse(pod.port, request(target, HOST, hops))
            assert answer.status in {200, 400, 508}
            assert converse(pod.port, request(target, HOST))[0].status == 200
        assert "IMDS fails" not in pod.log
        assert "leads back" not in node.log


def test_one_clients_hang_up_does_not_spoil_what_others_wait_for(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=0.3))
    target = "/metadata/loadbalancer?api-version=2021-02-01&hang-up=1"
    before = len(imds.emulator.arrivals)
    with socket.create_connection(("127.0.0.1", proxy.port)) as first:
        first.sendall(request(target.encode(), HOST))
        time.sleep(0.1)
    assert get(proxy.port, target).status == 200
    imds.emulator.faults.clear()
    assert len(imds.emulator.arrivals) == before + 1


@pytest.mark.parametrize("waiting", [True, False], ids=["imds-is-slow", "client-reads-nothing"])
def test_a_pipelining_client_that_hangs_up_leaves_no_traceback(
    imds: EmulatorServer, start: Starter, waiting: bool
) -> None:
    slow = request(b"/metadata/loadbalancer?api-version=2021-02-01&gone=1", HOST)
    quick = request(INSTANCE.encode(), HOST)
    with start(imds.url) as process:
        assert get(process.port, INSTANCE).status == 200
        imds.emulator.faults.add(Fault(path="/metadata/loadbalancer", latency=0.3))
        for _ in range(2):
            with socket.create_connection(("127.0.0.1", process.port), timeout=0.3) as connection:
                with contextlib.suppress(OSError):
                    connection.sendall(slow + quick * 20 if waiting else quick * 4000)
                time.sleep(0.1)
        time.sleep(0.4)
        imds.emulator.faults.clear()
        assert get(process.port, INSTANCE).status == 200
        check_log(process.log)


# --- its own environment


def test_the_environment_changes_nothing_about_where_requests_go(
    imds: EmulatorServer,
    start: Starter,
    trap: Trap,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    elsewhere = f"http://user:hunter2@127.0.0.1:{trap.port}"
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, elsewhere)
        monkeypatch.setenv(name.upper(), elsewhere)
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "example.com")
    for name in (".netrc", "_netrc"):
        (tmp_path / name).write_text("default login user password hunter2\n", encoding="ascii")
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    keys = tmp_path / "keys"
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.setenv(name, str(tmp_path / "missing"))
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", "*")
    monkeypatch.setenv("WEB_CONCURRENCY", "4")
    monkeypatch.setenv("UVICORN_PORT", str(trap.port))
    before = len(imds.emulator.arrivals)
    with start(imds.url) as process:
        answers = [get(process.port, target) for target in (TOKEN, INSTANCE, "/metadata/unknown")]
        assert [answer.status for answer in answers] == [200, 200, 404]
        assert get(process.port, TOKEN, {**METADATA, "X-Forwarded-For": "10.0.0.1"}).status == 400
        log = process.log
    arrivals = imds.emulator.arrivals[before:]
    assert len(arrivals) == 4  # the three, and the question for readiness
    for arrival in arrivals:
        assert arrival.target.startswith(b"/metadata/")
        assert not any(b"authorization" in name or b"hunter2" in value for name, value in arrival.headers)
    assert not keys.exists()
    assert "hunter2" not in log
    check_log(log)


# --- floods


def _flood(port: int, requests: Iterator[bytes], batch: int = 50) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection, connection.makefile("rb") as stream:
        while pieces := list(itertools.islice(requests, batch)):
            connection.sendall(b"".join(pieces))
            for _ in pieces:
                assert read_answer(stream) is not None


def _flood_together(port: int, floods: Sequence[Iterator[bytes]]) -> None:
    threads = [threading.Thread(target=_flood, args=(port, flood)) for flood in floods]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)


def _new_keys(connection: int, numbers: range) -> Iterator[bytes]:
    return (request(INSTANCE.encode() + b"&x=%d-%d" % (connection, number), HOST) for number in numbers)


def _refused_keys(connection: int, count: int) -> Iterator[bytes]:
    for number in range(count):
        mark = b"%d-%d" % (connection, number)
        yield request(b"/elsewhere/" + mark, HOST)
        yield request(RAW_TOKEN + mark, HOST)
        yield request(RAW_TOKEN, b"Host: h" + mark + b"\r\n", TRUE)
        yield request(RAW_TOKEN + b"%zz" + mark, HOST)
        yield request(b"/-/" + mark, HOST)


def test_a_flood_of_keys_stays_within_the_configured_bound(start: Starter) -> None:
    upstream = Upstream(lambda _head: ok(b'{"answer":"' + b"x" * 500 + b'"}'))
    bound = 1_000_000
    with start(upstream.url, cache_max_bytes=bound, access_log="false", log_level="info") as process:
        _flood_together(process.port, [_new_keys(connection, range(200)) for connection in range(4)])
        _flood_together(process.port, [_refused_keys(connection, 200) for connection in range(4)])
        warm = process.resident_bytes()
        _flood_together(process.port, [_new_keys(connection, range(200, 700)) for connection in range(4)])
        _flood_together(process.port, [_refused_keys(connection, 500) for connection in range(4)])
        assert process.resident_bytes() - warm < 5_000_000
        assert 0 < process.metric("imdsproxy_cache_bytes") <= bound
        assert get(process.port, INSTANCE).status == 200
        assert process.metric("imdsproxy_requests_total") > 10_000
        check_labels(process)
    upstream.close()


def test_one_clients_flood_does_not_starve_another(imds: EmulatorServer, start: Starter) -> None:
    """A client floods with ever new questions about the instance; another wants one token."""
    stop = threading.Event()

    def flood(port: int, connection: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            get(port, f"{INSTANCE}&flood={connection}-{number}")

    with start(imds.url, budget_requests=5, budget_window=1, max_wait=1, access_log="false") as process:
        threads = [threading.Thread(target=flood, args=(process.port, number)) for number in range(20)]
        for thread in threads:
            thread.start()
        try:
            time.sleep(1.5)
            end = time.monotonic() + 8
            statuses = []
            while time.monotonic() < end and 200 not in statuses:
                answer = get(process.port, TOKEN)
                statuses.append(answer.status)
                time.sleep(0.2)
        finally:
            stop.set()
            for thread in threads:
                thread.join(10)
        assert statuses[-1] == 200, f"{len(statuses)} tries, every one turned away"


def test_slow_scheduled_events_do_not_hold_the_whole_budget(
    start: Starter,
) -> None:
    """The first such request may take IMDS two minutes; five of them must not keep everyone from a token."""
    with (
        run_in_thread(Emulator(rate=0, identity_rate=0, enable_delay=2.5)) as slow,
        start(slow.url, budget_requests=5, budget_window=1, max_wait=1) as process,
    ):
        threads = [
            threading.Thread(target=get, args=(process.port, f"{EVENTS.decode()}&x={number}")) for number in range(5)
        ]
        for thread in threads:
            thread.start()
        time.sleep(1.2)
        status = get(process.port, TOKEN).status
        for thread in threads:
            thread.join(20)
        assert status == 200


def test_nobody_waits_longer_than_allowed_for_slow_scheduled_events(start: Starter) -> None:
    """A flood of them: each is answered or turned away within MAX_WAIT, and the next client's turn comes."""
    with (
        run_in_thread(Emulator(rate=0, identity_rate=0, latency=0.2)) as slow,
        start(slow.url, budget_requests=5, budget_window=1, max_wait=1) as process,
        contextlib.ExitStack() as stack,
    ):
        streams = []
        began = time.monotonic()
        for number in range(100):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", process.port), timeout=4))
            connection.sendall(request(EVENTS + b"&x=%d" % number, HOST))
            streams.append(stack.enter_context(connection.makefile("rb")))
        answers = [read_answer(stream) for stream in streams]
        assert {answer.status for answer in answers if answer} == {200, 429}
        assert time.monotonic() - began < 4
        time.sleep(1.2)  # the window of those that were answered
        assert get(process.port, EVENTS.decode()).status == 200


# --- what others see of it


_SAMPLE = re.compile(r"^imdsproxy_\w+\{(?P<labels>[^}]*)\} [0-9.e+-]+$")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def check_labels(process: ProxyProcess) -> None:
    words = {kind.value for kind in FailureKind}
    text = get(process.port, "/-/metrics").body.decode()
    assert len(text) < 40_000
    for line in text.splitlines():
        sample = _SAMPLE.match(line)
        for name, value in _LABEL.findall(sample["labels"]) if sample else ():
            match name:
                case "endpoint":
                    assert value in ENDPOINTS
                case "outcome":
                    assert value in {"hit", "stale", "miss", "collapsed", "bypass", "refused", "error"}
                case "status" | "reason":
                    assert value in words or re.fullmatch(r"[1-5]\d\d", value)
                case "class":
                    assert value in {"general", "identity"}
                case _:
                    assert name == "le"


def test_labels_are_few_whatever_is_asked(proxy: ProxyProcess) -> None:
    for number in range(30):
        sent = request(b"/metadata/x%d" % number, HOST) + request(b"/metadata/instance/y%d" % number, HOST)
        converse(proxy.port, sent + request(b"/z%d" % number, HOST) + request(b"/", b"Host: h%d\r\n" % number), 4)
    check_labels(proxy)


def test_no_page_shows_a_token_or_changes_anything(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    token = json.loads(get(proxy.port, TOKEN).body)["access_token"]
    with nothing_arrives(imds):
        for path in (
            "/-/healthy",
            "/-/ready",
            "/-/metrics",
            "/-/status",
            "/-/status.json",
            "/-/METRICS",
            "/-/metrics/",
        ):
            answer = get(proxy.port, path + "?x=%3Cscript%3E", {})
            assert token not in answer.body.decode()
            assert "vault.azure.net" not in answer.body.decode()
            assert b"<script>" not in answer.body
            (answer,) = converse(proxy.port, request(path.encode(), HOST, method=b"POST"))
            assert_refused(answer, 405, "method")
        assert "; hit" in get(proxy.port, TOKEN).headers["cache-status"]


@pytest.mark.parametrize("log_format", ["text", "json"])
def test_the_log_has_no_line_of_a_clients_making(imds: EmulatorServer, start: Starter, log_format: str) -> None:
    with start(imds.url, log_format=log_format) as process:
        answers = [get(process.port, TOKEN), get(process.port, TOKEN)]
        token = json.loads(answers[0].body)["access_token"]
        for target in (
            *(
                b"/metadata/%0d%0a2026-01-01T00:00:00.000Z%20info%20forged",
                b"/metadata/\x1b[31m",
                b"/metadata/\xe2\x80\xa8forged",
            ),
            *(
                b"/metadata/x?access_token=" + token.encode(),
                b"/x" * 3000,
                b'/metadata/"} forged=1 x="',
                b"http://a\\n/\r/",
            ),
        ):
            until_closed(process.port, request(target, HOST, b"X: \xff\r\n", CLOSE))
        lines = process.log.splitlines()
        assert token not in process.log
        assert TOKEN_MARK not in process.log
    assert len(lines) > 6
    for line in lines:
        assert len(line) < 1000
        if log_format == "json":
            assert {"time", "level", "logger", "message"} <= set(json.loads(line))
        else:
            assert LOG_LINE.match(line)
            assert line.isprintable()


def test_what_never_became_a_request_is_counted_and_logged_too(proxy: ProxyProcess) -> None:
    before, seen = proxy.metric("imdsproxy_requests_total"), len(proxy.log)
    until_closed(proxy.port, request(INSTANCE.encode(), HOST, method=b"FOO"))
    until_closed(proxy.port, b"\x00\xff\r\n\r\n")
    assert proxy.metric("imdsproxy_requests_total") == before + 2
    assert "status=405 outcome=refused detail=method" in proxy.log[seen:]
    assert "status=400 outcome=refused detail=malformed" in proxy.log[seen:]
