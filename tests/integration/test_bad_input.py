"""Refusals of IMDS through the real proxy: passed on in IMDS's wording, and remembered for `NEGATIVE_TTL`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from imdsproxy.emulator import EmulatorServer
from tests.kit import Answer, ProxyProcess, get, is_hit, running_proxy, unused, wait_until

pytestmark = [pytest.mark.any_python, pytest.mark.process]

TOKEN = "/metadata/identity/oauth2/token"
V = "api-version=2018-02-01"
VAULT = "resource=https://vault.azure.net"
NOBODY = "00000000-0000-4000-8000-000000000000"
SOMEBODY = "e0000000-0000-4000-8000-00000000c111"
RESOURCE_ID = f"/subscriptions/{NOBODY}/resourcegroups/x/providers/Microsoft.ManagedIdentity/userAssignedIdentities/x"

NO_RESOURCE = b'{"error":"invalid_request","error_description":"Required query variable \'resource\' is missing"}'
NO_IDENTITY = b'{"error":"invalid_request","error_description":"Identity not found"}'
NO_VERSION = b'{"error":"Bad request. api-version is invalid or was not specified in the request. '

# What is asked, IMDS's status and how its words begin where they are known: responses captured from the real one.
REFUSED = {
    "no resource": (f"{TOKEN}?{V}", 400, NO_RESOURCE),
    "empty resource": (f"{TOKEN}?{V}&resource=", 400, NO_RESOURCE),
    "resource without a value": (f"{TOKEN}?{V}&resource", 400, NO_RESOURCE),
    "no resource for a known identity": (f"{TOKEN}?{V}&client_id={SOMEBODY}", 400, NO_RESOURCE),
    "unknown client_id": (f"{TOKEN}?{V}&{VAULT}&client_id={NOBODY}", 400, NO_IDENTITY),
    "unknown object_id": (f"{TOKEN}?{V}&{VAULT}&object_id={NOBODY}", 400, NO_IDENTITY),
    "unknown msi_res_id": (f"{TOKEN}?{V}&{VAULT}&msi_res_id={RESOURCE_ID}", 400, NO_IDENTITY),
    "unknown mi_res_id": (f"{TOKEN}?{V}&{VAULT}&mi_res_id={RESOURCE_ID}", 400, NO_IDENTITY),
    "client_id of no form": (f"{TOKEN}?{V}&{VAULT}&client_id=%F0%9F%92%A5", 400, NO_IDENTITY),
    "client_id and object_id": (f"{TOKEN}?{V}&{VAULT}&client_id={SOMEBODY}&object_id={NOBODY}", 400, b"{"),
    "client_id and msi_res_id": (f"{TOKEN}?{V}&{VAULT}&client_id={SOMEBODY}&msi_res_id={RESOURCE_ID}", 400, b"{"),
    "token, no version": (f"{TOKEN}?{VAULT}", 400, NO_VERSION),
    "token, unknown version": (f"{TOKEN}?api-version=2017-01-01&{VAULT}", 400, NO_VERSION),
    "info, no version": ("/metadata/identity/info", 400, NO_VERSION),
    "info, unknown version": ("/metadata/identity/info?api-version=1", 400, NO_VERSION),
    "instance, no version": ("/metadata/instance", 400, NO_VERSION),
    "instance, empty version": ("/metadata/instance?api-version=", 400, NO_VERSION),
    "instance, unknown version": ("/metadata/instance?api-version=1999-01-01", 400, NO_VERSION),
    "instance, no such element": ("/metadata/instance/nothing?api-version=2021-02-01", 404, b'{"error":"Not found"}'),
    "instance, unknown format": ("/metadata/instance?api-version=2021-02-01&format=xml", 400, b"{"),
    "leaf without format=text": ("/metadata/instance/compute/vmId?api-version=2021-02-01", 400, b"{"),
    "load balancer, unknown version": ("/metadata/loadbalancer?api-version=2017-04-02", 400, NO_VERSION),
    "events, no version": ("/metadata/scheduledevents", 400, NO_VERSION),
    "events, unknown version": ("/metadata/scheduledevents?api-version=2021-02-01", 404, b'{"error":"Not found"}'),
    "attested, no version": ("/metadata/attested/document", 400, NO_VERSION),
}
# Refused as well, and never kept: nothing is known of these paths, or the answer is for one client alone.
REFUSED_EACH_TIME = {
    "unknown path": ("/metadata/unknown?api-version=2021-02-01", 404, b'{"error":"Not found"}'),
    "nothing but the root": ("/metadata/", 404, b'{"error":"Not found"}'),
    "unknown identity path": (f"/metadata/identity/unknown?{V}", 404, b'{"error":"Not Found"}'),
    "attested, nonce, unknown version": ("/metadata/attested/document?nonce=1&api-version=1", 400, NO_VERSION),
    "unknown identity, renewal wished": (f"{TOKEN}?{V}&{VAULT}&client_id={NOBODY}&bypass_cache=true", 400, NO_IDENTITY),
}


def asked_directly(imds: EmulatorServer, target: str, status: int, words: bytes) -> tuple[str, Answer]:
    """Return an unused target of this kind, and the status and words of IMDS's answer to it."""
    target = unused(target)
    real = get(imds.port, target)
    assert real.status == status
    assert real.body.startswith(words)
    return target, real


def assert_same(answer: Answer, real: Answer) -> None:
    assert (answer.status, answer.body) == (real.status, real.body)
    for name in ("content-type", "content-length", "server"):
        assert answer.headers[name] == real.headers[name]
    # One is made for each answer: whose it is can be told by it, and a hit bears that of the answer that is kept.
    assert answer.headers["x-ms-request-id"] != real.headers["x-ms-request-id"]


@pytest.fixture(scope="module")
def proxies(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[float, ProxyProcess]]:
    """Proxies before the same IMDS, by their `NEGATIVE_TTL`."""
    folder = tmp_path_factory.mktemp("bad-input")
    settings: dict[str, Any] = {"upstream": imds.url, "budget_requests": 1000}
    with (
        running_proxy(folder, **settings) as by_default,
        running_proxy(folder, **settings, negative_ttl=0.5) as short,
        running_proxy(folder, **settings, negative_ttl=0) as none,
    ):
        yield {5: by_default, 0.5: short, 0: none}
        for process in (by_default, short, none):
            assert "Traceback" not in process.log


@pytest.mark.parametrize("case", REFUSED)
def test_bad_request_gets_imds_own_answer_and_is_stored(
    imds: EmulatorServer, proxies: dict[float, ProxyProcess], case: str
) -> None:
    target, real = asked_directly(imds, *REFUSED[case])
    before = len(imds.emulator.arrivals)
    first, second = get(proxies[5].port, target), get(proxies[5].port, target)
    assert_same(first, real)
    assert_same(second, real)
    assert (is_hit(first), is_hit(second)) == (False, True)
    assert second.headers["x-ms-request-id"] == first.headers["x-ms-request-id"]
    assert len(imds.emulator.arrivals_since(before)) == 1


@pytest.mark.parametrize("case", REFUSED_EACH_TIME)
def test_bad_request_gets_imds_own_answer_each_time_without_negative_ttl(
    imds: EmulatorServer, proxies: dict[float, ProxyProcess], case: str
) -> None:
    target, real = asked_directly(imds, *REFUSED_EACH_TIME[case])
    before = len(imds.emulator.arrivals)
    for count in (1, 2):
        answer = get(proxies[5].port, target)
        assert_same(answer, real)
        assert not is_hit(answer)
        assert len(imds.emulator.arrivals_since(before)) == count


def test_after_negative_ttl_imds_is_asked_again(imds: EmulatorServer, proxies: dict[float, ProxyProcess]) -> None:
    left = {unused(target) for target, _, _ in REFUSED.values()}
    before = len(imds.emulator.arrivals)
    first = {target: get(proxies[0.5].port, target).headers["x-ms-request-id"] for target in left}

    def asked_again() -> bool:
        for target in list(left):
            if get(proxies[0.5].port, target).headers["x-ms-request-id"] != first[target]:
                left.remove(target)
        return not left

    wait_until(asked_again)
    arrived = [arrival.target.decode() for arrival in imds.emulator.arrivals_since(before)]
    assert sorted(arrived) == sorted([*first, *first])


@pytest.mark.parametrize("case", REFUSED)
def test_negative_ttl_of_zero_remembers_nothing(
    imds: EmulatorServer, proxies: dict[float, ProxyProcess], case: str
) -> None:
    target, status, _ = REFUSED[case]
    target = unused(target)
    before = len(imds.emulator.arrivals)
    for count in (1, 2):
        answer = get(proxies[0].port, target)
        assert answer.status == status
        assert "stored" not in answer.headers["cache-status"]
        assert not is_hit(answer)
        assert len(imds.emulator.arrivals_since(before)) == count


def test_corrected_request_is_answered_at_once(imds: EmulatorServer, proxies: dict[float, ProxyProcess]) -> None:
    """A refusal is the answer to that very question alone."""
    for wrong, right in (
        (f"{TOKEN}?{V}", f"{TOKEN}?{V}&{VAULT}"),
        (f"{TOKEN}?{V}&{VAULT}&client_id={NOBODY}", f"{TOKEN}?{V}&{VAULT}&client_id={SOMEBODY}"),
        (f"{TOKEN}?{V}&{VAULT}&object_id={SOMEBODY}", f"{TOKEN}?{V}&{VAULT}&client_id={SOMEBODY}"),
        ("/metadata/instance", "/metadata/instance?api-version=2021-02-01"),
        ("/metadata/scheduledevents?api-version=2021-02-01", "/metadata/scheduledevents?api-version=2020-07-01"),
    ):
        refused = get(proxies[5].port, wrong).status
        assert refused in {400, 404}
        assert get(proxies[5].port, right).status == 200
        assert get(proxies[5].port, wrong).status == refused
