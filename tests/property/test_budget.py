"""The budget: never more than its requests in any window at IMDS, for any delays of the network."""

from __future__ import annotations

import asyncio
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imdsproxy.budget.bucket import Budget, Permit
from imdsproxy.budget.limiter import Limiter, NoPermit, Ticket
from imdsproxy.protocol.peer import Peer
from tests import virtual
from tests.size import examples

LATENCIES = st.one_of(
    st.just(0.0),
    st.floats(0.0001, 0.01),
    st.floats(0.01, 1.0),
    st.floats(1.0, 30.0),
)


async def one_request(
    limiter: Limiter, before: float, after: float, arrivals: list[float], *, background: bool = False
) -> bool:
    """Send one: it reaches IMDS after `before` seconds and is answered `after` seconds later."""
    permit = await limiter.acquire(Ticket(background=background))
    if isinstance(permit, NoPermit):
        return False
    try:
        await asyncio.sleep(before)
        arrivals.append(asyncio.get_running_loop().time())
        await asyncio.sleep(after)
    finally:
        limiter.release(permit)
    return True


def most_in_any_window(arrivals: list[float], window: float) -> int:
    """Count by brute force: a window opens at every arrival, its end excluded by a nanosecond of rounding."""
    ordered = sorted(arrivals)
    return max(
        (sum(1 for moment in ordered if begin <= moment < begin + window - 1e-9) for begin in ordered), default=0
    )


@settings(max_examples=examples(150), deadline=None)
@given(
    requests=st.integers(1, 7),
    window=st.sampled_from([0.5, 1.0, 3.0]),
    concurrent=st.one_of(st.none(), st.integers(1, 7)),
    journeys=st.lists(st.tuples(st.floats(0, 5), LATENCIES, LATENCIES, st.booleans()), min_size=1, max_size=40),
)
def test_no_window_ever_sees_more_than_the_budget(
    requests: int, window: float, concurrent: int | None, journeys: list[tuple[float, float, float, bool]]
) -> None:
    arrivals: list[float] = []

    async def scenario() -> None:
        limiter = Limiter(Budget(requests, window, concurrent), virtual.VirtualClock(), max_wait=1e9)

        async def later(start: float, before: float, after: float, *, background: bool) -> None:
            await asyncio.sleep(start)
            assert await one_request(limiter, before, after, arrivals, background=background)

        await asyncio.gather(*(later(start, before, after, background=flag) for start, before, after, flag in journeys))

    virtual.run(scenario())
    assert len(arrivals) == len(journeys), "everyone gets a turn"
    assert most_in_any_window(arrivals, window) <= requests


@settings(max_examples=examples(60), deadline=None)
@given(latency=st.sampled_from([0.0, 0.001, 0.02, 0.1, 0.5, 2.0]), seed=st.integers(0, 2**32))
def test_standing_queue_uses_nearly_the_whole_budget(latency: float, seed: int) -> None:
    chance = random.Random(seed)
    arrivals: list[float] = []

    async def scenario() -> float:
        limiter = Limiter(Budget(5, 1.0), virtual.VirtualClock(), max_wait=1e9)
        began = asyncio.get_running_loop().time()
        split = chance.random()
        await asyncio.gather(
            *(one_request(limiter, latency * split, latency * (1 - split), arrivals) for _ in range(200))
        )
        return asyncio.get_running_loop().time() - began

    took = virtual.run(scenario())
    ideal = 5 / (1 + latency)
    # The last round's rest needs no waiting for, so the count per time is a little above the standing rate.
    assert 200 / (took + 1) >= 0.95 * ideal
    assert most_in_any_window(arrivals, 1.0) <= 5


@settings(max_examples=examples(100), deadline=None)
@given(
    waiting=st.integers(1, 40),
    cancelled=st.sets(st.integers(0, 39)),
    moment=st.floats(0, 6),
)
def test_disconnecting_clients_neither_lose_nor_free_a_permit(waiting: int, cancelled: set[int], moment: float) -> None:
    arrivals: list[float] = []

    async def scenario() -> None:
        limiter = Limiter(Budget(5, 1.0), virtual.VirtualClock(), max_wait=1e9)
        tasks = [
            asyncio.get_running_loop().create_task(one_request(limiter, 0.1, 0.1, arrivals)) for _ in range(waiting)
        ]
        await asyncio.sleep(moment)
        for index in cancelled:
            if index < waiting:
                tasks[index].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(2)
        assert limiter.budget.available(asyncio.get_running_loop().time()) == 5

    virtual.run(scenario())
    assert most_in_any_window(arrivals, 1.0) <= 5


def test_clients_come_before_background_and_each_in_order_of_arrival() -> None:
    order: list[str] = []

    async def scenario() -> None:
        limiter = Limiter(Budget(1, 1.0), virtual.VirtualClock(), max_wait=1e9)

        async def one(name: str, *, background: bool) -> None:
            permit = await limiter.acquire(Ticket(background=background))
            assert isinstance(permit, Permit)
            order.append(name)
            limiter.release(permit)

        names = [("a", False), ("refresh 1", True), ("b", False), ("refresh 2", True), ("c", False)]
        await asyncio.gather(*(one(name, background=flag) for name, flag in names))

    virtual.run(scenario())
    assert order == ["a", "b", "c", "refresh 1", "refresh 2"]


def test_wait_beyond_max_wait_is_refused_at_once_with_its_length() -> None:
    async def scenario() -> list[tuple[float, int | None]]:
        loop = asyncio.get_running_loop()
        began = loop.time()
        limiter = Limiter(Budget(5, 1.0), virtual.VirtualClock(), max_wait=2.0)

        async def one() -> tuple[float, int | None]:
            got = await limiter.acquire(Ticket())
            if isinstance(got, NoPermit):
                return loop.time() - began, got.retry_after
            limiter.release(got)
            return loop.time() - began, None

        return list(await asyncio.gather(*(one() for _ in range(20))))

    results = virtual.run(scenario())
    served = [round(at, 3) for at, refused in results if refused is None]
    assert served == [0] * 5 + [1] * 5 + [2] * 5
    told = [(at, refused) for at, refused in results if refused is not None]
    assert told == [(0.0, 3)] * 5


def test_wait_longer_than_expected_ends_at_max_wait() -> None:
    async def scenario() -> tuple[float, object]:
        loop = asyncio.get_running_loop()
        limiter = Limiter(Budget(1, 1.0), virtual.VirtualClock(), max_wait=5.0)
        assert isinstance(await limiter.acquire(Ticket()), Permit)
        began = loop.time()
        result = await limiter.acquire(Ticket())  # the first one never comes back
        return loop.time() - began, result

    waited, result = virtual.run(scenario())
    assert waited == 5.0
    assert result == NoPermit(retry_after=1, timed_out=True)


def test_background_ticket_that_a_client_joins_moves_to_the_clients_queue() -> None:
    order: list[str] = []

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        limiter = Limiter(Budget(1, 1.0), virtual.VirtualClock(), max_wait=1e9)
        tickets = {name: Ticket(background=True) for name in ("one", "two", "three")}

        async def one(name: str) -> None:
            permit = await limiter.acquire(tickets[name])
            assert isinstance(permit, Permit)
            order.append(name)
            limiter.release(permit)

        tasks = [loop.create_task(one(name)) for name in tickets]
        await asyncio.sleep(0.5)
        limiter.join(tickets["three"], Peer("a"))
        limiter.join(tickets["three"], Peer("a"))
        await asyncio.gather(*tasks)

    virtual.run(scenario())
    assert order == ["one", "three", "two"]


def test_window_counter_finds_the_fullest_window() -> None:
    arrivals = [0.0, 0.2, 0.9, 1.0, 1.1]
    assert most_in_any_window(arrivals, 1.0) == 4
    assert all(a <= b for a, b in pairwise(arrivals))


@given(
    window=st.sampled_from([0.5, 1.0, 3.0]),
    throttled=st.lists(st.floats(0, 20), min_size=1, max_size=8),
    released=st.lists(st.floats(0, 40), min_size=2, max_size=8),
)
def test_permit_rests_at_least_one_window_and_longer_at_a_lower_rate(
    window: float, throttled: list[float], released: list[float]
) -> None:
    budget = Budget(1, window)
    for moment in sorted(throttled):
        budget.throttled(moment, moment, None)
    back = [budget._back_at(moment) for moment in sorted(released)]
    assert all(one <= other + 1e-9 for one, other in pairwise(back)), "the one that began first is the first back"
    for at, moment in zip(back, sorted(released), strict=True):
        assert at >= moment + window
        uncapped = budget.state.rate + 0.05 * (at - budget.state.rate_at) / window
        if at > moment + window + 1e-9:
            assert (at - moment) * uncapped == pytest.approx(window)
            assert uncapped <= 1.0 + 1e-9
        else:
            assert (at - moment) * uncapped >= window - 1e-9, "the rate was won back before its window was over"
