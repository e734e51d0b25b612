"""Machines that begin together refresh apart, and serve nothing older for it."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.protocol.messages import Response
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import DOWN, Imds, Stage, in_turn, ok, token
from tests.targets import INSTANCE, TOKEN, VERSIONS

NODES = 50


def nodes(answer: Response, *, spread: bool = True) -> list[Stage]:
    return [Stage(Imds(lambda _sent: answer), seed=b"node %d" % each if spread else b"") for each in range(NODES)]


async def refreshes(stages: list[Stage], target: str, every: float, until: float) -> list[float]:
    """Ask each node in turn, closer together near the end; return when each asked IMDS for the second time."""
    clock, began = stages[0], stages[0].now
    while (gone := clock.now - began) < until:
        for stage in stages:
            record = await stage.get(target)
            assert record.outcome in {Outcome.MISS, Outcome.HIT, Outcome.STALE}
        await asyncio.sleep(every if gone > 0.86 * until else until / 50)
    return [stage.imds.times()[1] - stage.imds.times()[0] for stage in stages]


@pytest.mark.parametrize(
    ("target", "answer", "fresh", "every"), [(INSTANCE, ok("{}"), 60, 0.1), (TOKEN, token(86_400), 3600, 5)]
)
def test_nodes_that_began_together_refresh_apart_and_never_later(
    target: str, answer: Response, fresh: float, every: float
) -> None:
    async def measure() -> tuple[list[float], list[float]]:
        together = await refreshes(nodes(answer, spread=False), target, every, fresh + 3 * every)
        return together, await refreshes(nodes(answer), target, every, fresh + 3 * every)

    together, apart = virtual.run(measure())
    assert max(together) - min(together) < every
    assert max(apart) <= max(together)
    assert min(apart) >= 0.9 * fresh
    tenths = [int((at / fresh - 0.9) * 100) for at in apart]
    assert len(set(tenths)) >= 8, tenths
    assert max(map(tenths.count, tenths)) <= NODES / 3, tenths


def test_early_refresh_is_one_request_and_clients_get_hits_meanwhile() -> None:
    async def ask() -> None:
        stage = Stage(Imds(latency=2.0), seed=b"1")
        await stage.get()
        entry = stage.proxy.store.get(stage.request().target.key)
        assert entry is not None
        await asyncio.sleep(entry.refresh_from - stage.now)
        assert entry.fresh_until - stage.now > 1
        records = [await stage.get() for _ in range(5)]
        assert {record.outcome for record in records} == {Outcome.HIT}
        assert stage.proxy.fresh_hit(stage.request(), stage.now) is not None  # the fast path answers again
        await asyncio.sleep(2.1)
        assert stage.imds.count == 2
        assert (await stage.get()).age == 2

    virtual.run(ask())


def test_failed_early_refresh_is_paused_and_the_entry_stays_fresh() -> None:
    async def ask() -> None:
        stage = Stage(Imds(in_turn(ok(), DOWN)), seed=b"1", retry_max=0)
        await stage.get()
        entry = stage.proxy.store.get(stage.request().target.key)
        assert entry is not None
        await asyncio.sleep(entry.refresh_from - stage.now)
        for _ in range(3):
            assert (await stage.get()).outcome is Outcome.HIT
            await asyncio.sleep(0.01)
        assert stage.imds.count == 2
        assert stage.proxy.fresh_hit(stage.request(), stage.now) is not None

    virtual.run(ask())


def test_answer_that_no_refresh_renews_in_the_background_keeps_its_whole_lifetime() -> None:
    async def ask() -> None:
        stage = Stage(Imds(), seed=b"1")
        await stage.get(VERSIONS)
        await asyncio.sleep(3599.9)
        assert (await stage.get(VERSIONS)).outcome is Outcome.HIT
        assert stage.imds.count == 1

    virtual.run(ask())
