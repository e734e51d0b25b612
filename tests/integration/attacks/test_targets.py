"""Ambiguous paths and queries are refused, and rules hold for every spelling of a path."""

from __future__ import annotations

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.integration.attacks.kit import (
    CLOSE,
    HOST,
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


# --- paths


@pytest.mark.attack(1, 3, 22)
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
        b"//metadata//identity/oauth2/token",
        b"//identity/oauth2/token",
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
def test_ambiguous_path_is_refused(
    proxy: ProxyProcess, imds: EmulatorServer, path: bytes, fields: tuple[bytes, ...]
) -> None:
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(path + TOKEN_QUERY, *fields, CLOSE))
    assert_refused(answer, 400, "bad-target", "malformed")


@pytest.mark.attack(4)
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
        (answer,) = converse(proxy.port, request(path + TOKEN_QUERY, HOST, TRUE))
    assert_refused(answer, status, detail)


@pytest.mark.attack(4)
@pytest.mark.parametrize(
    "path", [b"/metadata", b"/metadata/", b"/metadata/instanceX", b"/metadata/identityX/oauth2/token"]
)
def test_unknown_path_is_not_stored(proxy: ProxyProcess, imds: EmulatorServer, path: bytes) -> None:
    for _ in range(2):
        before = len(imds.emulator.arrivals)
        (answer,) = converse(proxy.port, request(path + TOKEN_QUERY, HOST))
        assert answer.status == 404
        assert answer.headers["cache-status"] == "imdsproxy; fwd=bypass; fwd-status=404"
        assert len(imds.emulator.arrivals) == before + 1


@pytest.mark.attack(2, 3, 22)
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
def test_rule_applies_to_every_spelling(
    guarded: ProxyProcess, imds: EmulatorServer, path: bytes, status: int, detail: str
) -> None:
    with nothing_arrives(imds):
        (answer,) = converse(guarded.port, request(path + TOKEN_QUERY, HOST, TRUE))
    assert_refused(answer, status, detail)


def test_path_without_a_rule_is_forwarded(guarded: ProxyProcess) -> None:
    host = b"Host: IMDS.Internal:80\r\n"
    assert converse(guarded.port, request(b"/metadata/identity/oauth2x", host, TRUE))[0].status == 404
    assert converse(guarded.port, request(INSTANCE.encode(), host, TRUE))[0].status == 200
    (answer,) = converse(guarded.port, request(INSTANCE.encode(), host))
    assert answer.status == 400
    assert answer.headers["cache-status"] == "imdsproxy; detail=metadata-header"


# --- queries


@pytest.mark.attack(5)
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
def test_ambiguous_query_is_refused(proxy: ProxyProcess, imds: EmulatorServer, query: bytes) -> None:
    target = b"/metadata/identity/oauth2/token?api-version=2018-02-01&" + query
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(target, HOST, TRUE, CLOSE))
    assert_refused(answer, 400, "bad-target", "malformed")


@pytest.mark.attack(5)
def test_query_of_60_kilobytes_is_served_and_one_of_70_refused(proxy: ProxyProcess, imds: EmulatorServer) -> None:
    (answer,) = converse(proxy.port, request(INSTANCE.encode() + b"&x=" + b"a" * 60_000, HOST))
    assert answer.status == 200
    with nothing_arrives(imds):
        (answer,) = until_closed(proxy.port, request(INSTANCE.encode() + b"&x=" + b"a" * 70_000, HOST))
    assert_refused(answer, 431, "head-too-long")


@pytest.mark.parametrize(
    "long",
    [
        request(INSTANCE.encode() + b"&x=" + b"a" * 150_000, HOST),
        request(INSTANCE.encode(), HOST, b"X: " + b"a" * 150_000 + b"\r\n"),
    ],
    ids=["target", "field"],
)
def test_pipelined_target_has_the_same_length_limit(proxy: ProxyProcess, imds: EmulatorServer, long: bytes) -> None:
    plain = request(INSTANCE.encode(), HOST)
    (answer,) = converse(proxy.port, plain)
    assert answer.status == 200
    with nothing_arrives(imds):
        first, *others = until_closed(proxy.port, plain + long)
    assert first.status == 200
    assert [other.status for other in others] in ([], [431])
