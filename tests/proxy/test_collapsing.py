"""Collapsed fetches: one fetch for all clients of a target, also if they disconnect."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, NoReturn

import pytest

from imdsproxy.protocol.messages import Failure, FailureKind
from imdsproxy.records import Outcome, RequestRecord
from imdsproxy.upstream.collapsing import CollapsedFetch, CollapsedFetches
from tests import virtual
from tests.scripted import Imds, Stage, in_turn, status
from tests.targets import EVENTS, INSTANCE

NONCE = "/metadata/attested/document?api-version=2020-09-01&nonce=1234567890"


def test_five_hundred_identical_requests_make_one_upstream_request() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(latency=0.2))
        served = await stage.many(500)
        assert stage.imds.count == 1
        assert [one.outcome for one in served].count(Outcome.MISS) == 1
        assert [one.outcome for one in served].count(Outcome.COLLAPSED) == 499
        assert served[1].cache_status() == b"imdsproxy; fwd=uri-miss; fwd-status=200; ttl=59; stored; collapsed"

    virtual.run(scenario())


def test_client_that_joined_a_fetch_gets_its_result_even_if_it_ends_before_the_client_waits() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(latency=0.2))
        leader = stage.start()
        await asyncio.sleep(0.1)
        late = stage.proxy.answer(stage.request())
        assert not isinstance(late, RequestRecord)
        await leader
        stage.proxy.drop()
        assert (await late).outcome is Outcome.COLLAPSED
        assert stage.imds.count == 1

    virtual.run(scenario())


def test_sixty_targets_at_once_take_eleven_seconds_at_five_a_second() -> None:
    async def scenario() -> None:
        stage = Stage(max_wait=30.0)
        began = stage.now
        targets = [f"/metadata/instance/compute/tagsList/{n}?api-version=2021-02-01" for n in range(60)]
        served = await asyncio.gather(*(stage.start(target) for target in targets))
        assert {one.response.status for one in served} == {200}
        assert stage.now - began == pytest.approx(11)
        times = stage.imds.times()
        assert max(sum(begin <= at < begin + 1 - 1e-9 for at in times) for begin in times) == 5

    virtual.run(scenario())


def test_request_that_would_wait_beyond_max_wait_is_refused_at_once() -> None:
    async def scenario() -> None:
        stage = Stage()
        began = stage.now
        targets = [f"/metadata/instance/compute/tagsList/{n}?api-version=2021-02-01" for n in range(70)]
        tasks = [stage.start(target) for target in targets]
        await asyncio.sleep(0)
        await asyncio.sleep(0.01)
        refused = [task.result() for task in tasks if task.done() and task.result().outcome is Outcome.REFUSED]
        assert len(refused) == 15
        assert stage.now - began == pytest.approx(0.01)
        one = refused[0]
        assert one.response.status == 429
        assert 11 <= int(one.response.header(b"retry-after") or 0) <= 13
        assert one.cache_status() == b"imdsproxy; detail=budget"
        assert {(await task).response.status for task in tasks} == {200, 429}

    virtual.run(scenario())


def test_fetch_of_a_stored_answer_continues_after_its_clients_disconnect() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(latency=5.0))
        tasks = [stage.start() for _ in range(10)]
        await asyncio.sleep(1)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(1)
        back = stage.start()
        await asyncio.sleep(3.5)
        assert (await back).outcome is Outcome.COLLAPSED
        assert (await stage.get()).outcome is Outcome.HIT
        assert stage.imds.count == 1

    virtual.run(scenario())


def test_disconnected_client_does_not_end_the_fetch_of_others() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(latency=1.0))
        leader, follower = stage.start(), stage.start()
        await asyncio.sleep(0.5)
        leader.cancel()
        assert (await follower).response.status == 200

    virtual.run(scenario())


class TestFetchForOneClient:
    def test_leaves_the_queue_when_its_client_disconnects(self) -> None:
        async def scenario() -> None:
            stage = Stage(budget_requests=1)
            await stage.get()
            waiting = stage.start(NONCE)
            await asyncio.sleep(0.1)
            waiting.cancel()
            await asyncio.sleep(5)
            assert stage.imds.count == 1
            assert len(stage.proxy.fetches) == 0
            assert stage.tokens() == 1

        virtual.run(scenario())

    def test_completes_its_request_at_imds_without_a_retry(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(status(500)), latency=1.0))
            asking = stage.start(NONCE)
            await asyncio.sleep(0.5)
            asking.cancel()
            await asyncio.sleep(30)
            assert stage.imds.count == 1
            assert stage.imds.under_way == 0
            assert len(stage.proxy.fetches) == 0

        virtual.run(scenario())

    def test_ends_between_two_attempts(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(status(500))))
            asking = stage.start(NONCE)
            await asyncio.sleep(1.5)
            assert stage.imds.count == 2
            asking.cancel()
            await asyncio.sleep(30)
            assert stage.imds.count == 2

        virtual.run(scenario())

    def test_post_at_imds_still_drops_the_entries(self) -> None:
        async def scenario() -> None:
            stage = Stage(ttl=(("/metadata/scheduledevents", 1000.0),))
            await stage.get(EVENTS)
            stage.imds.latency = 1.0
            posting = stage.start(EVENTS, method="POST", body=b"{}")
            await asyncio.sleep(0.5)
            posting.cancel()
            await asyncio.sleep(1)
            assert (await stage.get(EVENTS)).outcome is Outcome.MISS

        virtual.run(scenario())


class TestBackgroundRefresh:
    def test_takes_a_permit_only_if_no_client_waits(self) -> None:
        async def scenario() -> None:
            stage = Stage(budget_requests=1)
            await stage.get()
            await asyncio.sleep(61)
            await stage.get("/metadata/versions")  # spends the token
            assert (await stage.get()).outcome is Outcome.STALE
            waiting = [stage.start(f"/metadata/instance/network/{n}?api-version=2021-02-01") for n in range(3)]
            await asyncio.gather(*waiting)
            await asyncio.sleep(1.1)
            assert [sent.target.split("?")[0].rsplit("/", 1)[1] for sent in stage.imds.sent] == [
                *("instance", "versions", "0", "1", "2", "instance")
            ]

        virtual.run(scenario())

    def test_has_a_clients_priority_once_a_client_waits_for_it(self) -> None:
        async def scenario() -> None:
            stage = Stage(budget_requests=1, max_wait=100.0, stale_after=100.0)
            await stage.get()
            await asyncio.sleep(119)
            await stage.get("/metadata/versions")
            await stage.get()  # begins the renewal, behind everyone
            others = [stage.start(f"/metadata/instance/network/{n}?api-version=2021-02-01") for n in range(10)]
            await asyncio.sleep(2)  # past the time for background renewal
            began = stage.now
            joined = await stage.get()
            assert joined.outcome is Outcome.COLLAPSED
            assert stage.now - began <= 10
            await asyncio.gather(*others)

        virtual.run(scenario())

    def test_runs_once_for_any_number_of_stale_answers(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(latency=1.0))
            await stage.get()
            await asyncio.sleep(61)
            assert {one.outcome for one in await stage.many(100)} == {Outcome.STALE}
            await asyncio.sleep(2)
            assert stage.imds.count == 2

        virtual.run(scenario())


def test_fetch_that_raises_is_answered_with_500(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        stage = Stage()

        async def broken(*_: object, **__: object) -> object:
            raise ZeroDivisionError

        stage.proxy.fetcher._upstream.send = broken  # type: ignore[assignment,method-assign]
        served = await stage.get()
        assert (served.response.status, served.outcome, served.detail) == (500, Outcome.ERROR, "internal-error")
        del stage.proxy.fetcher._upstream.send
        await asyncio.sleep(1)
        assert (await stage.get()).response.status == 200, "and nothing stays behind"

    with caplog.at_level(logging.ERROR):
        virtual.run(scenario())
    assert "a fetch failed" in caplog.text


def test_shutdown_answers_the_waiting_clients() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(latency=100.0))
        waiting = stage.start()
        await asyncio.sleep(1)
        await stage.proxy.fetches.close()
        assert (await waiting).detail == "internal-error"

    virtual.run(scenario())


def test_finished_fetch_is_removed_only_if_it_is_still_listed() -> None:
    async def scenario() -> None:
        fetches = CollapsedFetches[None]()
        gates = [asyncio.Event(), asyncio.Event()]
        key = (Stage().request(INSTANCE).target.key, "")

        def held(gate: asyncio.Event) -> object:
            async def one(_fetch: CollapsedFetch[None]) -> Failure:
                await gate.wait()
                return Failure(FailureKind.RESET, "")

            return one

        first = fetches.start(key, held(gates[0]))  # type: ignore[arg-type]
        fetches.forget(lambda _key: True)
        second = fetches.start(key, held(gates[1]))  # type: ignore[arg-type]
        gates[0].set()
        await first.future
        assert fetches.under_way(key) is second
        assert (first.keeps, second.keeps) == (False, True)
        gates[1].set()
        await second.future
        assert fetches.under_way(key) is None

    virtual.run(scenario())


def test_fetch_cancelled_before_its_first_step_still_gets_a_result() -> None:
    async def scenario() -> None:
        stage = Stage()
        waiting = stage.proxy.answer(stage.request())
        assert not isinstance(waiting, RequestRecord)
        await stage.proxy.fetches.close()
        assert (await waiting).detail == "internal-error"
        assert stage.imds.count == 0

    virtual.run(scenario())


class Unsearchable(dict[Any, Any]):
    """A dict of which nothing is found but by its key."""

    def __iter__(self) -> NoReturn:
        raise AssertionError("the whole dict was iterated")

    items = values = keys = __iter__


def test_removing_a_disconnected_client_searches_no_others() -> None:
    async def scenario() -> None:
        stage = Stage(upstream="unix:/run/stuck")
        stage.imds.latency = 1e6
        asked = [stage.start(f"/metadata/reprovisiondata?x={number}") for number in range(600)]
        await asyncio.sleep(1)
        fetches = stage.proxy.fetches
        assert len(fetches) == 600
        known, fetches._tasks = fetches._tasks, Unsearchable(fetches._tasks)
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
        assert {task.cancelled() for task in asked} == {True}
        assert len(fetches) == 256, "those that are at the daemon are seen out"
        fetches._tasks = {task: fetch for task, fetch in known.items() if not task.done()}
        await fetches.close()

    virtual.run(scenario())


def test_thousands_of_disconnected_clients_leave_nothing_in_memory() -> None:
    async def scenario() -> None:
        stage = Stage()
        stage.imds.latency = 5.0
        first, *others = [stage.start(INSTANCE) for _ in range(2_000)]
        await asyncio.sleep(1)
        (fetch,) = stage.proxy.fetches._tasks.values()
        assert fetch.future._callbacks == [] or not fetch.future._callbacks, "they would be searched one by one"
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        assert len(fetch._patient) == 1
        assert (await first).response.status == 200
        assert not fetch._patient

    virtual.run(scenario())
