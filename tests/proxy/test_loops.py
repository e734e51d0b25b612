"""A loop of the upstream to the proxy itself: it is reported and takes no permit."""

from __future__ import annotations

import asyncio
import logging

import pytest

from imdsproxy.protocol.messages import Failure, FailureKind
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import Imds, Stage, in_turn, ok, status
from tests.targets import INSTANCE, TOKEN

LOOP = Failure(FailureKind.LOOP, "The rule lacks `meta skuid != 990`.", sent=False)


@pytest.mark.attack(12)
def test_loop_is_refused_at_once_and_takes_no_permit() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: LOOP))
        began = stage.now
        for number in range(50):
            served = await stage.get(f"/metadata/instance/compute/tagsList/{number}?api-version=2021-02-01")
            assert (served.response.status, served.outcome, served.detail) == (508, Outcome.ERROR, "loop")
        assert stage.now == began, "no request waits for a permit"
        assert stage.tokens() == 5
        await asyncio.sleep(600)
        assert stage.imds.count == 50, "one each: nothing is tried again"

    virtual.run(scenario())


def test_loop_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: LOOP))
        for _ in range(119):
            await stage.get()
            await asyncio.sleep(1)

    with caplog.at_level(logging.INFO):
        virtual.run(scenario())
    assert [record.getMessage() for record in caplog.records] == ["the way to IMDS leads back to this proxy"] * 2
    assert caplog.records[0].__dict__["fields"] == {"because": LOOP.description}


def test_stored_answers_are_served_during_a_loop_and_its_end_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(ok("old"), LOOP, ok("new"))))
        await stage.get()
        await asyncio.sleep(200)
        served = await stage.get()
        assert (served.response.body, served.outcome) == (b"old", Outcome.STALE)
        await asyncio.sleep(10)
        await stage.get()
        await asyncio.sleep(1)
        assert (await stage.get()).response.body == b"new"
        assert (await stage.get(TOKEN)).response.status == 200

    virtual.run(scenario())


def test_loop_does_not_change_the_health_of_imds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(LOOP, status(501))))
        assert (await stage.get()).response.status == 508
        assert stage.proxy.fetcher.trouble == LOOP.description
        assert (await stage.get()).response.status == 501

    with caplog.at_level(logging.WARNING):
        virtual.run(scenario())
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]


@pytest.mark.parametrize("target", [INSTANCE, TOKEN])
def test_collapsed_clients_get_the_loop_together(target: str) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: LOOP, latency=0.1))
        served = await stage.many(100, target)
        assert {one.response.status for one in served} == {508}
        assert stage.imds.count == 1

    virtual.run(scenario())
