from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.messages import Refusal, Request
from imdsproxy.protocol.request_parser import HOP_HEADER, Readings, read
from tests.size import size

Fields = Sequence[tuple[bytes, bytes]]

ACCEPTED = AcceptedHosts(
    frozenset({"localhost", "imds.internal"}), frozenset({"169.254.169.254:80", "10.0.0.4:8080"}), "0123456789abcdef"
)
HOST = (b"host", b"127.0.0.1:8254")
INSTANCE = b"/metadata/instance?api-version=2021-02-01"


def ask(
    fields: Fields = (), *, raw: bytes = INSTANCE, method: str = "GET", host: bool = True, version: str = "1.1"
) -> Request | Refusal:
    return read(method, raw, [HOST, *fields] if host else list(fields), ACCEPTED, version)


def accepted(fields: Fields = (), *, raw: bytes = INSTANCE, method: str = "GET") -> Request:
    request = ask(fields, raw=raw, method=method)
    assert isinstance(request, Request), request
    return request


def test_plain_request_is_accepted_with_target_and_headers() -> None:
    fields = [(b"x-ms-client-request-id", b"1"), (b"accept", b"*/*")]
    request = accepted(fields)
    assert request.method == "GET"
    assert request.target.raw == INSTANCE
    assert request.headers == (HOST, *fields)
    assert (request.metadata, request.no_cache, request.hops, request.body) == (False, False, (), b"")


CHUNKED = (b"transfer-encoding", b"chunked")


@pytest.mark.attack(8)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT"])
@pytest.mark.parametrize(
    "fields",
    [
        [(b"content-length", b"5"), CHUNKED],
        [CHUNKED, CHUNKED],
        [(b"transfer-encoding", b"gzip, chunked")],
        [(b"transfer-encoding", b",chunked")],
        [(b"transfer-encoding", b"")],
    ],
)
def test_body_of_doubtful_length_is_refused_and_ends_the_connection(method: str, fields: Fields) -> None:
    refusal = ask(fields, method=method)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason, refusal.headers) == (400, "malformed", ((b"connection", b"close"),))


@pytest.mark.parametrize("field", [(b"content-length", b"5"), CHUNKED, (b"transfer-encoding", b" Chunked")])
def test_body_of_one_length_is_accepted(field: tuple[bytes, bytes]) -> None:
    assert accepted([field]).method == "GET"


# Promised: "any other method, CONNECT and HEAD too: 405 with Allow".
@pytest.mark.parametrize(
    ("method", "raw", "allow"),
    [
        ("HEAD", INSTANCE, b"GET"),
        ("PUT", INSTANCE, b"GET"),
        ("DELETE", INSTANCE, b"GET"),
        ("PATCH", INSTANCE, b"GET"),
        ("TRACE", INSTANCE, b"GET"),
        ("OPTIONS", INSTANCE, b"GET"),
        ("OPTIONS", b"*", b"GET"),
        ("CONNECT", b"169.254.169.254:80", b"GET"),
        ("CONNECT", b"attacker.example:443", b"GET"),
        ("POST", INSTANCE, b"GET"),
        ("POST", b"/metadata/identity/oauth2/token", b"GET"),
        ("POST", b"/metadata/identity/getplatformmetadata", b"GET"),
        ("POST", b"/metadata/scheduledevents/x", b"GET"),
        ("POST", b"/metadata/scheduledeventsx", b"GET"),
        ("POST", b"/-/healthy", b"GET, HEAD"),
        ("HEAD", b"/metadata/scheduledevents", b"GET, POST"),
        ("PUT", b"/metadata/identity/issuecredential", b"GET, POST"),
        ("get", INSTANCE, b"GET"),
        ("GETX", INSTANCE, b"GET"),
        ("", INSTANCE, b"GET"),
    ],
)
def test_other_method_is_refused_with_allow(method: str, raw: bytes, allow: bytes) -> None:
    refusal = ask(method=method, raw=raw)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (405, "method")
    assert refusal.response().header(b"allow") == allow


@pytest.mark.parametrize(
    "raw",
    [
        b"/metadata/scheduledevents?api-version=2020-07-01",
        b"/Metadata/ScheduledEvents/?api-version=2020-07-01",
        b"/metadata/identity/issuecredential?cred-api-version=2.0",
    ],
)
def test_post_is_accepted_for_documented_paths(raw: bytes) -> None:
    assert accepted(raw=raw, method="POST").method == "POST"


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_unreadable_target_is_refused(method: str) -> None:
    refusal = ask(method=method, raw=rb"/metadata/identity\oauth2\token")
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (400, "bad-target")


# An address or an allowed name belongs to the proxy; any other name may be an attacker's.
@pytest.mark.parametrize(
    "host",
    [
        b"127.0.0.1",
        b"127.0.0.1:8254",
        b"127.0.0.1:",
        b"169.254.169.254",
        b"10.1.2.3:80",
        b"[::1]",
        b"[::1]:8254",
        b"[::ffff:127.0.0.1]:8254",
        b"[FE80::1]",
        b"localhost",
        b"LOCALHOST:8254",
        b"imds.internal",
        b"Imds.Internal:8254",
        b" 127.0.0.1 ",
    ],
)
def test_address_or_an_allowed_name_is_accepted_as_host(host: bytes) -> None:
    assert isinstance(ask([(b"host", host)], host=False), Request)


@pytest.mark.parametrize(
    "host",
    [
        b"attacker.example",
        b"attacker.example:8254",
        b"localhost.",
        b"localhost.attacker.example",
        b"xlocalhost",
        b"127.0.0.1.",
        b"127.0.0.1.nip.io",
        b"2130706433",
        b"0x7f000001",
        b"0x7f.0.0.1",
        b"0177.0.0.1",
        b"127.1",
        b"1.2.3.4.5",
        b"256.0.0.1",
        b"metadata",
    ],
)
def test_other_host_name_is_forbidden(host: bytes) -> None:
    refusal = ask([(b"host", host)], host=False)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (403, "host")
    assert "IMDSPROXY_ALLOWED_HOSTS" in refusal.description


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [HOST, HOST],
        [HOST, (b"host", b"attacker.example")],
        [(b"host", b"")],
        [(b"host", b"user@127.0.0.1")],
        [(b"host", b"127.0.0.1@attacker.example")],
        [(b"host", b"127.0.0.1/metadata")],
        [(b"host", b"127.0.0.1, 127.0.0.1")],
        [(b"host", b"127.0.0.1 attacker.example")],
        [(b"host", b"127.0.0.1:80:80")],
        [(b"host", b"127.0.0.1:http")],
        [(b"host", b"127.0.0.1:123456")],
        [(b"host", b":8254")],
        [(b"host", b"::1")],
        [(b"host", b"[::1")],
        [(b"host", b"[]")],
        [(b"host", b"[localhost]")],
        [(b"host", b"[127.0.0.1]")],
        [(b"host", b"[::1%eth0]")],
        [(b"host", b"[fe80::1%25eth0]")],
        [(b"host", b"[v1.x]")],
        [(b"host", b"local\xffhost")],
        [(b"host", "l\u03bfcalhost".encode())],
        [(b"host", b"local\x00host")],
        [(b"host", b"a" * 600)],
    ],
)
def test_unreadable_missing_or_repeated_host_is_refused(fields: Fields) -> None:
    refusal = ask(fields, host=False)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (400, "bad-host")


@pytest.mark.parametrize(
    ("host", "to_imds"),
    [
        (b"169.254.169.254", True),
        (b"169.254.169.254:80", True),
        (b"169.254.169.254:8254", True),
        (b"[::ffff:169.254.169.254]", True),
        (b"[::FFFF:A9FE:A9FE]:80", True),
        (b"[::169.254.169.254]", True),
        (b"[64:ff9b::a9fe:a9fe]", True),
        (b"169.254.169.253", False),
        (b"127.0.0.1:8254", False),
        (b"[::ffff:127.0.0.1]", False),
        (b"[::1]", False),
        (b"localhost", False),
    ],
)
def test_every_accepted_spelling_of_imds_address_sets_to_imds(host: bytes, to_imds: bool) -> None:
    request = ask([(b"host", host)], host=False)
    assert isinstance(request, Request)
    assert request.to_imds is to_imds


@pytest.mark.parametrize(
    ("raw", "host", "to_imds"),
    [
        (b"http://169.254.169.254/metadata/instance", b"127.0.0.1", True),
        (b"http://169.254.169.254:80/metadata/instance", b"127.0.0.1", True),
        (b"http://10.0.0.4:8080/metadata/instance", b"127.0.0.1", False),
        (b"http://10.0.0.4:8080/metadata/instance", b"169.254.169.254", False),
    ],
)
def test_absolute_form_decides_to_imds(raw: bytes, host: bytes, to_imds: bool) -> None:
    request = ask([(b"host", host)], raw=raw, host=False)
    assert isinstance(request, Request)
    assert request.to_imds is to_imds


def test_request_without_host_counts_as_addressed_to_imds() -> None:
    # It may have been sent there and redirected here.
    request = ask(host=False, version="1.0")
    assert isinstance(request, Request)
    assert request.to_imds


AT_UNIX_SOCKET = replace(ACCEPTED, any_name=True)


@pytest.mark.parametrize(
    "host", [b"unix", b"docker:80", b"imds.example.com", b"xn--bcher-kva", b"socket.", b"localhost"]
)
def test_any_name_is_accepted_at_a_unix_socket(host: bytes) -> None:
    request = read("GET", INSTANCE, [(b"host", host)], AT_UNIX_SOCKET)
    assert isinstance(request, Request)
    assert not request.to_imds


@pytest.mark.parametrize(
    "host",
    [
        *(b"2852039166", b"0xa9fea9fe", b"169.254.43518", b"0251.0376.0251.0376", b"169.254.169.254.", b"0XA9.254.1"),
        *(b"0x", b"a.0x", b"127.1", b"256.0.0.1"),
    ],
)
def test_name_that_resembles_an_address_is_forbidden_at_a_unix_socket(host: bytes) -> None:
    refusal = read("GET", INSTANCE, [(b"host", host)], AT_UNIX_SOCKET)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (403, "host")


@pytest.mark.parametrize(
    ("raw", "served"),
    [
        (b"http://unix/metadata/instance", True),
        (b"http://Unix:80/metadata/instance", True),
        (b"http://localhost:8254/metadata/instance", True),
        (b"http://unix//metadata/instance", True),
        (b"http://attacker.example/metadata/instance", False),
        (b"http://unix./metadata/instance", False),
        (b"http://127.0.0.1/metadata/instance", False),
        (b"http://[::1]/metadata/instance", False),
        (b"http://2852039166/metadata/instance", False),
        (b"http://0xa9fea9fe/metadata/instance", False),
        (b"https://unix/metadata/instance", False),
    ],
)
def test_absolute_form_at_a_unix_socket_may_name_a_placeholder(raw: bytes, served: bool) -> None:
    answer = read("GET", raw, [HOST], AT_UNIX_SOCKET)
    assert isinstance(answer, Request) is served
    if isinstance(answer, Refusal):
        assert (answer.status, answer.reason) == (403, "other-host")
    assert isinstance(read("GET", raw, [HOST], ACCEPTED), Refusal)


@pytest.mark.parametrize(
    "fields",
    [
        [(b"origin", b"http://attacker.example")],
        [(b"origin", b"null")],
        [(b"origin", b"")],
        [(b"origin", b"http://127.0.0.1:8254"), (b"metadata", b"true")],
        [(b"sec-fetch-site", b"cross-site")],
        [(b"sec-fetch-site", b"same-site")],
        [(b"sec-fetch-site", b"same-origin")],
        [(b"sec-fetch-site", b"")],
        [(b"sec-fetch-site", b"none, cross-site")],
        [(b"sec-fetch-site", b"none"), (b"sec-fetch-site", b"cross-site")],
        [(b"sec-fetch-site", b"none"), (b"origin", b"null")],
    ],
)
@pytest.mark.parametrize(
    ("method", "raw"),
    [
        *(("GET", INSTANCE), ("POST", b"/metadata/scheduledevents"), ("OPTIONS", b"/metadata/scheduledevents")),
        *(("GET", b"/-/metrics"), ("GET", b"/elsewhere"), ("GET", b"/metadata/%2e%2e"), ("PUT", INSTANCE)),
    ],
)
def test_request_of_a_web_page_is_forbidden_with_any_other_field(method: str, raw: bytes, fields: Fields) -> None:
    refusal = ask(fields, method=method, raw=raw)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (403, "browser")


@pytest.mark.parametrize("value", [b"none", b"None", b" none "])
def test_request_of_a_browsers_user_is_accepted(value: bytes) -> None:
    assert isinstance(ask([(b"sec-fetch-site", value)]), Request)


@pytest.mark.parametrize(
    ("version", "fields", "accepted"),
    [
        ("1.0", [], True),
        ("1.0", [HOST], True),
        ("1.0", [HOST, HOST], False),
        ("1.0", [(b"host", b"attacker.example")], False),
        ("1", [], True),
        ("2", [], False),
        ("2", [HOST], True),
        ("1.1", [], False),
    ],
)
def test_only_http_1_0_may_omit_host(version: str, fields: Fields, accepted: bool) -> None:
    assert isinstance(ask(fields, host=False, version=version), Request) is accepted


# Promised: "an absolute-form target for another host: 403".
@pytest.mark.parametrize(
    ("raw", "served"),
    [
        (b"http://169.254.169.254/metadata/instance", True),
        (b"http://169.254.169.254:80/metadata/instance", True),
        (b"HTTP://169.254.169.254/metadata/instance", True),
        (b"http://10.0.0.4:8080/metadata/instance", True),
        (b"http://10.0.0.4/metadata/instance", False),
        (b"http://169.254.169.254:8080/metadata/instance", False),
        (b"http://169.254.169.254./metadata/instance", False),
        (b"http://attacker.example/metadata/instance", False),
        (b"http://127.0.0.1:8254/metadata/instance", False),
        (b"http://localhost/metadata/instance", False),
        (b"http://2852039166/metadata/instance", False),
        (b"http://0xa9fea9fe/metadata/instance", False),
        (b"http://[::ffff:169.254.169.254]/metadata/instance", False),
    ],
)
def test_absolute_form_is_accepted_for_imds_and_the_upstream_only(raw: bytes, served: bool) -> None:
    answer = ask(raw=raw)
    assert isinstance(answer, Request) is served
    if isinstance(answer, Refusal):
        assert (answer.status, answer.reason) == (403, "other-host")


def test_absolute_form_overrides_host() -> None:
    fields = [(b"host", b"attacker.example")]
    assert isinstance(ask(fields, host=False, raw=b"http://169.254.169.254/metadata/instance"), Request)
    refusal = ask([HOST], host=False, raw=b"http://attacker.example/metadata/instance")
    assert isinstance(refusal, Refusal)
    assert refusal.status == 403


def test_absolute_form_still_needs_host_once() -> None:
    refusal = ask([HOST, HOST], host=False, raw=b"http://169.254.169.254/metadata/instance")
    assert isinstance(refusal, Refusal)
    assert refusal.reason == "bad-host"


@pytest.mark.parametrize("values", [[b"10.0.0.1"], [b""], [b"unknown"], [b"127.0.0.1", b"127.0.0.1"]])
@pytest.mark.parametrize(
    ("method", "raw"), [("GET", INSTANCE), ("POST", b"/metadata/scheduledevents"), ("GET", b"/-/ready")]
)
def test_x_forwarded_for_is_refused_with_any_value(values: list[bytes], method: str, raw: bytes) -> None:
    refusal = ask([(b"x-forwarded-for", value) for value in values], method=method, raw=raw)
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (400, "x-forwarded-for")


@pytest.mark.parametrize("name", [b"forwarded", b"x-real-ip", b"via", b"x-forwarded-proto", b"x-forwarded-fo"])
def test_other_proxy_fields_are_accepted(name: bytes) -> None:
    assert isinstance(ask([(name, b"10.0.0.1")]), Request)


@pytest.mark.parametrize(
    ("values", "metadata"),
    [
        ([], None),
        ([b"true"], True),
        ([b"True"], True),
        ([b"TRUE"], True),
        ([b" true\t"], True),
        ([b""], False),
        ([b"false"], False),
        ([b"1"], False),
        ([b"truex"], False),
        ([b"true, true"], False),
        ([b"true", b"true"], False),
        ([b"true", b"false"], False),
        ([b'"true"'], False),
    ],
)
def test_metadata_is_true_only_if_given_once(values: list[bytes], metadata: bool | None) -> None:
    request = accepted([(b"metadata", value) for value in values])
    assert (request.metadata, request.wrong_metadata) == (metadata is True, metadata is False)


@pytest.mark.parametrize(
    ("values", "no_cache"),
    [
        ([], False),
        ([b"no-cache"], True),
        ([b"No-Cache"], True),
        ([b"max-age=0, no-cache"], True),
        ([b"max-age=0 ,\tno-cache ,no-store"], True),
        ([b"max-age=0", b"no-cache"], True),
        ([b"no-store"], False),
        ([b"max-age=0"], False),
        ([b"no-cachex"], False),
        ([b""], False),
    ],
)
def test_cache_control_no_cache_sets_no_cache(values: list[bytes], no_cache: bool) -> None:
    assert accepted([(b"cache-control", value) for value in values]).no_cache is no_cache


@pytest.mark.parametrize(
    ("values", "hops"),
    [
        ([], ()),
        ([b"aaaaaaaaaaaaaaaa"], ("a" * 16,)),
        ([b"aaaaaaaaaaaaaaaa, bbbbbbbbbbbbbbbb"], ("a" * 16, "b" * 16)),
        ([b"aaaaaaaaaaaaaaaa", b"bbbbbbbbbbbbbbbb"], ("a" * 16, "b" * 16)),
    ],
)
def test_hops_are_read_in_order(values: list[bytes], hops: tuple[str, ...]) -> None:
    assert accepted([(HOP_HEADER, value) for value in values]).hops == hops


@pytest.mark.parametrize(
    "values",
    [
        [b"0123456789abcdef"],
        [b"aaaaaaaaaaaaaaaa, 0123456789abcdef"],
        [b"aaaaaaaaaaaaaaaa", b" 0123456789abcdef "],
        [b", ".join(b"%016x" % number for number in range(50)), b"0123456789abcdef"],
        [b"anything, at all", b"0123456789abcdef,\xff"],
    ],
)
def test_request_with_the_own_instance_is_a_loop(values: list[bytes]) -> None:
    refusal = ask([(HOP_HEADER, value) for value in values])
    assert isinstance(refusal, Refusal)
    assert (refusal.status, refusal.reason) == (508, "loop")
    assert "IMDSPROXY_UPSTREAM" in refusal.description


def test_only_the_latest_hops_are_kept() -> None:
    hops = accepted([(HOP_HEADER, b", ".join(b"%016x" % number for number in range(50)))]).hops
    assert hops == tuple(f"{number:016x}" for number in range(34, 50))


def test_invalid_hop_is_dropped() -> None:
    assert accepted([(HOP_HEADER, b"x, aaaaaaaaaaaaaaaa, ,AAAAAAAAAAAAAAAA, " + b"b" * 17)]).hops == ("a" * 16,)


@pytest.mark.parametrize(
    ("method", "raw", "fields"),
    [
        ("DELETE", INSTANCE, [HOST]),
        ("DELETE\r\nX: 1" * 20, INSTANCE, [HOST]),
        ("GET", b"/metadata//instance", [HOST]),
        ("GET", INSTANCE, []),
        ("GET", INSTANCE, [(b"host", b"a" * 500 + b".example")]),
        ("GET", b"http://[" + b"\xe9" * 900 + b"]/x", [HOST]),
        ("GET", INSTANCE, [HOST, (b"x-forwarded-for", b"1")]),
        ("GET", INSTANCE, [HOST, (HOP_HEADER, b"0123456789abcdef")]),
    ],
)
def test_refusal_is_short_json_with_the_reason(method: str, raw: bytes, fields: Fields) -> None:
    refusal = read(method, raw, fields, ACCEPTED)
    assert isinstance(refusal, Refusal)
    body = refusal.response().body
    assert list(json.loads(body)) == ["error", "error_description"]
    assert len(body) < 1_000
    assert refusal.description.isprintable()


@pytest.mark.parametrize(
    "flood",
    [
        lambda number: (b"/metadata/instance?a=%d" % number + b"a" * 60_000, HOST),
        lambda number: (b"/metadata/instance?a=%d" % number + b"a" * 900, HOST),
        lambda number: (b"/metadata/x?" + b"&".join(b"%x" % name for name in range(number, number + 300))[:1010], HOST),
        lambda number: (b"/metadata//%d" % number, HOST),
        lambda number: (INSTANCE, (b"host", b"%d." % number + b"a" * 60_000)),
        lambda number: (INSTANCE, (b"host", b"%d." % number + b"a" * 400)),
        lambda number: (INSTANCE, (b"cache-control", b"x=%d" % number + b"a" * 60_000)),
    ],
    ids=["long target", "target", "parameters", "refused target", "long host", "host", "cache-control"],
)
@pytest.mark.no_cover
@pytest.mark.parametrize("bound", size(short=(0, 50_000), full=(0, 50_000, 500_000)))
def test_readings_of_a_flood_are_bounded(flood: Callable[[int], tuple[bytes, tuple[bytes, bytes]]], bound: int) -> None:
    readings = Readings(bound)

    def ask_for(number: int) -> None:
        raw, host = flood(number)
        fields = [host] if host[0] == b"host" else [HOST, host]
        read("GET", raw, fields, ACCEPTED, readings=readings)

    ask_for(0)
    tracemalloc.start()
    try:
        for number in range(1, size(short=250 + bound // 1000, full=800)):
            ask_for(number)
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert readings.bytes <= bound
    assert left < bound + 20_000


def test_same_target_is_read_once() -> None:
    readings = Readings(50_000)
    first, second = (read("GET", INSTANCE, [HOST], ACCEPTED, readings=readings) for _ in range(2))
    assert isinstance(first, Request)
    assert isinstance(second, Request)
    assert first.target is second.target
    assert 0 < readings.bytes <= 50_000
