"""The fair semaphore. Its effect on clients is tested in `tests/proxy/test_turns.py`."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.budget.fair_semaphore import FairSemaphore, Place
from imdsproxy.budget.shares import SILENCE, Recall
from imdsproxy.budget.turns import turn_of
from imdsproxy.protocol.peer import Peer
from tests import virtual

MOST = 256
Waits = list[asyncio.Task[bool]]


def place(user: int, *, usual: bool = True, recall: Recall | None = None) -> Place:
    return Place(turn_of(Peer(user=user)), usual, recall or Recall())


async def wait(places: FairSemaphore, *wanted: Place) -> Waits:
    """Queue these, in this order."""
    tasks = [asyncio.get_running_loop().create_task(places.acquire(each, 100)) for each in wanted]
    await asyncio.sleep(0)
    return tasks


def turned_away(tasks: Waits) -> list[int]:
    return [number for number, task in enumerate(tasks) if task.done() and not task.result()]


async def taken(clients: int, each: int) -> tuple[FairSemaphore, Waits]:
    """Return a semaphore without a free place, for which so many clients have so many waits."""
    places = FairSemaphore(1, virtual.VirtualClock())
    assert await places.acquire(place(-1), 1)
    return places, await wait(places, *(place(user, usual=False) for user in range(clients) for _ in range(each)))


def test_of_too_many_waits_the_newest_of_the_client_with_most_gives_way() -> None:
    async def scenario() -> None:
        places, flood = await taken(32, 8)
        assert not turned_away(flood), "as many as may wait"
        others = await wait(places, *(place(user) for user in range(100, 140)))
        assert not turned_away(others)
        await asyncio.sleep(0)
        gone = turned_away(flood)
        assert len(gone) == 40
        assert {number % 8 for number in gone} == {7, 6}, "each client's newest, one after another"

    virtual.run(scenario())


def test_client_with_the_most_waits_displaces_no_other() -> None:
    async def scenario() -> None:
        places, flood = await taken(MOST, 1)
        greedy = await wait(places, *(place(1000, usual=False) for _ in range(8)))
        assert turned_away(greedy) == list(range(8))
        assert not turned_away(flood)

    virtual.run(scenario())


def test_usual_target_displaces_an_unusual_one_of_a_client_with_as_many() -> None:
    async def scenario() -> None:
        places, flood = await taken(MOST, 1)
        assert not turned_away(await wait(places, place(1000)))
        await asyncio.sleep(0)
        assert turned_away(flood) == [MOST - 1]

    virtual.run(scenario())


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_wait_that_gives_way_in_the_moment_of_its_cancellation_is_over(cancelled_first: bool) -> None:
    async def scenario() -> None:
        places, flood = await taken(32, 8)
        if cancelled_first:
            flood[-1].cancel()
        new = asyncio.get_running_loop().create_task(places.acquire(place(1000), 100))
        if not cancelled_first:
            await asyncio.sleep(0)
            flood[-1].cancel()
        with pytest.raises(asyncio.CancelledError):
            await flood[-1]
        assert not new.done()
        assert not turned_away(flood[:-1])

    virtual.run(scenario())


def test_request_that_may_not_be_recalled_yet_is_tried_again() -> None:
    async def scenario() -> None:
        ended: list[Recall] = []
        allowed = False

        def recall(one: Recall) -> bool:
            if allowed:
                ended.append(one)
            return allowed

        places = FairSemaphore(2, virtual.VirtualClock(), recall)
        held = [place(1, usual=False), place(1, usual=False)]
        for each in held:
            assert await places.acquire(each, 1)
            await asyncio.sleep(SILENCE / 2)
        (waiting,) = await wait(places, place(2))
        await asyncio.sleep(SILENCE * 5)
        assert ended == []
        allowed = True
        await asyncio.sleep(SILENCE / 2)
        assert ended == [held[1].recall], "one at a time, and the newest"
        places.release(held[1])
        assert await waiting

    virtual.run(scenario())


def test_request_that_is_long_under_way_is_recalled_though_a_newer_one_is_not() -> None:
    async def scenario() -> None:
        ended: list[int] = []
        places = FairSemaphore(2, virtual.VirtualClock())
        recalls = [Recall(lambda number=number: ended.append(number)) for number in range(2)]  # type: ignore[misc]
        held = [place(1, usual=False, recall=recall) for recall in recalls]
        assert await places.acquire(held[0], 1)
        await asyncio.sleep(SILENCE)
        assert await places.acquire(held[1], 1)
        await wait(places, place(2))
        assert ended == [0]

    virtual.run(scenario())
