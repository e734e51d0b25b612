"""While one fetch probes, the others wait for it, but not for ever."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.budget.limiter import Ticket
from imdsproxy.protocol.failures import FailureRules, Verdict
from imdsproxy.protocol.messages import Request, Response, Target
from imdsproxy.protocol.peer import UNKNOWN
from imdsproxy.protocol.target import read_target
from imdsproxy.upstream import probe_wait
from imdsproxy.upstream.collapsing import CollapsedFetch
from imdsproxy.upstream.health import Health
from imdsproxy.upstream.probe_wait import ProbeWait
from tests import virtual

LIMIT = 70.0


def judged(status: int) -> Verdict:
    target = read_target(b"/metadata/versions")
    assert isinstance(target, Target)
    return FailureRules().judge(Request("GET", target), Response(status, (), b'{"apiVersions":["2021-02-01"]}'))


def new_fetch() -> CollapsedFetch[None]:
    return CollapsedFetch(None, Ticket(UNKNOWN, "versions"))


class Outage:
    """IMDS has just answered 410, and one fetch probes."""

    def __init__(self) -> None:
        self.clock = virtual.VirtualClock()
        self.health = Health()
        self.waits = ProbeWait(self.health, self.clock, LIMIT)
        self.began = self.clock.monotonic()
        self.probe = new_fetch()
        self.health.learn(self.probe, judged(410), self.began)

    def start(self, fetch: CollapsedFetch[None]) -> asyncio.Task[Verdict | None]:
        return asyncio.create_task(self.waits.wait(fetch, self.began))

    def elapsed(self) -> float:
        return self.clock.monotonic() - self.began


def test_probe_itself_does_not_wait() -> None:
    async def scenario() -> None:
        outage = Outage()
        assert await outage.waits.wait(outage.probe, outage.began) is None
        assert outage.elapsed() == 0

    virtual.run(scenario())


def test_others_wait_until_imds_answers_and_their_clients_can_be_served_stale_meanwhile() -> None:
    async def scenario() -> None:
        outage, other = Outage(), new_fetch()
        waiting = outage.start(other)
        await asyncio.sleep(30)
        assert not waiting.done()
        assert other.attempt_failed
        outage.health.learn(outage.probe, judged(200), outage.clock.monotonic())
        outage.waits.wake()
        assert await waiting is None
        assert outage.elapsed() == 30

    virtual.run(scenario())


def test_waiting_fetch_becomes_the_probe_when_the_probe_leaves() -> None:
    async def scenario() -> None:
        outage = Outage()
        waiting = [outage.start(new_fetch()) for _ in range(3)]
        await asyncio.sleep(1)
        assert outage.health.leave(outage.probe)
        outage.waits.wake()
        await asyncio.sleep(1)
        assert sorted(task.done() for task in waiting) == [False, False, True]
        for task in waiting:
            task.cancel()

    virtual.run(scenario())


def test_410_is_passed_on_once_the_limit_is_over() -> None:
    async def scenario() -> None:
        outage = Outage()
        passed_on = await outage.start(new_fetch())
        assert passed_on is outage.health.gone is not None
        assert outage.elapsed() == LIMIT

    virtual.run(scenario())


def test_410_is_passed_on_at_once_where_too_many_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_wait, "_MOST_WAITING", 2)

    async def scenario() -> None:
        outage = Outage()
        waiting = [outage.start(new_fetch()) for _ in range(2)]
        await asyncio.sleep(1)
        assert await outage.start(new_fetch()) is outage.health.gone is not None
        assert outage.elapsed() == 1
        waiting.pop().cancel()
        await asyncio.sleep(0)
        again = outage.start(new_fetch())
        await asyncio.sleep(1)
        assert not again.done(), "the place of one that left is free"
        for task in (*waiting, again):
            task.cancel()

    virtual.run(scenario())
