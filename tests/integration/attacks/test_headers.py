"""Header fields, above all `Metadata`, `X-Forwarded-For` and `Host`: missing, repeated, misspelt or folded."""

from __future__ import annotations

import json

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.attacks.kit import (
    CLOSE,
    FORWARDED_FOR,
    HOST,
    IMDS_WORDS,
    RAW_TOKEN,
    SMUGGLED,
    TOKEN_MARK,
    TOKEN_QUERY,
    TRUE,
    assert_refused,
    converse,
    nothing_arrives,
    request,
    until_closed,
)
from tests.kit import ProxyProcess
from tests.targets import INSTANCE

pytestmark = [pytest.mark.any_python, pytest.mark.process]


# --- Metadata


@pytest.mark.attack(2, 6)
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
        (answer,) = converse(proxy.port, request(path + TOKEN_QUERY, HOST, *fields))
    assert_refused(answer, 400, "metadata-header")
    assert answer.body == IMDS_WORDS


@pytest.mark.attack(6)
def test_unknown_identity_path_never_gets_the_header_added(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    for path in (
        b"/metadata/identity",
        b"/metadata/identity/getplatformmetadata",
        b"/metadata/identity/oauth2/token/x",
    ):
        before = len(imds.emulator.arrivals)
        converse(proxy.port, request(path, HOST))
        (arrival,) = imds.emulator.arrivals[before:]
        assert b"metadata" not in dict(arrival.headers)
        with nothing_arrives(imds):
            for wrong in ((b"Metadata: false\r\n",), (TRUE, TRUE)):
                assert_refused(converse(proxy.port, request(path, HOST, *wrong))[0], 400, "metadata-header")


@pytest.mark.parametrize("value", [b"true", b"True", b"TRUE", b"  true", b"\ttrue", b"true ", b"true\t"])
def test_metadata_header_is_accepted_in_every_client_spelling(proxy: ProxyProcess, value: bytes) -> None:
    (answer,) = converse(proxy.port, request(RAW_TOKEN, HOST, b"mEtAdAtA:" + value + b"\r\n"))
    assert answer.status == 200
    assert json.loads(answer.body)["access_token"].startswith(TOKEN_MARK)


@pytest.mark.attack(6)
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
def test_ambiguous_field_ends_the_connection(
    proxy: ProxyProcess, imds: EmulatorServer, fields: tuple[bytes, ...]
) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(RAW_TOKEN, *fields) + SMUGGLED)
    assert_refused(answer, 400, "malformed")


@pytest.mark.attack(8)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_trailer_is_not_read_as_a_header(proxy: ProxyProcess, imds: EmulatorServer, method: bytes, pieces: int) -> None:
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


def test_trailer_does_not_replace_host(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    sent = request(
        RAW_TOKEN + b"&t=host", TRUE, CLOSE, b"Transfer-Encoding: chunked\r\n", body=b"0\r\n" + HOST + b"\r\n"
    )
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, sent)
    assert_refused(answer, 400, "bad-host", "malformed")


# --- X-Forwarded-For and similar fields


_SPELLINGS = [
    FORWARDED_FOR,
    b"x-forwarded-for: 10.0.0.1\r\n",
    b"X-FORWARDED-FOR:10.0.0.1\r\n",
    b"X-Forwarded-For:\r\n",
    b"X-Forwarded-For:   \t \r\n",
    b"X-Forwarded-For: a\r\nX-Forwarded-For: b\r\n",
    b"Connection: X-Forwarded-For\r\nX-Forwarded-For: a\r\n",
    b"X-Forwarded-For: \xff\r\n",
]


@pytest.mark.attack(6)
@pytest.mark.parametrize("field", _SPELLINGS, ids=repr)
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


@pytest.mark.attack(6)
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
def test_no_spelling_of_x_forwarded_for_reaches_imds(proxy: ProxyProcess, imds: EmulatorServer, field: bytes) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(b"/metadata/unknown", HOST, TRUE, field))
    assert_refused(answer, 400, "malformed")


@pytest.mark.attack(6)
def test_fields_that_reveal_a_proxy_do_not_reach_imds(proxy: ProxyProcess, imds: EmulatorServer) -> None:
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


def test_hop_by_hop_field_ends_at_the_proxy(proxy: ProxyProcess, imds: EmulatorServer) -> None:
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
def test_malformed_client_field_does_not_count_as_an_imds_failure(
    proxy: ProxyProcess, imds: EmulatorServer, field: bytes
) -> None:
    """White space around a value is no part of it (RFC 9112 section 5.1)."""
    seen, before = len(proxy.log), len(imds.emulator.arrivals)
    (answer,) = converse(proxy.port, request(b"/metadata/unknown", HOST, field))
    assert answer.status == 404
    assert len(imds.emulator.arrivals) == before + 1
    assert "IMDS fails" not in proxy.log[seen:]


# --- Host


@pytest.mark.attack(6)
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
def test_host_by_another_name_is_refused(
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
def test_address_is_always_accepted(proxy: ProxyProcess, host: bytes) -> None:
    assert converse(proxy.port, request(RAW_TOKEN, b"Host: " + host + b"\r\n", TRUE))[0].status == 200
