"""The guard of IMDS against forged requests holds behind the proxy: pages, POSTs, redirected requests, spellings.

Attack cases 6, 13, 17 and 22, at every listener, with the fast path and without it. The same question has been
answered from the cache before, so that a known head or a kept entry would give an answer away.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.attacks.kit import (
    CLOSE,
    HOST,
    IMDS_WORDS,
    RAW_EVENTS,
    RAW_TOKEN,
    TRUE,
    Starter,
    assert_refused,
    check_log,
    nothing_arrives,
    read_answer,
    request,
)
from tests.integration.attacks.listeners import KINDS, Everywhere, listening_everywhere
from tests.kit import Answer
from tests.servers import AnsweringServer, ok
from tests.targets import INSTANCE

pytestmark = [pytest.mark.any_python, pytest.mark.process]

OTHER_WORDS = b'{ "error": "Bad request: . Required metadata header not specified" }'
TO_IMDS = b"Host: 169.254.169.254\r\n"
PLAIN = INSTANCE.encode()
USER_DATA = b"/metadata/instance/compute/userData?api-version=2021-02-01&format=text"
APPROVAL = b'{"StartRequests":[{"EventId":"%s"}]}'

every_listener = pytest.mark.parametrize("kind", KINDS)
serving_listeners = pytest.mark.parametrize("kind", ["tcp", "unix"])
both_ways = pytest.mark.parametrize("fast", [True, False], ids=["fast", "full"])


@pytest.fixture(scope="module")
def everywhere(imds: EmulatorServer, start: Starter, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Everywhere]:
    with listening_everywhere(start, imds.url, tmp_path_factory.mktemp("everywhere")) as proxy:
        for kind in ("tcp", "unix"):
            for target in (PLAIN, RAW_TOKEN, RAW_EVENTS, USER_DATA):
                for _ in range(3):  # the third is known by its bytes
                    assert ask(proxy, kind, request(target, HOST, TRUE), fast=True).status in {200, 404}
        yield proxy
        check_log(proxy.process.log)


def ask(proxy: Everywhere, kind: str, sent: bytes, *, fast: bool) -> Answer:
    """Send a request and return its answer; without the fast path, the connection is one that is not kept open."""
    if not fast:
        line, _, rest = sent.partition(b"\r\n")
        sent = line + b"\r\n" + CLOSE + rest
    with proxy.connect(kind) as connection, connection.makefile("rb") as stream:
        connection.sendall(sent)
        answer = read_answer(stream)
    assert answer is not None
    return answer


def post(target: bytes, body: bytes, *fields: bytes) -> bytes:
    return request(target, *fields, b"Content-Length: %d\r\n" % len(body), method=b"POST", body=body)


def status_of(imds: EmulatorServer, event_id: str) -> str:
    document = imds.emulator.events.document("2020-07-01", time.time())
    statuses: dict[str, str] = {event["EventId"]: event["EventStatus"] for event in document["Events"]}
    return statuses[event_id]


PAGES = [
    (b"Origin: http://attacker.example\r\n",),
    (b"Origin: null\r\n",),
    (b"Origin: http://localhost:8254\r\n",),
    (b"oRIGIN:\r\n",),
    (b"Sec-Fetch-Site: cross-site\r\n", b"Sec-Fetch-Mode: no-cors\r\n"),
    (b"Sec-Fetch-Site: same-site\r\n",),
    (b"Sec-Fetch-Site: same-origin\r\n",),
    (b"Sec-Fetch-Site: none\r\n", b"Sec-Fetch-Site: cross-site\r\n"),
    (b"Origin: http://attacker.example\r\n", b"Sec-Fetch-Site: none\r\n"),
]


@pytest.mark.attack(17)
@every_listener
@both_ways
@pytest.mark.parametrize("page", PAGES, ids=repr)
@pytest.mark.parametrize("fields", [(HOST,), (HOST, TRUE), (TO_IMDS,), (TO_IMDS, TRUE)], ids=repr)
def test_request_of_a_web_page_is_forbidden_with_any_other_field(
    everywhere: Everywhere,
    imds: EmulatorServer,
    *,
    kind: str,
    fast: bool,
    page: tuple[bytes, ...],
    fields: tuple[bytes, ...],
) -> None:
    event = imds.emulator.events.add()
    approval = APPROVAL % event.encode()
    asked = [
        *(request(target, *fields, *page) for target in (PLAIN, RAW_TOKEN, RAW_EVENTS, b"/-/metrics", b"/elsewhere")),
        request(RAW_EVENTS, *fields, *page, b"Access-Control-Request-Method: POST\r\n", method=b"OPTIONS"),
        post(RAW_EVENTS, approval, *fields, *page, b"Content-Type: text/plain;charset=UTF-8\r\n"),
        post(RAW_EVENTS, approval, *fields, *page, b"Content-Type: application/x-www-form-urlencoded\r\n"),
    ]
    with nothing_arrives(imds):
        for sent in asked:
            assert_refused(ask(everywhere, kind, sent, fast=fast), 403, "browser")
    assert status_of(imds, event) == "Scheduled"
    imds.emulator.events.clear()


@pytest.mark.attack(17)
@every_listener
@both_ways
def test_request_of_a_browsers_user_is_served(everywhere: Everywhere, kind: str, fast: bool) -> None:
    answer = ask(everywhere, kind, request(b"/-/healthy", HOST, b"Sec-Fetch-Site: none\r\n"), fast=fast)
    assert answer.status == 200


@pytest.mark.attack(17)
@serving_listeners
@both_ways
@pytest.mark.parametrize("host", [HOST, TO_IMDS], ids=repr)
def test_post_needs_the_clients_own_header(
    everywhere: Everywhere, imds: EmulatorServer, kind: str, fast: bool, host: bytes
) -> None:
    event = imds.emulator.events.add()
    approval = APPROVAL % event.encode()
    with nothing_arrives(imds):
        answer = ask(everywhere, kind, post(RAW_EVENTS, approval, host), fast=fast)
    assert_refused_by_imds(answer, OTHER_WORDS)
    assert status_of(imds, event) == "Scheduled"
    assert ask(everywhere, kind, post(RAW_EVENTS, approval, host, TRUE), fast=fast).status == 200
    assert status_of(imds, event) == "Started"
    imds.emulator.events.clear()


def assert_refused_by_imds(answer: Answer, words: bytes) -> None:
    assert (answer.status, answer.body) == (400, words), answer
    assert answer.headers["cache-status"] == "imdsproxy; detail=metadata-header"


@pytest.mark.attack(6, 17)
@serving_listeners
@both_ways
@pytest.mark.parametrize(
    "host",
    [
        *(b"169.254.169.254", b"169.254.169.254:80", b"169.254.169.254:", b" 169.254.169.254 "),
        *(b"[::ffff:169.254.169.254]", b"[::FFFF:a9fe:a9fe]:80"),
    ],
)
@pytest.mark.parametrize(
    "target",
    [
        *(PLAIN, USER_DATA, RAW_EVENTS, b"/" + PLAIN, b"/metadata/versions", b"/metadata/unknown"),
        *(b"/METADATA/Instance?api-version=2021-02-01", b"/metadata/attested/document?api-version=2020-09-01"),
    ],
)
def test_request_addressed_to_imds_needs_the_clients_own_header(
    everywhere: Everywhere, imds: EmulatorServer, *, kind: str, fast: bool, host: bytes, target: bytes
) -> None:
    field = b"Host: " + host + b"\r\n"
    with nothing_arrives(imds):
        for _ in range(3):
            assert_refused_by_imds(ask(everywhere, kind, request(target, field), fast=fast), OTHER_WORDS)
    assert ask(everywhere, kind, request(target, field, TRUE), fast=fast).status in {200, 404}


@serving_listeners
@both_ways
@pytest.mark.parametrize(
    "prefix", [b"http://169.254.169.254", b"HTTP://169.254.169.254:80", b"http://169.254.169.254/"]
)
def test_absolute_target_for_imds_needs_the_clients_own_header(
    everywhere: Everywhere, imds: EmulatorServer, kind: str, fast: bool, prefix: bytes
) -> None:
    with nothing_arrives(imds):
        assert_refused_by_imds(ask(everywhere, kind, request(prefix + PLAIN, HOST), fast=fast), OTHER_WORDS)
        assert_refused_by_imds(ask(everywhere, kind, request(prefix + RAW_TOKEN, HOST), fast=fast), IMDS_WORDS)
    assert ask(everywhere, kind, request(prefix + PLAIN, HOST, TRUE), fast=fast).status == 200


@serving_listeners
def test_request_without_host_needs_the_clients_own_header(
    everywhere: Everywhere, imds: EmulatorServer, kind: str
) -> None:
    """HTTP/1.0: it may have been addressed to IMDS and redirected."""
    with nothing_arrives(imds):
        assert_refused_by_imds(ask(everywhere, kind, request(PLAIN, version=b"1.0"), fast=True), OTHER_WORDS)
    assert ask(everywhere, kind, request(PLAIN, TRUE, version=b"1.0"), fast=True).status == 200


@serving_listeners
@both_ways
@pytest.mark.parametrize(
    "fields",
    [
        *((b"Metadata: false\r\n",), (b"Metadata:\r\n",), (b"Metadata: 1\r\n",), (b"Metadata: true, true\r\n",)),
        *((TRUE, TRUE), (TRUE, b"metadata: false\r\n")),
    ],
    ids=repr,
)
@pytest.mark.parametrize("host", [HOST, TO_IMDS, b"Host: 127.0.0.1:8254\r\n"], ids=repr)
def test_wrong_metadata_header_is_refused_as_imds_refuses_it(
    everywhere: Everywhere, imds: EmulatorServer, *, kind: str, fast: bool, fields: tuple[bytes, ...], host: bytes
) -> None:
    with nothing_arrives(imds):
        for target in (PLAIN, RAW_EVENTS, b"/metadata/unknown"):
            assert_refused_by_imds(ask(everywhere, kind, request(target, host, *fields), fast=fast), OTHER_WORDS)
        for target in (RAW_TOKEN, b"/metadata/identity/info", b"/metadata/identity/getplatformmetadata"):
            assert_refused_by_imds(ask(everywhere, kind, request(target, host, *fields), fast=fast), IMDS_WORDS)
        assert_refused_by_imds(ask(everywhere, kind, post(RAW_EVENTS, b"{}", host, *fields), fast=fast), OTHER_WORDS)


@serving_listeners
@both_ways
@pytest.mark.parametrize("host", [HOST, b"Host: 127.0.0.1:8254\r\n", b"Host: [::1]\r\n"], ids=repr)
@pytest.mark.parametrize("target", [PLAIN, b"/" + PLAIN, b"///metadata/instance/?api-version=2021-02-01"], ids=repr)
def test_plain_get_addressed_to_the_proxy_gets_the_header_added(
    everywhere: Everywhere, kind: str, fast: bool, host: bytes, target: bytes
) -> None:
    assert ask(everywhere, kind, request(target, host), fast=fast).status == 200


@pytest.mark.attack(22)
@serving_listeners
@both_ways
def test_additional_slash_before_metadata_changes_no_rule(
    everywhere: Everywhere, imds: EmulatorServer, kind: str, fast: bool
) -> None:
    with nothing_arrives(imds):
        assert ask(everywhere, kind, request(b"/" + RAW_TOKEN, HOST, TRUE), fast=fast).status == 200
        assert_refused_by_imds(ask(everywhere, kind, request(b"/" + RAW_TOKEN, HOST), fast=fast), IMDS_WORDS)
        for target in (b"//instance/metadata", b"//-/healthy", b"//169.254.169.254" + PLAIN, b"/metadata//instance"):
            assert_refused(ask(everywhere, kind, request(target, HOST, TRUE), fast=fast), 400, "bad-target")


# --- names at a Unix socket


@both_ways
@pytest.mark.parametrize("host", [b"unix", b"docker:80", b"imds.example.com", b"attacker.example"])
def test_any_host_name_is_served_at_a_unix_socket_and_there_alone(
    everywhere: Everywhere, imds: EmulatorServer, fast: bool, host: bytes
) -> None:
    sent = request(PLAIN, b"Host: " + host + b"\r\n", TRUE)
    for _ in range(4):  # the third is known by its bytes
        assert ask(everywhere, "unix", sent, fast=fast).status == 200
    with nothing_arrives(imds):
        assert_refused(ask(everywhere, "tcp", sent, fast=fast), 403, "host")
        assert_refused(ask(everywhere, "admin", sent, fast=fast), 403, "host")
        token = request(RAW_TOKEN, b"Host: " + host + b"\r\n")
        assert_refused_by_imds(ask(everywhere, "unix", token, fast=fast), IMDS_WORDS)


@both_ways
def test_base_url_of_http_unix_is_served_at_a_unix_socket_and_there_alone(
    everywhere: Everywhere, imds: EmulatorServer, fast: bool
) -> None:
    for prefix in (b"http://unix", b"http://Unix:80", b"http://unix/"):
        sent = request(prefix + PLAIN, b"Host: unix\r\n", TRUE)
        for _ in range(4):
            assert ask(everywhere, "unix", sent, fast=fast).status == 200
        with nothing_arrives(imds):
            assert_refused(ask(everywhere, "tcp", sent, fast=fast), 403, "other-host")


@pytest.mark.attack(6)
@every_listener
@both_ways
@pytest.mark.parametrize("host", [b"2852039166", b"0xa9fea9fe", b"0251.0376.0251.0376", b"169.254.169.254.", b"127.1"])
def test_other_spellings_of_an_address_are_forbidden_everywhere(
    everywhere: Everywhere, imds: EmulatorServer, kind: str, fast: bool, host: bytes
) -> None:
    with nothing_arrives(imds):
        sent = request(PLAIN, b"Host: " + host + b"\r\n", TRUE)
        assert_refused(ask(everywhere, kind, sent, fast=fast), 403, "host")
        sent = request(b"http://" + host + PLAIN, HOST, TRUE)
        assert_refused(ask(everywhere, kind, sent, fast=fast), 403, "other-host")


@every_listener
@both_ways
@pytest.mark.parametrize("prefix", [b"http://attacker.example", b"https://unix", b"http://127.0.0.1", b"http://[::1]"])
def test_absolute_target_for_another_host_is_forbidden_everywhere(
    everywhere: Everywhere, imds: EmulatorServer, kind: str, fast: bool, prefix: bytes
) -> None:
    with nothing_arrives(imds):
        answer = ask(everywhere, kind, request(prefix + PLAIN, HOST, TRUE), fast=fast)
    assert_refused(answer, 403, "other-host")


# --- spellings


@pytest.mark.attack(22)
@serving_listeners
@both_ways
def test_spelling_of_one_client_does_not_affect_others(
    start: Starter, tmp_path_factory: pytest.TempPathFactory, kind: str, fast: bool
) -> None:
    """An upstream that answers some spellings differently: the first client must not decide for all."""

    def answer(head: bytes) -> bytes:
        target = head.split(b" ", 2)[1]
        if target.startswith(b"/metadata/versions"):
            return ok(b'{"apiVersions":["2021-02-01"]}')
        odd = any(mark in target for mark in (b"%69", b"%3a", b"{", b"/?", b";"))
        return ok(b'{"compute":{"odd":%b}}' % (b"true" if odd else b"false"))

    pairs = [
        (b"/metadata/%69nstance?n=1", b"/metadata/instance?n=1"),
        (b"/metadata/instance/?n=2", b"/metadata/instance?n=2"),
        (b"/metadata/instance?n=3&a=%3ab", b"/metadata/instance?n=3&a=:b"),
        (b"/metadata/instance?n=4&a={b}", b"/metadata/instance?n=4&a=%7Bb%7D"),
        (b"/metadata/instance?n=5&a=;b", b"/metadata/instance?n=5&a=%3Bb"),
        (b"/metadata/instance?n=6&%69=1", b"/metadata/instance?n=6&i=1"),
    ]
    folder = tmp_path_factory.mktemp("spellings")
    with AnsweringServer(answer) as upstream, listening_everywhere(start, upstream.url, folder) as proxy:
        for first, second in pairs:
            ask(proxy, kind, request(first, HOST), fast=fast)
            assert ask(proxy, kind, request(second, HOST), fast=fast).body == b'{"compute":{"odd":false}}', second
