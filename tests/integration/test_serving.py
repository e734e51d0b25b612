"""What clients are served, rule by rule: the real process in front of the emulator, over real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socketserver
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from imdsproxy.emulator import Arrival, Emulator, EmulatorServer, Fault, run_in_thread
from imdsproxy.emulator.messages import json_answer
from tests.kit import (
    INSTANCE,
    METADATA,
    TOKEN,
    Answer,
    Arrivals,
    ProxyProcess,
    cache_status,
    get,
    is_hit,
    most_in_a_second,
    running_proxy,
    unused,
    wait_until,
)

pytestmark = pytest.mark.process

Start = Callable[..., AbstractContextManager[ProxyProcess]]

ATTESTED = "/metadata/attested/document?api-version=2021-02-01"
EVENTS = "/metadata/scheduledevents?api-version=2020-07-01"
INFO = "/metadata/identity/info?api-version=2018-02-01"
LEAF = "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text"
LOAD_BALANCER = "/metadata/loadbalancer?api-version=2021-02-01"
PLATFORM = "/metadata/identity/getplatformmetadata?cred-api-version=2.0"
REPROVISION = "/metadata/reprovisiondata?api-version=2019-06-01"
VERSIONS = "/metadata/versions"

NO_HEADER_IDENTITY = b'{"error":"invalid_request","error_description":"Required metadata header not specified"}'
NO_HEADER_OTHER = b'{ "error": "Bad request: . Required metadata header not specified" }'


def assert_own(answer: Answer, status: int, detail: str) -> None:
    """An answer of the proxy's own: JSON in IMDS's form, and the reason in one word."""
    assert answer.status == status, answer
    assert cache_status(answer) == {"detail": detail}
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    document = json.loads(answer.body)
    assert list(document) == ["error", "error_description"]
    assert all(document.values())


def at_once(port: int, targets: list[str]) -> list[Answer]:
    """Ask for all targets at the same time, each over a connection of its own; answers in the targets' order."""

    async def one(target: str) -> Answer:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            fields = "Host: 127.0.0.1\r\nMetadata: true\r\nConnection: close\r\n"
            writer.write(f"GET {target} HTTP/1.1\r\n{fields}\r\n".encode())
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.close()
            await writer.wait_closed()
        line, *lines = head.decode("latin-1").split("\r\n")
        pairs = (field.partition(": ") for field in lines)
        return Answer(int(line.split()[1]), {name.lower(): value for name, _, value in pairs}, body)

    async def all_of_them() -> list[Answer]:
        async with asyncio.timeout(60):
            return list(await asyncio.gather(*map(one, targets)))

    return asyncio.run(all_of_them())


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


@pytest.fixture(scope="module")
def imds() -> Iterator[EmulatorServer]:
    emulator = Emulator(
        rate=0, identity_rate=0, identity_concurrency=0, extra={"reprovisiondata": json_answer({"ovf": "x"})}
    )
    with run_in_thread(emulator) as server:
        yield server


@pytest.fixture
def arrivals(imds: EmulatorServer) -> Arrivals:
    return Arrivals(imds)


@pytest.fixture(scope="module")
def proxy(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """The proxy that needs no setting of its own, but for a budget that no test has to wait for."""
    with running_proxy(tmp_path_factory.mktemp("proxy"), upstream=imds.url, budget_requests=1000) as process:
        yield process
        assert "Traceback" not in process.log


@pytest.fixture
def start(imds: EmulatorServer, tmp_path: Path) -> Start:
    """Start another proxy before the same emulator, with settings of a test's own."""

    @contextlib.contextmanager
    def started(**settings: object) -> Iterator[ProxyProcess]:
        chosen: dict[str, Any] = {"upstream": imds.url, "budget_requests": 1000, **settings}
        with running_proxy(tmp_path, **chosen) as process:
            yield process
        assert "Traceback" not in process.log

    return started


# --- what passes through


@pytest.fixture(scope="module")
def scripted() -> Iterator[Scripted]:
    server = Scripted()
    yield server
    server.close()


@pytest.fixture(scope="module")
def before_script(scripted: Scripted, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    scripted.response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
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
    body = b'{ "name" :\t"\xc3\xa9\xff\x00","last":1 }\r\n\r\n'
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
        scripted.response = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
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
def test_what_imds_answers_is_what_clients_get(proxy: ProxyProcess, imds: EmulatorServer, target: str) -> None:
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
        "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fvault.azure.net%2F&order=2",
        "/metadata/identity/oauth2/token?resource=https%3a%2f%2fvault.azure.net&order=3&api-version=2018-02-01",
        "/metadata/identity/oauth2/token/?resource=https://vault.azure.net&api-version=2018-02-01&order=4",
        "/Metadata/INSTANCE/Compute/?api-version=2021-02-01&order=5",
        "/metadata/%69nstance?api-version=2021-02-01&order=6",
        "/metadata/instance?api-version=2021-02-01&Format=JSON&order=7&&empty=&bare",
        "/metadata/instance?api-version=2021-02-01&order=8&plus=a+b%20c%2Bd",
        "/metadata/instance?api-version=2021-02-01&order=9&question=a?b=c",
        "/metadata/instance?order=10&api-version=2021-02-01&",
        "/metadata/unknown/Path_With~Marks?x=%C3%A9",
    ],
)
def test_path_and_query_reach_imds_as_the_client_wrote_them(
    proxy: ProxyProcess, arrivals: Arrivals, target: str
) -> None:
    get(proxy.port, target)
    assert arrivals.targets() == [target]


def test_an_empty_leaf_is_an_empty_200(proxy: ProxyProcess) -> None:
    target = unused("/metadata/instance/compute/zone?api-version=2021-02-01&format=text")
    for hit in (False, True):
        answer = get(proxy.port, target)
        assert (answer.status, answer.body, answer.headers["content-length"]) == (200, b"", "0")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert is_hit(answer) == hit


def test_a_leaf_as_text(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    answer = get(proxy.port, LEAF)
    assert answer.body.decode() == imds.emulator.instance["compute"]["vmId"]
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


# --- the cache


def test_a_miss_then_hits_that_grow_older(proxy: ProxyProcess, arrivals: Arrivals) -> None:
    target = unused(INSTANCE)
    first = get(proxy.port, target)
    status = cache_status(first)
    assert 40 <= int(status.pop("ttl")) <= 60
    assert status == {"fwd": "uri-miss", "fwd-status": "200", "stored": ""}
    assert "age" not in first.headers

    def grown() -> bool:
        second = get(proxy.port, target)
        status = cache_status(second)
        age = int(second.headers["age"])
        assert 58 <= int(status.pop("ttl")) + age <= 60
        assert status == {"hit": ""}
        assert second.body == first.body
        assert second.headers["x-ms-request-id"] == first.headers["x-ms-request-id"]
        assert second.headers["date"] == first.headers["date"]
        return age >= 1

    wait_until(grown)
    assert arrivals.targets() == [target]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("resource=https://a.b/&n=1", "n=1&resource=https%3A%2F%2Fa.b%2F", True),
        ("resource=https://a.b&n=2", "resource=https://a.b/&n=2", False),
        ("resource=https://a.b&n=3", "resource=https://A.b&n=3", False),
        ("resource=https://a.b&n=4&client_id=", "resource=https://a.b&n=4", False),
    ],
)
def test_what_only_looks_different_is_one_entry(proxy: ProxyProcess, first: str, second: str, same: bool) -> None:
    base = "/metadata/identity/oauth2/token?api-version=2018-02-01&"
    assert not is_hit(get(proxy.port, base + first))
    assert is_hit(get(proxy.port, base + second)) == same


@pytest.mark.parametrize("target", [ATTESTED + "&nonce=1234567890", PLATFORM, REPROVISION, "/metadata/unknown"])
def test_what_is_never_kept_is_asked_for_each_time(proxy: ProxyProcess, arrivals: Arrivals, target: str) -> None:
    for _ in range(2):
        status = cache_status(get(proxy.port, target))
        assert status["fwd"] == "bypass"
        assert "stored" not in status
    assert arrivals.targets() == [target] * 2


def test_attested_data_is_kept_only_without_a_nonce(proxy: ProxyProcess, arrivals: Arrivals) -> None:
    target = unused(ATTESTED)
    first, second = get(proxy.port, target), get(proxy.port, target)
    assert (is_hit(first), is_hit(second)) == (False, True)
    assert second.body == first.body
    with_nonce = [get(proxy.port, f"{target}&nonce=1") for _ in range(2)]
    assert not any(map(is_hit, with_nonce))
    assert len(arrivals()) == 3


def test_the_cache_keeps_to_its_bytes(start: Start) -> None:
    bound = 20_000
    with start(cache_max_bytes=bound) as process:
        targets = [f"{LEAF}&n={number}" for number in range(40)]
        for target in targets:
            assert get(process.port, target).status == 200
        assert 0 < process.metric("imdsproxy_cache_bytes") <= bound
        assert 5 < process.metric("imdsproxy_cache_entries") < 35
        assert is_hit(get(process.port, targets[-1]))
        assert not is_hit(get(process.port, targets[0]))


def test_what_is_larger_than_the_cache_is_served_and_not_kept(start: Start) -> None:
    with start(cache_max_bytes=1500) as process:
        for _ in range(2):
            answer = get(process.port, INSTANCE)
            assert answer.status == 200
            assert "stored" not in cache_status(answer)


# --- one client's own


@pytest.mark.parametrize("target", [VERSIONS, INSTANCE, TOKEN, INFO, LOAD_BALANCER, EVENTS, ATTESTED])
def test_nothing_of_one_client_is_sent_for_what_all_share(proxy: ProxyProcess, arrivals: Arrivals, target: str) -> None:
    own = {
        "x-ms-client-request-id": "5f2b9c1e-0000-4000-8000-00000000c0de",
        "Authorization": "Bearer mine",
        "Cookie": "mine=1",
        "User-Agent": "mine/1",
        "Accept": "text/mine",
        "Accept-Encoding": "gzip",
        "Content-Type": "application/mine",
        "Cache-Control": "max-age=0",
        "Via": "1.1 mine",
        "Forwarded": "for=10.0.0.1",
        "X-Real-IP": "10.0.0.1",
        "X-Mine": "mine",
        "Metadata": "True",
    }
    target = unused(target)
    assert get(proxy.port, target, own).status == 200
    (arrival,) = arrivals()
    sent = dict(arrival.headers)
    own_words = {b"host", b"connection", b"accept", b"accept-encoding", b"user-agent", b"metadata"}
    assert {*sent} - {b"imdsproxy-via"} == own_words
    assert sent[b"metadata"] == b"true"
    assert b"mine" not in b"".join(sent.values())
    assert len(sent) == len(arrival.headers)


@pytest.mark.parametrize("target", [ATTESTED + "&nonce=1", PLATFORM, REPROVISION])
def test_what_is_asked_for_one_client_carries_that_clients_fields(
    proxy: ProxyProcess, arrivals: Arrivals, target: str
) -> None:
    own = {"Metadata": "True", "x-ms-client-request-id": "mine", "User-Agent": "mine/1"}
    hidden = {"Via": "1.1 elsewhere", "Connection": "X-Hop", "X-Hop": "1", "X-Real-IP": "10.0.0.1"}
    get(proxy.port, target, {**own, **hidden})
    (arrival,) = arrivals()
    sent = dict(arrival.headers)
    assert sent[b"x-ms-client-request-id"] == b"mine"
    assert sent[b"user-agent"] == b"mine/1"
    assert sent[b"metadata"] == b"true"
    assert not {b"via", b"x-hop", b"x-real-ip", b"x-forwarded-for", b"forwarded"} & {*sent}
    assert len(sent) == len(arrival.headers)


@pytest.mark.parametrize("target", [INSTANCE, TOKEN, PLATFORM, VERSIONS])
def test_a_forwarded_request_is_refused_and_never_sent_on(proxy: ProxyProcess, arrivals: Arrivals, target: str) -> None:
    answer = get(proxy.port, target, {**METADATA, "X-Forwarded-For": "10.0.0.1"})
    assert answer.status == 400
    assert list(json.loads(answer.body)) == ["error", "error_description"]
    assert arrivals() == []


# --- the Metadata header


@pytest.mark.parametrize("headers", [{}, {"Metadata": "false"}, {"Metadata": ""}, {"X-Metadata": "true"}])
@pytest.mark.parametrize(
    "target", [TOKEN, "/metadata/identity/oauth2/token", "/METADATA/Identity/oauth2/token/?api-version=1", INFO]
)
def test_a_credential_without_the_header_is_refused_in_imds_s_words_for_nothing(
    proxy: ProxyProcess, arrivals: Arrivals, target: str, headers: dict[str, str]
) -> None:
    assert get(proxy.port, TOKEN).status == 200
    before = arrivals()
    answer = get(proxy.port, target, headers)
    assert (answer.status, answer.body) == (400, NO_HEADER_IDENTITY)
    assert answer.headers["content-type"] == "application/json; charset=utf-8"
    assert cache_status(answer) == {"detail": "metadata-header"}
    assert arrivals() == before


@pytest.mark.parametrize("word", ["true", "True", "TRUE", " true "])
def test_the_header_is_read_without_regard_to_case(proxy: ProxyProcess, word: str) -> None:
    assert get(proxy.port, TOKEN, {"METADATA": word}).status == 200


@pytest.mark.parametrize("target", [INSTANCE, VERSIONS, ATTESTED, LOAD_BALANCER, EVENTS, REPROVISION])
def test_what_is_no_credential_gets_the_header_added(proxy: ProxyProcess, arrivals: Arrivals, target: str) -> None:
    assert get(proxy.port, unused(target), {}).status == 200
    (arrival,) = arrivals()
    assert dict(arrival.headers)[b"metadata"] == b"true"


@pytest.mark.parametrize(("headers", "sent"), [({}, None), ({"Metadata": "false"}, None), (METADATA, b"true")])
def test_another_identity_path_is_forwarded_with_the_header_as_it_came(
    proxy: ProxyProcess, arrivals: Arrivals, headers: dict[str, str], sent: bytes | None
) -> None:
    """MSAL's probe has to see IMDS's own 404."""
    answer = get(proxy.port, PLATFORM, headers)
    assert (answer.status, answer.body) == (404, b'{"error":"Not Found"}')
    (arrival,) = arrivals()
    assert dict(arrival.headers).get(b"metadata") == sent


def test_the_header_can_be_required_of_everyone(start: Start, arrivals: Arrivals) -> None:
    with start(require_metadata_header="always") as process:
        asked = len(arrivals())
        for target in (INSTANCE, VERSIONS, ATTESTED, REPROVISION):
            answer = get(process.port, target, {})
            assert (answer.status, answer.body) == (400, NO_HEADER_OTHER)
        assert get(process.port, TOKEN, {}).body == NO_HEADER_IDENTITY
        assert len(arrivals()) == asked
        assert get(process.port, INSTANCE).status == 200
        assert get(process.port, INSTANCE, {}).status == 400, "an entry does not open the door"


def test_the_header_can_be_required_of_nobody(start: Start, arrivals: Arrivals) -> None:
    with start(require_metadata_header="never") as process:
        asked = len(arrivals())
        assert [get(process.port, target, {}).status for target in (TOKEN, INFO, INSTANCE, PLATFORM)] == [200] * 3 + [
            404
        ]
        assert {dict(arrival.headers)[b"metadata"] for arrival in arrivals()[asked:]} == {b"true"}


# --- tokens


def _expires_in(body: bytes) -> int:
    return int(json.loads(body)["expires_in"])


def test_a_token_s_expires_in_is_what_is_left_and_all_else_is_the_same(proxy: ProxyProcess) -> None:
    target = unused(TOKEN)
    first = get(proxy.port, target)

    def aged() -> bool:
        later = get(proxy.port, target)
        assert is_hit(later)
        assert int(later.headers["content-length"]) == len(later.body)
        spelled = b'"expires_in":"%d"'
        was, now = _expires_in(first.body), _expires_in(later.body)
        assert later.body.replace(spelled % now, spelled % was) == first.body
        assert now <= was - int(later.headers["age"])
        return int(later.headers["age"]) >= 1

    wait_until(aged)


def test_a_token_is_fresh_for_half_of_its_life(proxy: ProxyProcess) -> None:
    assert 43_180 <= int(cache_status(get(proxy.port, unused(TOKEN)))["ttl"]) <= 43_200


def test_a_token_about_to_expire_is_passed_on_and_not_kept(tmp_path: Path) -> None:
    emulator = Emulator(rate=0, identity_rate=0, token_life=290)
    with run_in_thread(emulator) as imds, running_proxy(tmp_path, upstream=imds.url) as process:
        for _ in range(2):
            answer = get(process.port, TOKEN)
            assert (answer.status, _expires_in(answer.body) > 280) == (200, True)
            assert "stored" not in cache_status(answer)
        assert process.metric("imdsproxy_token_expiry_seconds") == 0, "no token, no figure"


def test_bypass_cache_renews_the_entry_once_in_a_while(proxy: ProxyProcess, arrivals: Arrivals) -> None:
    target = unused(TOKEN)
    old = json.loads(get(proxy.port, target).body)["access_token"]
    renewing = get(proxy.port, f"{target}&bypass_cache=true")
    new = json.loads(renewing.body)["access_token"]
    assert new != old
    assert cache_status(renewing)["fwd"] == "request"
    for again in (target, f"{target}&bypass_cache=true", target.replace("?", "?bypass_cache=TRUE&")):
        answer = get(proxy.port, again)
        assert (is_hit(answer), json.loads(answer.body)["access_token"]) == (True, new)
    assert arrivals.targets() == [target, f"{target}&bypass_cache=true"]


def test_no_cache_renews_the_entry_once_in_a_while(proxy: ProxyProcess, arrivals: Arrivals) -> None:
    target = unused(INSTANCE)
    first = get(proxy.port, target)
    wish = {**METADATA, "Cache-Control": "max-age=0, No-Cache"}
    second = get(proxy.port, target, wish)
    assert second.headers["x-ms-request-id"] != first.headers["x-ms-request-id"]
    for headers in (METADATA, wish):
        answer = get(proxy.port, target, headers)
        assert (is_hit(answer), answer.headers["x-ms-request-id"]) == (True, second.headers["x-ms-request-id"])
    assert len(arrivals()) == 2


# --- who may ask for what


def test_only_what_is_allowed_and_not_denied_is_served(start: Start, arrivals: Arrivals) -> None:
    with start(
        allow="/metadata/instance,/Metadata/Identity",
        deny="/metadata/instance/compute/userData,/metadata/identity/oauth2/",
    ) as process:
        asked = len(arrivals())
        for target in (
            "/metadata/instance/compute/userData?api-version=2021-02-01&format=text",
            "/METADATA/Instance/Compute/USERDATA/?api-version=2021-02-01&format=text",
            "/metadata/instance/compute/userData/0?api-version=2021-02-01",
            TOKEN,
            VERSIONS,
            EVENTS,
            "/metadata/instancex?api-version=2021-02-01",
            "/metadata",
        ):
            assert_own(get(process.port, target), 403, "denied")
        assert len(arrivals()) == asked
        for target in (INSTANCE, INFO, "/metadata/instance/compute?api-version=2021-02-01", "/METADATA" + LEAF[9:]):
            assert get(process.port, target).status == 200
        assert get(process.port, "/metadata/instance/compute/userDataX?api-version=2021-02-01").status == 404


def test_only_known_names_and_addresses_are_accepted_as_host(start: Start, arrivals: Arrivals) -> None:
    with start(allowed_hosts="imds.internal,proxy") as process:
        asked = len(arrivals())
        for host in ("evil.example", "localhost.evil.example", "imds.internal.evil.example", "metadata", "0x7f000001"):
            assert_own(get(process.port, TOKEN, {**METADATA, "Host": host}), 403, "host")
        assert len(arrivals()) == asked
        for host in (
            *("localhost", "LOCALHOST:1", "imds.internal", "IMDS.internal:80", "proxy"),
            *("127.0.0.1", "169.254.169.254", "10.0.0.1:8254", "[::1]:8254", "[fe80::1]"),
        ):
            assert get(process.port, TOKEN, {**METADATA, "Host": host}).status == 200, host


def test_without_a_setting_localhost_is_the_only_name(proxy: ProxyProcess) -> None:
    assert_own(get(proxy.port, INSTANCE, {**METADATA, "Host": "imds.internal"}), 403, "host")
    assert get(proxy.port, INSTANCE, {**METADATA, "Host": f"localhost:{proxy.port}"}).status == 200


@pytest.mark.parametrize(
    ("method", "target", "status", "detail"),
    [
        ("GET", "/", 404, "outside"),
        ("GET", "/metadatax/instance", 404, "outside"),
        ("GET", "/latest/meta-data/", 404, "outside"),
        ("GET", "http://10.0.0.1/metadata/instance?api-version=2021-02-01", 403, "other-host"),
        ("GET", "http://169.254.169.254:81/metadata/instance?api-version=2021-02-01", 403, "other-host"),
        ("GET", "/metadata/instance?api-version=2021-02-01&API-VERSION=2021-02-01", 400, "bad-target"),
        ("GET", "/metadata/../metadata/instance?api-version=2021-02-01", 400, "bad-target"),
        ("HEAD", INSTANCE, 405, "method"),
        ("PUT", INSTANCE, 405, "method"),
        ("POST", INSTANCE, 405, "method"),
        ("POST", TOKEN, 405, "method"),
        ("DELETE", EVENTS, 405, "method"),
        ("OPTIONS", "*", 405, "method"),
        ("CONNECT", "169.254.169.254:80", 405, "method"),
    ],
)
def test_what_is_not_served_is_refused_here(
    proxy: ProxyProcess, arrivals: Arrivals, *, method: str, target: str, status: int, detail: str
) -> None:
    answer = get(proxy.port, target, method=method)
    assert arrivals() == []
    assert ("allow" in answer.headers) == (status == 405)
    if method == "HEAD":
        assert (answer.status, answer.body) == (status, b"")
    else:
        assert_own(answer, status, detail)


# --- as a configured http_proxy


@pytest.mark.parametrize(
    ("target", "status"), [(INSTANCE, 200), (TOKEN, 200), ("/metadata/unknown", 404), ("/elsewhere", 404)]
)
def test_httpx_can_use_it_as_an_http_proxy(proxy: ProxyProcess, target: str, status: int) -> None:
    with httpx.Client(proxy=proxy.url, trust_env=False, timeout=30) as client:
        for _ in range(2):
            assert client.get(f"http://169.254.169.254{target}", headers=METADATA).status_code == status


def test_urllib_can_use_it_as_an_http_proxy(proxy: ProxyProcess, imds: EmulatorServer, arrivals: Arrivals) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({"http": proxy.url}))
    target = unused(INSTANCE)
    for host in ("169.254.169.254", "169.254.169.254:80", imds.url.removeprefix("http://")):
        request = urllib.request.Request(f"http://{host}{target}", headers=METADATA)
        with opener.open(request, timeout=30) as response:
            assert (response.status, response.headers["server"][:5]) == (200, "IMDS/")
    assert arrivals.targets() == [target], "in origin-form, and once for all spellings of the host"
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(urllib.request.Request(f"http://10.0.0.1{target}", headers=METADATA), timeout=30)
    with refused.value:
        assert refused.value.code == 403


# --- lifetimes


def test_ttl_is_set_by_the_longest_prefix(start: Start) -> None:
    ttl = {
        "/metadata/instance": 500,
        "/metadata/instance/compute": 700,
        "/metadata/instance/network": 0,
        "/metadata/reprovisiondata": 900,
        "/metadata/scheduledevents": 20,
        "/metadata": 300,
    }
    with start(ttl=",".join(f"{path}={seconds}" for path, seconds in ttl.items())) as process:
        for target, seconds in {
            INSTANCE: 500,
            "/metadata/instance/compute?api-version=2021-02-01": 700,
            LEAF: 700,
            "/metadata/instance/network?api-version=2021-02-01": None,
            REPROVISION: 900,
            LOAD_BALANCER: 300,
            INFO: 300,
            TOKEN: 300,
            EVENTS: 20,
            ATTESTED: 300,
            ATTESTED + "&nonce=1": None,
            PLATFORM: None,
        }.items():
            status = cache_status(get(process.port, target))
            assert ("stored" in status) == (seconds is not None), target
            if seconds is not None:
                assert seconds - 10 <= int(status["ttl"]) <= seconds, target


def test_a_general_ttl_does_not_open_what_is_never_kept(start: Start) -> None:
    with start(ttl="/metadata=300") as process:
        for target in (REPROVISION, PLATFORM, ATTESTED + "&nonce=1"):
            assert "stored" not in cache_status(get(process.port, target)), target
        assert int(cache_status(get(process.port, EVENTS)).get("ttl", "0")) <= 1


def test_an_entry_past_its_time_is_served_once_more_while_it_is_renewed(start: Start, arrivals: Arrivals) -> None:
    with start(ttl="/metadata/instance=1") as process:
        asked = len(arrivals())
        first = get(process.port, INSTANCE)
        answers: list[Answer] = []

        def renewed() -> bool:
            answers.append(get(process.port, INSTANCE))
            return answers[-1].headers["x-ms-request-id"] != first.headers["x-ms-request-id"]

        wait_until(renewed)
        assert all(map(is_hit, answers))
        assert any(int(answer.headers["age"]) >= 1 for answer in answers)
        assert len(arrivals()) == asked + 2


def test_stale_if_error_is_set_by_the_longest_prefix(start: Start, imds: EmulatorServer) -> None:
    kept = "/metadata/instance/network?api-version=2021-02-01"
    lost = "/metadata/instance/compute?api-version=2021-02-01"
    with start(
        ttl="/metadata/instance=0.2",
        stale_if_error="/metadata/instance=300,/metadata/instance/compute=0",
        retry_max=0,
    ) as process:
        good = {target: get(process.port, target) for target in (kept, lost)}
        imds.emulator.faults.add(Fault(path="/metadata/instance", status=500))
        try:
            wait_until(lambda: get(process.port, lost).status == 500)
            stale = get(process.port, kept)
        finally:
            imds.emulator.faults.clear()
        assert (stale.status, stale.body) == (200, good[kept].body)
        assert is_hit(stale)
        assert stale.headers["x-ms-request-id"] == good[kept].headers["x-ms-request-id"]
        assert "age" in stale.headers
        wait_until(lambda: get(process.port, lost).status == 200)


# --- the budget


def test_a_wait_longer_than_max_wait_is_answered_at_once_with_429(start: Start, arrivals: Arrivals) -> None:
    with start(budget_requests=1, budget_window=50, max_wait=1) as process:
        asked = len(arrivals())
        for target in (INSTANCE, TOKEN, PLATFORM):
            answer = get(process.port, target)
            assert_own(answer, 429, "budget")
            assert 20 <= int(answer.headers["retry-after"]) <= 52
        assert get(process.port, VERSIONS).status == 200, "what is kept costs nothing"
        assert len(arrivals()) == asked
        assert process.metric("imdsproxy_budget_refused_total") == 3


def test_a_short_wait_is_waited_out(start: Start, arrivals: Arrivals) -> None:
    with start(budget_requests=1, budget_window=0.4) as process:
        asked = len(arrivals()) - 1
        assert [get(process.port, f"{LEAF}&wait={number}").status for number in range(3)] == [200] * 3
        moments = [arrival.at for arrival in arrivals()[asked:]]
        assert all(later - earlier >= 0.4 for earlier, later in itertools.pairwise(moments))


def test_identity_can_have_a_budget_of_its_own(start: Start) -> None:
    with start(budget_requests=2, budget_window=50, identity_budget_requests=3, max_wait=1) as process:
        tokens = [get(process.port, f"{TOKEN}&n={number}") for number in range(4)]
        assert [answer.status for answer in tokens] == [200, 200, 200, 429]
        assert [get(process.port, f"{LEAF}&n={number}").status for number in range(2)] == [200, 429]


def test_without_one_identity_shares_the_budget(start: Start) -> None:
    with start(budget_requests=3, budget_window=50, max_wait=1) as process:
        assert get(process.port, INSTANCE).status == 200
        assert [get(process.port, f"{TOKEN}&n={number}").status for number in range(2)] == [200, 429]


def test_no_more_than_five_identity_requests_are_under_way(tmp_path: Path) -> None:
    emulator = Emulator(latency=0.1, identity_rate=20, identity_concurrency=5)
    with (
        run_in_thread(emulator) as imds,
        running_proxy(tmp_path, upstream=imds.url, identity_budget_requests=20) as process,
    ):
        answers = at_once(process.port, [f"{TOKEN}&n={number}" for number in range(15)])
        assert {answer.status for answer in answers} == {200}
        assert {arrival.status for arrival in emulator.arrivals} == {200}, "the emulator refuses the sixth"


def test_five_hundred_requests_for_one_target_are_one_request_to_imds(
    proxy: ProxyProcess, imds: EmulatorServer, arrivals: Arrivals
) -> None:
    imds.emulator.faults.add(Fault(path="/metadata/instance", latency=0.5, times=1))
    target = unused(INSTANCE)
    answers = at_once(proxy.port, [target] * 500)
    assert arrivals.targets() == [target]
    assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
    # Whoever joined says so beside "stored", which is true of its answer as well.
    words = ("hit", "collapsed", "stored")
    ways = Counter(next(word for word in words if word in cache_status(answer)) for answer in answers)
    assert ways["stored"] == 1
    assert ways["collapsed"] > 0
    assert ways.total() == 500


# --- trouble at IMDS


@pytest.fixture(scope="module")
def patient(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    folder = tmp_path_factory.mktemp("patient")
    with running_proxy(folder, upstream=imds.url, budget_requests=1000, retry_base=0.1) as process:
        yield process


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=410, times=2),
        Fault(status=429, times=1),
        Fault(status=429, retry_after="1", times=1),
        Fault(status=500, times=1),
        Fault(status=503, times=2),
        Fault(reset=True, times=1),
        Fault(truncate=True, times=1),
        Fault(garbage=True, times=1),
    ],
    ids=lambda fault: str(fault.status or fault.breakage) + ("-told" if fault.retry_after else ""),
)
def test_a_passing_trouble_is_got_over(
    patient: ProxyProcess, imds: EmulatorServer, arrivals: Arrivals, fault: Fault
) -> None:
    imds.emulator.faults.add(fault)
    target = unused(INSTANCE)
    assert get(patient.port, target).status == 200
    assert arrivals.targets() == [target] * (1 + (fault.times or 0))


@pytest.fixture(scope="module")
def impatient(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    folder = tmp_path_factory.mktemp("impatient")
    with running_proxy(
        folder, upstream=imds.url, budget_requests=1000, retry_max=0, read_timeout=0.4, max_body_bytes=1000
    ) as process:
        yield process


@pytest.mark.parametrize("target", [TOKEN, LEAF, PLATFORM], ids=["token", "leaf", "platform"])
@pytest.mark.parametrize(
    ("fault", "status", "detail"),
    [
        (Fault(reset=True, times=1), 502, "upstream-reset"),
        (Fault(truncate=True, times=1), 502, "upstream-unreadable"),
        (Fault(garbage=True, times=1), 502, "upstream-unreadable"),
        (Fault(hang=True, times=1), 504, "upstream-timeout"),
        (Fault(status=200, body="x" * 1001, times=1), 502, "upstream-too-large"),
    ],
    ids=["reset", "truncate", "garbage", "hang", "large"],
)
def test_a_lasting_trouble_is_told(
    impatient: ProxyProcess,
    imds: EmulatorServer,
    arrivals: Arrivals,
    *,
    fault: Fault,
    status: int,
    detail: str,
    target: str,
) -> None:
    imds.emulator.faults.add(fault)
    answer = get(impatient.port, unused(target))
    assert_own(answer, status, detail)
    assert int(answer.headers["retry-after"]) >= 1
    assert len(arrivals()) == 1


def test_a_body_of_just_the_longest_length_is_served(impatient: ProxyProcess, imds: EmulatorServer) -> None:
    imds.emulator.faults.add(Fault(status=200, body="x" * 1000, times=1))
    assert get(impatient.port, unused(INSTANCE)).body == b"x" * 1000


def test_without_imds_what_is_kept_is_served_and_all_else_is_502(tmp_path: Path) -> None:
    kept = [INSTANCE, TOKEN, INFO, VERSIONS, LEAF, ATTESTED]
    emulator = Emulator(rate=0, identity_rate=0)
    with contextlib.ExitStack() as stack:
        with run_in_thread(emulator) as imds:
            settings: dict[str, Any] = {"upstream": imds.url, "budget_requests": 1000, "retry_max": 0.5}
            process = stack.enter_context(running_proxy(tmp_path, **settings, ttl="/metadata/instance=0.1"))
            before = {target: get(process.port, target) for target in kept}
        assert get(process.port, "/-/healthy").status == 200
        for target, good in before.items():
            answer = get(process.port, target)
            assert (answer.status, is_hit(answer)) == (200, True), target
            if target != TOKEN:
                assert answer.body == good.body
        others = [LOAD_BALANCER, PLATFORM, f"{TOKEN}&other=1", f"{ATTESTED}&nonce=1", EVENTS]
        for answer in at_once(process.port, others):
            assert_own(answer, 502, "upstream-unreachable")
            assert int(answer.headers["retry-after"]) >= 1
        posted = get(process.port, EVENTS, method="POST", body=b'{"StartRequests":[]}')
        assert posted.status == 502
        assert process.log.count("IMDS fails") == 1
        with run_in_thread(emulator, port=imds.port):
            wait_until(lambda: get(process.port, LOAD_BALANCER).status == 200)
            wait_until(lambda: "IMDS answers again" in process.log)
            wait_until(lambda: is_hit(get(process.port, INSTANCE)))


# --- what takes its time on any machine, and therefore runs beside the other tests of this module


@dataclass
class Crowd:
    """What came of asking for many targets at once: the answers, at first and later, and what IMDS saw of it."""

    answers: list[Answer]
    later: list[Answer]
    seconds: float
    arrivals: list[Arrival]
    retries: float


SIXTY = [f"{LEAF}&n={number}" for number in range(60)]
SIX = [INSTANCE, TOKEN, *(f"{LEAF}&n={number}" for number in range(4))]


def _crowd(folder: Path, targets: list[str], *faults: Fault, **settings: Any) -> Crowd:
    with (
        run_in_thread(Emulator(rate=5)) as imds,
        running_proxy(folder, upstream=imds.url, max_wait=30, **settings) as process,
    ):
        assert get(process.port, INSTANCE).status == 200
        imds.emulator.faults.add(*faults)
        began = time.monotonic()
        answers = at_once(process.port, targets)
        took = time.monotonic() - began
        retries = process.metric("imdsproxy_upstream_retries_total")
        return Crowd(answers, at_once(process.port, targets), took, imds.emulator.arrivals, retries)


@pytest.fixture(scope="module", autouse=True)
def crowds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Callable[[], Crowd]]]:
    """Start them, if they are wanted; each is called for what came of it."""
    with ThreadPoolExecutor(2) as pool:
        found: dict[str, Callable[[], Crowd]] = {}
        if any(
            "crowds" in getattr(item, "fixturenames", ()) and "crowd_" in item.name for item in request.session.items
        ):
            folder = tmp_path_factory.mktemp("sixty")
            found["sixty"] = pool.submit(_crowd, folder, SIXTY).result
            folder = tmp_path_factory.mktemp("updated")
            found["updated"] = pool.submit(_crowd, folder, SIX, Fault(status=410, seconds=3), retry_base=0.5).result
        yield found


def test_a_crowd_of_sixty_targets_never_asks_more_than_five_times_in_any_second(
    crowds: dict[str, Callable[[], Crowd]],
) -> None:
    crowd = crowds["sixty"]()
    assert {answer.status for answer in crowd.answers} == {200}
    assert sorted(arrival.target.decode() for arrival in crowd.arrivals[2:]) == sorted(SIXTY)
    assert {arrival.status for arrival in crowd.arrivals} == {200}
    assert most_in_a_second([arrival.at for arrival in crowd.arrivals]) == 5
    assert crowd.seconds >= 11
    assert {is_hit(answer) for answer in crowd.later} == {True}


def test_a_crowd_waits_while_imds_is_being_updated_and_is_served_then(
    crowds: dict[str, Callable[[], Crowd]],
) -> None:
    crowd = crowds["updated"]()
    assert {answer.status for answer in crowd.answers} == {200}
    assert [is_hit(answer) for answer in crowd.answers] == [True, *[False] * 5]
    assert {arrival.status for arrival in crowd.arrivals} == {200, 410}
    assert most_in_a_second([arrival.at for arrival in crowd.arrivals]) <= 5
    # Those that were under way before the first 410 was known, then one that feels for the return.
    assert 2 <= sum(arrival.status == 410 for arrival in crowd.arrivals) <= 5 + 3
    assert crowd.retries >= 1
    assert {is_hit(answer) for answer in crowd.later} == {True}
