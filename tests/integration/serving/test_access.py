"""Paths and host names that are allowed or refused."""

from __future__ import annotations

import pytest

from tests.integration.serving.kit import INFO, LEAF, Start, assert_own
from tests.kit import METADATA, Arrivals, ProxyProcess, get
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

pytestmark = pytest.mark.process


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


def test_localhost_is_the_only_name_by_default(proxy: ProxyProcess) -> None:
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
def test_targets_outside_metadata_are_404(
    proxy: ProxyProcess, arrivals: Arrivals, *, method: str, target: str, status: int, detail: str
) -> None:
    answer = get(proxy.port, target, method=method)
    assert arrivals() == []
    assert ("allow" in answer.headers) == (status == 405)
    if method == "HEAD":
        assert (answer.status, answer.body) == (status, b"")
    else:
        assert_own(answer, status, detail)
