"""Who is next: a flood of one kind delays another kind by a turn, not by the whole flood."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.admission import Admission, Ticket
from imdsproxy.budget import Budget
from imdsproxy.served import Outcome
from tests import virtual
from tests.scripted import EVENTS, TOKEN, Imds, Stage, token


def leaf(number: int) -> str:
    return f"/metadata/instance/compute/tagsList/{number}?api-version=2021-02-01"


def test_a_token_does_not_wait_behind_a_flood_of_questions_about_the_instance() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda sent: token(86400)))
        flood = [stage.start(leaf(number)) for number in range(500)]
        await asyncio.sleep(0.5)
        assert sum(task.done() and task.result().outcome is Outcome.REFUSED for task in flood) > 400
        began = stage.now
        assert (await stage.get(TOKEN)).response.status == 200
        assert stage.now - began <= 1.0

    virtual.run(scenario())


def test_shares_take_turns_and_each_keeps_its_order() -> None:
    order: list[str] = []

    async def scenario() -> None:
        admission = Admission(Budget(1, 1.0), virtual.VirtualClock(), max_wait=100)

        async def one(name: str) -> None:
            taken_at = await admission.enter(Ticket(background=False, share=name[0]))
            assert isinstance(taken_at, float)
            order.append(name)
            admission.leave(taken_at)

        await asyncio.gather(*map(one, ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]))

    virtual.run(scenario())
    assert order == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


@pytest.mark.parametrize(
    ("waiting", "share", "seconds"),
    [("", "a", 1), ("aaa", "a", 4), ("aaa", "b", 2), ("aaab", "b", 4), ("aabbcc", "d", 4), ("abc", "a", 4)],
)
def test_the_wait_that_is_expected_is_the_wait_that_comes(waiting: str, share: str, seconds: int) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        admission = Admission(Budget(1, 1.0), virtual.VirtualClock(), max_wait=100)

        async def one(name: str) -> float:
            began = loop.time()
            taken_at = await admission.enter(Ticket(background=False, share=name))
            assert isinstance(taken_at, float)
            admission.leave(taken_at)
            return loop.time() - began

        await one("first")
        others = [loop.create_task(one(name)) for name in waiting]
        await asyncio.sleep(0)
        ahead = admission._waiting.ahead_of_new(share)
        assert admission.budget.expected_wait(ahead, loop.time()) == pytest.approx(seconds)
        assert await one(share) == pytest.approx(seconds)
        await asyncio.gather(*others)

    virtual.run(scenario())


def test_slow_scheduled_events_leave_tokens_to_the_others() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda sent: token(86400)), max_wait=2.0)
        stage.imds.latency = 120.0
        events = [stage.start(f"{EVENTS}&x={number}") for number in range(5)]
        await asyncio.sleep(1)
        assert stage.imds.under_way == 2
        stage.imds.latency = 0.0
        assert (await stage.get(TOKEN)).response.status == 200
        for task in events:
            task.cancel()
        await stage.proxy.flights.close()

    virtual.run(scenario())


@pytest.mark.parametrize("cancelled_first", [True, False])
@pytest.mark.parametrize("background", [True, False])
def test_a_turn_that_comes_in_the_moment_of_hanging_up_goes_to_the_next(
    cancelled_first: bool, background: bool
) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        admission = Admission(Budget(1, 1.0), virtual.VirtualClock(), max_wait=100)
        taken_at = await admission.enter(Ticket(background=False))
        assert isinstance(taken_at, float)
        gone = loop.create_task(admission.enter(Ticket(background=background)))
        following = loop.create_task(admission.enter(Ticket(background=True)))
        await asyncio.sleep(0)
        if cancelled_first:
            gone.cancel()
        admission.forgo()  # the one token is there again, and handed out at once
        if not cancelled_first:
            gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert await following == loop.time()
        admission.forgo()
        assert admission.budget.available(loop.time()) == 1

    virtual.run(scenario())
