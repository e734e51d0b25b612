"""What passes through unchanged: status, fields, body, and the target on its way to IMDS."""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Iterator

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.serving.kit import ATTESTED, INFO, LEAF, LOAD_BALANCER, PLATFORM, REPROVISION
from tests.kit import Arrivals, ProxyProcess, get, is_hit, running_proxy, unused
from tests.servers import ok
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

TOKEN_PATH = TOKEN.partition("?")[0]

pytestmark = pytest.mark.process


class Scripted:
    """A server that answers every request with the same bytes."""

    def __init__(self) -> None:
        self.response = b""
        self.requests = 0
        scripted = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    while line := self.rfile.readline():
                        if line == b"\r\n":
                            scripted.requests += 1
                            self.wfile.write(scripted.response)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            block_on_close = False

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


DOCUMENT = b'{"apiVersions":[],"compute":{}}'


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.close()


@pytest.fixture(scope="module")
def before_script(scripted: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    scripted.response = ok(DOCUMENT)
    folder = tmp_path_factory.mktemp("scripted")
    with running_proxy(folder, upstream=scripted.url, budget_requests=1000, retry_max=0) as process:
        yield process


@pytest.mark.parametrize(
    ("status", "target", "kept"),
    [
        ("200 OK", INSTANCE, True),
        ("200 OK", LEAF, True),
        ("200 OK", PLATFORM, False),
        ("200 Fine", ATTESTED + "&nonce=1", False),
        ("201 Created", INSTANCE, False),
        ("400 Bad Request", INSTANCE, True),
        ("403 Forbidden", INSTANCE, False),
        ("404 Not Found", INSTANCE, True),
        ("404 Not Found", PLATFORM, False),
        ("405 Method Not Allowed", INSTANCE, False),
        ("410 Gone", TOKEN, False),
        ("500 Internal Server Error", INSTANCE, False),
        ("503 Service Unavailable", TOKEN, False),
    ],
)
def test_status_fields_and_body_pass_byte_for_byte(
    before_script: ProxyProcess, scripted: Scripted, status: str, target: str, kept: bool
) -> None:
    body = b'{ "compute" :\t"\xc3\xa9\xff\x00","signature":1 }\r\n\r\n'
    fields = {
        "Content-Type": "application/json; Charset=utf-8",
        "Server": "IMDS/150.870.65.1854",
        "x-ms-request-id": "5f2b9c1e-0000-4000-8000-00000000c0de",
        "Date": "Mon, 02 Mar 2026 03:04:05 GMT",
        "X-New": "a,  b; c",
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in {**fields, "Content-Length": len(body)}.items())
    scripted.response = f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body
    target = unused(target)
    try:
        for again in (False, True):
            before = scripted.requests
            answer = get(before_script.port, target)
            assert (answer.status, answer.body) == (int(status[:3]), body)
            hit = again and kept
            assert is_hit(answer) == hit
            assert scripted.requests == before + (not hit)
            own = {"cache-status", "content-length", *(["age"] if hit else [])}
            passed = {name.lower(): value for name, value in fields.items()}
            assert {name: value for name, value in answer.headers.items() if name not in own} == passed
            assert own <= set(answer.headers)
    finally:  # else the next would wait for IMDS's return from a 410
        scripted.response = ok(DOCUMENT)
        get(before_script.port, unused(PLATFORM))


@pytest.mark.parametrize(
    "target",
    [
        VERSIONS,
        INSTANCE,
        "/metadata/instance/?api-version=2021-02-01",
        "/metadata/instance/compute?api-version=2021-02-01&format=json",
        "/metadata/instance/network/interface/0/ipv4/ipAddress/0/publicIpAddress?api-version=2021-02-01&format=text",
        LEAF,
        LOAD_BALANCER,
        INFO,
        EVENTS,
        REPROVISION,
    ],
)
def test_clients_get_the_answer_of_imds(proxy: ProxyProcess, imds: EmulatorServer, target: str) -> None:
    real = get(imds.port, target)
    for _ in range(2):
        answer = get(proxy.port, target)
        assert (answer.status, answer.body) == (real.status, real.body)
        assert answer.headers["server"] == real.headers["server"]
        assert answer.headers["content-type"] == real.headers["content-type"]
        assert answer.headers["content-length"] == real.headers["content-length"]


@pytest.mark.parametrize(
    "target",
    [
        "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://vault.azure.net/&order=1",
        "/metadata/identity/oauth2/token?resource=https://vault.azure.net&order=3&api-version=2018-02-01",
        "/Metadata/INSTANCE/Compute?api-version=2021-02-01&order=5",
        "/metadata/instance?api-version=2021-02-01&order=6&semicolons=;%3B",
        "/metadata/instance?api-version=2021-02-01&Format=JSON&order=7&&empty=&bare",
        "/metadata/instance?api-version=2021-02-01&order=8&plus=a+b%20c%2Bd",
        "/metadata/instance?api-version=2021-02-01&order=9&question=a?b=c",
        "/metadata/instance?order=10&api-version=2021-02-01&",
        "/metadata/unknown/Path_With~Marks?x=%C3%A9",
    ],
)
def test_path_and_query_reach_imds_unchanged(proxy: ProxyProcess, arrivals: Arrivals, target: str) -> None:
    get(proxy.port, target)
    assert arrivals.targets() == [target]


@pytest.mark.parametrize(
    ("written", "sent"),
    [
        (f"{TOKEN_PATH}?resource=https%3a%2f%2fvault.azure.net", f"{TOKEN_PATH}?resource=https://vault.azure.net"),
        (f"{TOKEN_PATH}/?resource=a", f"{TOKEN_PATH}?resource=a"),
        (f"/{TOKEN_PATH}?resource=b", f"{TOKEN_PATH}?resource=b"),
        ("/Metadata/INSTANCE/Compute/?%61pi-version=2021-02-01", "/Metadata/INSTANCE/Compute?api-version=2021-02-01"),
        ("/metadata/%69nstance?a={%7b}", "/metadata/instance?a=%7B%7B%7D"),
        ("/metadata/unknown/?x=%c3%a9", "/metadata/unknown?x=%C3%A9"),
    ],
)
def test_equivalent_spellings_reach_imds_in_one_spelling(
    proxy: ProxyProcess, arrivals: Arrivals, written: str, sent: str
) -> None:
    written, number = unused(written).rsplit("&", 1)
    get(proxy.port, f"{written}&{number}")
    assert arrivals.targets() == [f"{sent}&{number}"]


def test_empty_leaf_is_an_empty_200(proxy: ProxyProcess) -> None:
    target = unused("/metadata/instance/compute/zone?api-version=2021-02-01&format=text")
    for hit in (False, True):
        answer = get(proxy.port, target)
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert is_hit(answer) == hit


def test_leaf_is_passed_on_as_text(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    answer = get(proxy.port, LEAF)
    assert answer.body.decode() == imds.emulator.instance["compute"]["vmId"]
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
