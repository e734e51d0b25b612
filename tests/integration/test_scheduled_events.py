"""Scheduled events through the real proxy: many pollers, the slow first answer, acknowledgements, failures of IMDS."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import pytest

from imdsproxy.emulator import Emulator, EmulatorServer, Fault, run_in_thread
from tests.kit import (
    METADATA,
    Answer,
    Arrivals,
    ProxyProcess,
    cache_status,
    get,
    is_hit,
    running_proxy,
    unused,
    wait_until,
)
from tests.targets import EVENTS, INSTANCE, TOKEN

pytestmark = [pytest.mark.any_python, pytest.mark.process]

Start = Callable[..., AbstractContextManager[ProxyProcess]]

PATH = "/metadata/scheduledevents"
CROWD = 100


def status_of(answer: Answer, event: str) -> str:
    (found,) = (one for one in json.loads(answer.body)["Events"] if one["EventId"] == event)
    return str(found["EventStatus"])


def acknowledge(port: int, *events: str) -> Answer:
    body = json.dumps({"StartRequests": [{"EventId": event} for event in events]}).encode()
    own = {**METADATA, "Content-Type": "application/json"}
    return get(port, EVENTS, own, method="POST", body=body)


class Poller:
    """A client with a connection that it keeps."""

    def __init__(self, port: int, target: str = EVENTS) -> None:
        self._port = port
        self._request = f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\nMetadata: true\r\n\r\n".encode()

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def ask(self) -> Answer:
        self._writer.write(self._request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        line, *lines = head.decode("latin-1").rstrip("\r\n").split("\r\n")
        pairs = (field.partition(": ") for field in lines)
        headers = {name.lower(): value for name, _, value in pairs}
        return Answer(int(line.split()[1]), headers, await self._reader.readexactly(int(headers["content-length"])))


@pytest.fixture
def arrivals(imds: EmulatorServer) -> Arrivals:
    return Arrivals(imds, PATH)


@pytest.fixture(scope="module")
def proxy(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """Run a proxy that waits for IMDS only."""
    settings: dict[str, Any] = {"upstream": imds.url, "budget_requests": 1000, "retry_max": 0, "read_timeout": 1}
    with running_proxy(tmp_path_factory.mktemp("events"), **settings) as process:
        yield process
        assert "Traceback" not in process.log


@pytest.fixture
def start(tmp_path: Path) -> Start:
    """Start a proxy before an emulator of the test's own."""

    @contextlib.contextmanager
    def started(emulator: EmulatorServer, **settings: object) -> Iterator[ProxyProcess]:
        chosen: dict[str, Any] = {"upstream": emulator.url, **settings}
        with running_proxy(tmp_path, **chosen) as process:
            yield process
        assert "Traceback" not in process.log

    return started


# --- polling


def test_hundred_pollers_cost_one_upstream_request_a_second(start: Start) -> None:
    seconds = 3

    async def poll(port: int, number: int, answers: list[Answer]) -> None:
        await asyncio.sleep(number / CROWD)
        async with Poller(port) as poller:
            for _ in range(seconds):
                next_turn = time.monotonic() + 1
                answers.append(await poller.ask())
                await asyncio.sleep(max(0.0, next_turn - time.monotonic()))

    async def all_of_them(port: int) -> list[Answer]:
        answers: list[Answer] = []
        async with asyncio.timeout(60):
            await asyncio.gather(*(poll(port, number, answers) for number in range(CROWD)))
        return answers

    with run_in_thread(Emulator()) as imds, start(imds) as process:
        seen = Arrivals(imds, PATH)
        began = time.monotonic()
        answers = asyncio.run(all_of_them(process.port))
        took = time.monotonic() - began
        assert [answer.status for answer in answers] == [200] * CROWD * seconds
        assert {int(answer.headers.get("age", "0")) for answer in answers} == {0}
        assert {arrival.status for arrival in seen()} == {200}
        assert seconds - 1 <= len(seen()) <= int(took) + 1


def test_events_are_stored_for_one_second(proxy: ProxyProcess, arrivals: Arrivals) -> None:
    target = unused(EVENTS)
    began = time.monotonic()
    assert "stored" in cache_status(get(proxy.port, target))
    wait_until(lambda: not is_hit(get(proxy.port, target)))
    _, second = arrivals()
    assert second.at - began >= 1


# --- the first request


def test_all_clients_wait_for_the_slow_first_request(start: Start) -> None:
    """Longer than the time limits for everything else."""

    async def one(port: int, number: int) -> Answer:
        await asyncio.sleep(number / CROWD)
        async with Poller(port) as poller:
            return await poller.ask()

    async def all_of_them(port: int) -> list[Answer]:
        async with asyncio.timeout(60):
            return list(await asyncio.gather(*(one(port, number) for number in range(CROWD))))

    with (
        run_in_thread(Emulator(enable_delay=3)) as imds,
        start(imds, read_timeout=1, header_timeout=1, max_wait=1) as process,
    ):
        seen = Arrivals(imds, PATH)
        began = time.monotonic()
        answers = asyncio.run(all_of_them(process.port))
        assert time.monotonic() - began >= 3
        assert {(answer.status, answer.body) for answer in answers} == {(200, answers[0].body)}
        assert json.loads(answers[0].body)["Events"] == []
        assert sum("collapsed" in cache_status(answer) for answer in answers) == CROWD - 1
        assert [arrival.status for arrival in seen()] == [200]
        assert not is_hit(get(process.port, EVENTS)), "it came too late to be fresh"


def test_slow_first_request_continues_for_pollers_that_reconnect(start: Start) -> None:
    async def impatient(port: int) -> Answer:
        """Disconnect after a while and repeat the request, as clients with a timeout do."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.4), Poller(port) as poller:
                    return await poller.ask()

    async def all_of_them(port: int) -> list[Answer]:
        async with asyncio.timeout(60):
            return list(await asyncio.gather(*(impatient(port) for _ in range(30))))

    with run_in_thread(Emulator(enable_delay=1.2)) as imds, start(imds, read_timeout=1) as process:
        answers = asyncio.run(all_of_them(process.port))
        assert {answer.status for answer in answers} == {200}
        seen = [arrival for arrival in imds.emulator.arrivals if arrival.target == EVENTS.encode()]
        assert len([arrival for arrival in seen if arrival.at < seen[0].at + 1.2]) == 1


# --- acknowledgements


def test_acknowledgement_is_forwarded_and_drops_the_entry(
    proxy: ProxyProcess, imds: EmulatorServer, arrivals: Arrivals
) -> None:
    event = imds.emulator.events.add("Redeploy")
    target = unused(EVENTS)
    assert status_of(get(proxy.port, target), event) == "Scheduled"
    posted = acknowledge(proxy.port, event)
    assert (posted.status, posted.body) == (200, b"")
    assert cache_status(posted)["fwd"] == "method"
    after = get(proxy.port, target)
    assert not is_hit(after)
    assert status_of(after, event) == "Started"
    assert arrivals.methods() == ["GET", "POST", "GET"]
    assert dict(arrivals()[1].headers)[b"content-type"] == b"application/json"
    imds.emulator.events.clear()


@pytest.fixture(scope="module")
def patient(imds: EmulatorServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProxyProcess]:
    """Run a proxy that would retry at once, and often."""
    settings: dict[str, Any] = {"upstream": imds.url, "budget_requests": 1000, "retry_base": 0.05}
    with running_proxy(tmp_path_factory.mktemp("patient"), **settings) as process:
        yield process
        assert "Traceback" not in process.log


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        *((Fault(path=PATH, status=code, times=1), code) for code in (400, 404, 410, 429, 500, 503)),
        (Fault(path=PATH, reset=True, times=1), 502),
        (Fault(path=PATH, truncate=True, times=1), 502),
        (Fault(path=PATH, garbage=True, times=1), 502),
    ],
    ids=lambda value: str(value.status or value.breakage) if isinstance(value, Fault) else "",
)
def test_acknowledgement_is_sent_once_for_any_result(
    patient: ProxyProcess, imds: EmulatorServer, arrivals: Arrivals, fault: Fault, status: int
) -> None:
    imds.emulator.faults.add(fault)
    assert acknowledge(patient.port).status == status
    assert arrivals.methods() == ["POST"]
    # A 410 is taken for IMDS being away until it answers something else.
    assert get(patient.port, unused(EVENTS)).status == 200
    assert arrivals.methods() == ["POST", "GET"]


def test_unanswered_acknowledgement_is_sent_once_and_its_client_may_disconnect(
    start: Start, imds: EmulatorServer, arrivals: Arrivals
) -> None:
    imds.emulator.faults.add(Fault(path=PATH, hang=True, times=1))
    # A proxy of its own, in which the next acknowledgement would have to wait for this one.
    with start(imds, budget_requests=1000, retry_base=0.05) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), timeout=5) as client:
            client.sendall(
                f"POST {EVENTS} HTTP/1.1\r\nHost: 127.0.0.1\r\nMetadata: true\r\nContent-Length: 2\r\n\r\n{{}}".encode()
            )
            wait_until(arrivals)
        assert get(proxy.port, unused(EVENTS)).status == 200, "and no client has to wait for it"
        assert arrivals.methods() == ["POST", "GET"]


def test_answer_requested_before_an_acknowledgement_is_not_served_after_it(
    proxy: ProxyProcess, imds: EmulatorServer, arrivals: Arrivals
) -> None:
    event = imds.emulator.events.add("Redeploy")
    target = unused(EVENTS)
    imds.emulator.faults.add(Fault(path=PATH, latency=2.5, times=1))
    with ThreadPoolExecutor(1) as pool:
        older = pool.submit(get, proxy.port, target)
        wait_until(arrivals)
        assert acknowledge(proxy.port, event).status == 200
        after = get(proxy.port, target)
        assert not older.done()
        assert arrivals.methods() == ["GET", "POST", "GET"], "it joins no older fetch"
        assert "collapsed" not in cache_status(after)
        assert status_of(after, event) == "Started"
        old = older.result(15)
        assert old.status == 200
    assert get(proxy.port, target).headers["x-ms-request-id"] != old.headers["x-ms-request-id"]
    imds.emulator.events.clear()


def test_concurrent_acknowledgements_are_both_sent(
    proxy: ProxyProcess, imds: EmulatorServer, arrivals: Arrivals
) -> None:
    imds.emulator.faults.add(Fault(path=PATH, latency=0.3, times=5))
    with ThreadPoolExecutor(5) as pool:
        answers = list(pool.map(lambda _: acknowledge(proxy.port), range(5)))
    assert {answer.status for answer in answers} == {200}
    assert arrivals.methods() == ["POST"] * 5


# --- never stale, never prefetched


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        *((Fault(path=PATH, status=code), code) for code in (410, 429, 500, 503)),
        (Fault(path=PATH, reset=True), 502),
        (Fault(path=PATH, garbage=True), 502),
    ],
    ids=lambda value: str(value.status or value.breakage) if isinstance(value, Fault) else "",
)
def test_failure_after_its_second_is_reported(
    proxy: ProxyProcess, imds: EmulatorServer, fault: Fault, status: int
) -> None:
    target = unused(EVENTS)
    assert get(proxy.port, target).status == 200
    imds.emulator.faults.add(fault)
    answers: list[Answer] = []

    def failed() -> bool:
        answers.append(get(proxy.port, target))
        return not is_hit(answers[-1])

    try:
        wait_until(failed)
        assert [answer.status for answer in answers] == [*[200] * (len(answers) - 1), status]
        assert get(proxy.port, target).status == status, "nor once it is known"
    finally:
        imds.emulator.faults.clear()
    wait_until(lambda: get(proxy.port, target).status == 200)


def test_proxy_itself_never_requests_events(start: Start) -> None:
    with (
        run_in_thread(Emulator(rate=0)) as imds,
        start(imds, warmup=f"{INSTANCE},{TOKEN}", ttl="/metadata=0.2", budget_requests=1000) as process,
    ):
        seen = Arrivals(imds, PATH)
        targets = (INSTANCE, TOKEN, "/metadata/versions", "/metadata/loadbalancer?api-version=2020-10-01")

        def renewed() -> bool:
            for target in targets:
                get(process.port, target)
            return len(imds.emulator.arrivals) >= 12

        wait_until(renewed)
        assert seen() == []
        assert get(process.port, EVENTS).status == 200
        before = len(imds.emulator.arrivals)
        wait_until(lambda: renewed() and len(imds.emulator.arrivals) >= before + 16)
        assert len(seen()) == 1
