"""A permit that is available is taken at once, unless something waits or the endpoint gets none now."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.budget.bucket import Budget, Permit
from imdsproxy.budget.limiter import Limiter, Ticket
from imdsproxy.budget.shares import SILENCE, Recall
from imdsproxy.testing.clock import FakeClock


def ticket(kind: str, *, background: bool = False) -> Ticket:
    return Ticket(kind=kind, background=background, recall=Recall())


@pytest.mark.parametrize("background", [False, True])
def test_available_permit_is_taken_without_a_timer(background: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = Limiter(Budget(1, 1.0), FakeClock(), max_wait=10.0)

    async def steps() -> tuple[object, int]:
        timers: list[object] = []
        monkeypatch.setattr(asyncio.get_running_loop(), "call_later", lambda *timer: timers.append(timer))
        permit = await limiter.acquire(ticket("instance", background=background))
        return permit, len(timers)

    permit, timers = asyncio.run(steps())
    assert isinstance(permit, Permit)
    assert timers == 0


def test_hanging_endpoint_that_holds_its_share_waits_though_a_permit_is_available() -> None:
    clock = FakeClock()
    limiter = Limiter(Budget(2, 1.0), clock, max_wait=10.0)

    async def steps() -> tuple[bool, object]:
        await limiter.acquire(ticket("instance"))
        clock.advance(SILENCE)
        waiting = asyncio.ensure_future(limiter.acquire(ticket("instance")))
        await asyncio.sleep(0)
        others = await limiter.acquire(ticket("token"))
        waits = not waiting.done()
        waiting.cancel()
        return waits, others

    waits, others = asyncio.run(steps())
    assert waits
    assert isinstance(others, Permit)


def test_request_that_arrives_later_does_not_overtake_one_that_waits() -> None:
    clock = FakeClock()
    limiter = Limiter(Budget(1, 1.0), clock, max_wait=10.0)

    async def steps() -> list[str]:
        order: list[str] = []

        async def ask(name: str) -> None:
            permit = await limiter.acquire(ticket("instance"))
            assert isinstance(permit, Permit)
            order.append(name)
            limiter.release_unused(permit)

        held = await limiter.acquire(ticket("instance"))
        assert isinstance(held, Permit)
        first = asyncio.ensure_future(ask("first"))
        await asyncio.sleep(0)
        limiter.release(held)
        clock.advance(1.0)  # the permit is back, and the timer of the one that waits has not fired yet
        await asyncio.gather(first, ask("second"))
        return order

    assert asyncio.run(steps()) == ["first", "second"]
