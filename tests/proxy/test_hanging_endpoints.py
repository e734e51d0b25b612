"""An endpoint that hangs delays another by about one window, not by its read timeout."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from imdsproxy.protocol.messages import Failure, Headers, Response
from imdsproxy.protocol.peer import Peer
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import SLOW, Imds, Stage
from tests.size import size
from tests.targets import EVENTS, TOKEN, VERSIONS

# Measuring coverage would triple its time, and other tests reach the same branches.
pytestmark = [pytest.mark.any_python, pytest.mark.no_cover]

READ_TIMEOUT = 30.0


@dataclass
class Hanging(Imds):
    """Answers everything soon, but for targets in which this stands."""

    hangs: str = ""

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        hangs = self.hangs in target.decode()
        self.latency = (130.0 if slow else READ_TIMEOUT) if hangs else 0.02
        answer = await super().send(method, target, headers, body, slow=slow)
        return SLOW if hangs else answer


def leaf(number: int) -> str:
    return f"/metadata/instance/compute/tagsList/{number}?api-version=2021-02-01"


def balancer(number: int) -> str:
    return f"/metadata/loadbalancer?api-version=2020-10-01&x={number}"


async def poll_for_ever(stage: Stage, target: str, client: str | Peer = "10.0.0.9") -> None:
    while True:
        await stage.get(target, client=client)
        await asyncio.sleep(0.1)


async def end(stage: Stage, pollers: list[asyncio.Task[None]]) -> None:
    for task in pollers:
        task.cancel()
    await asyncio.gather(*pollers, return_exceptions=True)
    await stage.proxy.fetches.close()


def network(number: int) -> str:
    return f"/metadata/instance/network?api-version=2021-02-01&x={number}"


@pytest.mark.parametrize("budget", [2, 3, 5, 20])
@pytest.mark.parametrize("hanging", [balancer, network])
@pytest.mark.parametrize("client", ["10.0.0.9", "10.0.0.8"], ids=["same client", "another"])
def test_hanging_endpoint_delays_a_miss_elsewhere_by_about_one_window(
    budget: int, hanging: Callable[[int], str], client: str
) -> None:
    waits: list[float] = []

    async def scenario() -> None:
        stage = Stage(Hanging(hangs=hanging(0).partition("?")[0]), budget_requests=budget)
        loop = asyncio.get_running_loop()
        pollers = [loop.create_task(poll_for_ever(stage, hanging(number))) for number in range(budget + 1)]
        await asyncio.sleep(3.0)
        for number in range(60):
            began = stage.now
            assert (await stage.get(leaf(number), client=client)).outcome is Outcome.MISS
            waits.append(stage.now - began)
            await asyncio.sleep(1.3)
        await end(stage, pollers)

    virtual.run(scenario())
    assert max(waits) <= 1.1
    assert sorted(waits)[len(waits) // 2] <= 0.1, "only the first has to wait"


def test_with_a_budget_of_one_a_request_waits_for_the_hanging_one() -> None:
    async def scenario() -> None:
        stage = Stage(Hanging(hangs="loadbalancer"), budget_requests=1, max_wait=100.0)
        hung = stage.start(balancer(1))
        await asyncio.sleep(1.0)
        began = stage.now
        await stage.get(leaf(1))
        assert stage.now - began >= READ_TIMEOUT - 1
        hung.cancel()
        await stage.proxy.fetches.close()

    virtual.run(scenario())


def test_slow_endpoint_has_all_permits_while_no_other_waits() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(latency=3.0))
        asked = [stage.start(leaf(number)) for number in range(5)]
        await asyncio.sleep(2.0)
        assert stage.imds.under_way == 5
        await asyncio.gather(*asked)
        assert stage.imds.count == 5

    virtual.run(scenario())


def test_recalled_request_is_sent_again_and_answered() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(latency=3.0))
        asked = [stage.start(leaf(number), client=str(number)) for number in range(5)]
        await asyncio.sleep(1.5)
        stage.imds.latency = 0.02
        assert (await stage.get("/metadata/versions", client="b")).outcome is Outcome.MISS
        assert {served.response.status for served in await asyncio.gather(*asked)} == {200}
        assert stage.imds.count == 5 + 1 + 1

    virtual.run(scenario())


def test_request_recalled_twice_fails() -> None:
    async def scenario() -> None:
        stage = Stage(Hanging(hangs=JUNK), budget_requests=2)
        began = stage.now
        hung = stage.start(EVENTS + JUNK, client="10.0.0.9")
        poller = asyncio.get_running_loop().create_task(poll_for_ever(stage, EVENTS, USUAL))
        served = await hung
        assert (served.response.status, served.outcome) == (504, Outcome.ERROR)
        assert b"others waited" in served.response.body
        assert stage.now - began < 15
        assert sum(JUNK in sent.target for sent in stage.imds.sent) == 2
        await end(stage, [poller])

    virtual.run(scenario())


@dataclass
class Stalled(Imds):
    """Accepts requests and reads none before `reads_from`, then all of them, given up ones too."""

    reads_from: float = 0.0
    read_at: list[float] = field(default_factory=list)

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        now = asyncio.get_running_loop().time()
        self.latency = max(0.0, self.reads_from - now) + 0.02
        self.read_at.append(max(now, self.reads_from))
        return await super().send(method, target, headers, body, slow=slow)


def test_stalled_imds_gets_one_request_more_than_the_budget() -> None:
    async def scenario() -> None:
        imds = Stalled()
        stage = Stage(imds)
        imds.reads_from = stage.now + 9.0
        asked = [stage.start(balancer(number)) for number in range(6)]
        await asyncio.sleep(2.0)
        asked += [stage.start(leaf(number)) for number in range(3)]
        asked += [stage.start(TOKEN), stage.start(VERSIONS), stage.start(EVENTS)]
        await asyncio.gather(*asked)
        assert imds.read_at.count(imds.reads_from) == 5 + 1

    virtual.run(scenario())


def test_request_that_is_sent_once_is_never_recalled() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(latency=5.0), max_wait=100.0)
        posts = [
            stage.start(f"/metadata/identity/issuecredential?cred-api-version=2.0&x={number}", method="POST")
            for number in range(5)
        ]
        await asyncio.sleep(2.0)
        assert stage.imds.under_way == 2, "so it keeps to its half even while nothing else waits"
        assert (await stage.get(leaf(1))).response.status == 200
        assert {served.response.status for served in await asyncio.gather(*posts)} == {200}
        assert stage.imds.count == 6

    virtual.run(scenario())


def test_requests_to_a_hanging_endpoint_are_not_ahead_of_others() -> None:
    async def scenario() -> None:
        stage = Stage(Hanging(hangs="loadbalancer"))
        hung = [stage.start(balancer(number), client=f"10.0.1.{number}") for number in range(1, 200)]
        await asyncio.sleep(2.0)
        began = stage.now
        assert (await stage.get(leaf(1), client="10.0.0.8")).outcome is Outcome.MISS
        assert stage.now - began <= 1.1
        for task in hung:
            task.cancel()
        await stage.proxy.fetches.close()

    virtual.run(scenario())


JUNK = "&junk="
USUAL = Peer(user=1000, process=5)


@pytest.mark.attack(18)
@pytest.mark.parametrize("requests", [2, 5])
@pytest.mark.parametrize(
    "attacker",
    [Peer(user=1001, process=7), USUAL, Peer(address="127.0.0.9")],
    ids=["another user", "the same client", "loopback"],
)
def test_unusual_scheduled_events_targets_do_not_block_polls_of_another_client(requests: int, attacker: Peer) -> None:
    async def scenario() -> None:
        stage = Stage(Hanging(hangs=JUNK), budget_requests=requests)
        loop = asyncio.get_running_loop()
        pollers = [loop.create_task(poll_for_ever(stage, f"{EVENTS}{JUNK}{number}", attacker)) for number in range(40)]
        await asyncio.sleep(5.0)
        for _ in range(size(short=4, full=25)):
            began = stage.now
            assert (await stage.get(EVENTS, client=USUAL)).response.status == 200
            assert stage.now - began <= 3.0, "one request's silence, and a round"
            await asyncio.sleep(1.1)
        await end(stage, pollers)

    virtual.run(scenario())


def test_client_with_several_slow_places_yields_one_to_a_client_with_none() -> None:
    async def scenario() -> None:
        stage = Stage(Hanging(hangs="version=2017"))
        held = [
            stage.start(f"/metadata/scheduledevents?api-version={version}", client=Peer(user=1, process=number))
            for number, version in enumerate(("2017-03-01", "2017-08-01", "2017-11-01"))
        ]
        await asyncio.sleep(2.0)
        began = stage.now
        assert (await stage.get(EVENTS, client=Peer(user=2, process=9))).response.status == 200
        assert stage.now - began <= 2.1
        for task in held:
            task.cancel()
        await stage.proxy.fetches.close()

    virtual.run(scenario())
