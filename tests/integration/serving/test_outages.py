"""What clients get while IMDS fails."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, Fault, run_in_thread
from tests.integration.serving.kit import ATTESTED, INFO, LEAF, LOAD_BALANCER, PLATFORM, assert_own, at_once
from tests.kit import Arrivals, ProxyProcess, get, is_hit, running_proxy, unused, wait_for_log, wait_until
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

pytestmark = pytest.mark.process


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
def test_temporary_failure_is_retried(
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
def test_lasting_failure_is_reported(
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


def test_body_of_the_maximum_length_is_served(impatient: ProxyProcess, imds: EmulatorServer) -> None:
    body = json.dumps({"compute": {"name": "x"}}).ljust(1000)
    imds.emulator.faults.add(Fault(status=200, body=body, times=1))
    assert get(impatient.port, unused(INSTANCE)).body == body.encode()


def test_stored_answers_are_served_without_imds_and_others_are_502(tmp_path: Path) -> None:
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
        assert wait_for_log(process, "IMDS fails") == 1
        with run_in_thread(emulator, port=imds.port):
            wait_until(lambda: get(process.port, LOAD_BALANCER).status == 200)
            wait_for_log(process, "IMDS answers again")
            wait_until(lambda: is_hit(get(process.port, INSTANCE)))
