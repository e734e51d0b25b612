"""`TTL` and `STALE_IF_ERROR`."""

from __future__ import annotations

import pytest

from imdsproxy.emulator import EmulatorServer, Fault
from tests.integration.serving.kit import ATTESTED, INFO, LEAF, LOAD_BALANCER, PLATFORM, REPROVISION, Start
from tests.kit import Answer, Arrivals, cache_status, get, is_hit, wait_until
from tests.targets import EVENTS, INSTANCE, TOKEN

pytestmark = pytest.mark.process


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


def test_general_ttl_does_not_make_uncacheable_paths_cacheable(start: Start) -> None:
    with start(ttl="/metadata=300") as process:
        for target in (REPROVISION, PLATFORM, ATTESTED + "&nonce=1"):
            assert "stored" not in cache_status(get(process.port, target)), target
        assert int(cache_status(get(process.port, EVENTS)).get("ttl", "0")) <= 1


def test_stale_entry_is_served_during_its_background_refresh(
    start: Start, imds: EmulatorServer, arrivals: Arrivals
) -> None:
    with start(ttl="/metadata/instance=2") as process:
        asked = len(arrivals())
        first = get(process.port, INSTANCE)
        # The refresh begins up to 0.2 s before it is stale, and ends a second before it is too old to be served.
        imds.emulator.faults.add(Fault(path="/metadata/instance", latency=1, times=1))
        answers: list[Answer] = []

        def renewed() -> bool:
            answers.append(get(process.port, INSTANCE))
            return answers[-1].headers["x-ms-request-id"] != first.headers["x-ms-request-id"]

        wait_until(renewed)
        assert all(map(is_hit, answers))
        assert any(int(answer.headers["age"]) >= 2 for answer in answers)
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
