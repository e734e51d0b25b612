"""Scheduled events: one request a second for all clients, no stale answer, no request of the proxy's own."""

from __future__ import annotations

import asyncio
import itertools
import math
from typing import Any

import pytest

from imdsproxy.ops.readiness import Readiness
from imdsproxy.protocol.messages import Failure, FailureKind, Response
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import DOWN, SLOW, Imds, Sent, Stage, in_turn, ok, status, token
from tests.size import size
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

# Measuring coverage would double its time, and other tests reach the same branches.
pytestmark = [pytest.mark.any_python, pytest.mark.no_cover]

ACKNOWLEDGEMENT = b'{"StartRequests":[{"EventId":"x"}]}'
FAILURES: dict[str, Response | Failure] = {
    **{str(code): status(code) for code in (410, 429, 500, 502, 503, 504)},
    "unreachable": DOWN,
    "timeout": SLOW,
    "reset": Failure(FailureKind.RESET, "broken off"),
    "unreadable": Failure(FailureKind.UNREADABLE, "no HTTP"),
}


def numbered(latency: float = 0.0) -> Imds:
    """Return an IMDS whose answers all differ, numbered by the order of requests."""
    imds = Imds(latency=latency)
    imds.answer = lambda sent: ok(str(imds.sent.index(sent) + 1))
    return imds


def sent_at(stage: Stage, body: bytes) -> float:
    """When the question was sent whose answer this is."""
    return stage.imds.sent[int(body) - 1].at


def asked(stage: Stage) -> list[Sent]:
    return [sent for sent in stage.imds.sent if "scheduledevents" in sent.target.lower()]


class TestPolling:
    @pytest.mark.parametrize("latency", [0.0, 0.05, 0.6, 1.0, 2.5])
    def test_hundred_pollers_cost_one_upstream_request_a_second(self, latency: float) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(latency))
            began, seconds = stage.now, size(short=20, full=60)

            async def poll(phase: float) -> None:
                await asyncio.sleep(phase)
                while stage.now < began + seconds:
                    turn = stage.now
                    served = await stage.get(EVENTS)
                    assert served.response.status == 200
                    if served.outcome is Outcome.HIT:
                        assert stage.now - sent_at(stage, served.response.body) < 1
                    else:
                        assert sent_at(stage, served.response.body) + latency == pytest.approx(stage.now)
                    await asyncio.sleep(max(0.0, turn + 1 - stage.now))

            await asyncio.gather(*(poll(number / 100) for number in range(100)))
            times = stage.imds.times()
            # An answer that takes longer than its second is worth nothing to those who come after it.
            assert all(later - sooner >= max(1, latency) - 1e-9 for sooner, later in itertools.pairwise(times))
            assert seconds / max(1, latency) - 2 <= stage.imds.count <= seconds / max(1, latency) + 1

        virtual.run(scenario())

    def test_freshness_counts_from_when_the_request_was_sent(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(0.4))
            began = stage.now
            await stage.get(EVENTS)
            for moment, outcome in ((0.999, Outcome.HIT), (1.0, Outcome.MISS)):
                await asyncio.sleep(began + moment - stage.now)
                assert (await stage.get(EVENTS)).outcome is outcome
            assert stage.imds.count == 2

        virtual.run(scenario())

    def test_each_api_version_costs_one_request_a_second(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(0.05))
            targets = [f"/metadata/scheduledevents?api-version={version}" for version in ("2017-11-01", "2020-07-01")]
            began = stage.now
            while stage.now < began + 10:
                await asyncio.gather(*map(stage.start, targets))
                await asyncio.sleep(0.1)
            assert {sent.target: stage.imds.count // 2 for sent in stage.imds.sent} == dict.fromkeys(targets, 10)

        virtual.run(scenario())

    def test_pollers_with_no_cache_cost_no_more(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(0.05))
            began, wish = stage.now, ((b"cache-control", b"no-cache"),)
            seconds = size(short=20, full=60)
            while stage.now < began + seconds:
                await asyncio.gather(*(stage.start(EVENTS, headers=wish) for _ in range(100)))
                await asyncio.sleep(0.1)
            assert stage.imds.count <= seconds + seconds / 10, "the wish is granted once in ten seconds"

        virtual.run(scenario())


class TestTheFirstRequest:
    def test_may_take_two_minutes_while_all_clients_wait(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(120))
            began = stage.now
            pollers = [stage.start(EVENTS) for _ in range(50)]
            for _ in range(50):
                await asyncio.sleep(2)
                pollers.append(stage.start(EVENTS))
            served = await asyncio.gather(*pollers)
            assert stage.now - began == pytest.approx(120)
            assert stage.imds.count == 1
            assert {(one.response.status, one.response.body) for one in served} == {(200, b"1")}
            outcomes = [one.outcome for one in served]
            assert (outcomes.count(Outcome.MISS), outcomes.count(Outcome.COLLAPSED)) == (1, 99)

        virtual.run(scenario())

    def test_continues_for_pollers_that_disconnect_and_return(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(120))
            answers = []
            for _ in range(12):
                impatient = [stage.start(EVENTS) for _ in range(20)]
                await asyncio.sleep(10.001)
                for task in impatient:
                    answers += [task.result()] if task.done() else []
                    task.cancel()
            assert {one.response.body for one in answers} == {b"1"}
            assert len(answers) == 20
            assert stage.imds.count == 1

        virtual.run(scenario())

    def test_is_followed_by_a_fresh_request(self) -> None:
        """What IMDS wrote may be as old as its answer was long in coming."""

        async def scenario() -> None:
            stage = Stage(numbered(120))
            await stage.get(EVENTS)
            stage.imds.latency = 0.05
            served = await stage.get(EVENTS)
            assert (served.outcome, served.response.body) == (Outcome.MISS, b"2")
            assert (await stage.get(EVENTS)).outcome is Outcome.HIT

        virtual.run(scenario())

    def test_without_an_answer_fails_once_for_all_clients(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(SLOW, ok("new")), latency=130))
            served = await stage.many(100, EVENTS)
            assert {one.response.status for one in served} == {504}
            assert stage.imds.count == 1
            stage.imds.latency = 0
            assert (await stage.get(EVENTS)).response.body == b"new"

        virtual.run(scenario())

    def test_does_not_delay_other_endpoints(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(lambda _sent: token(86400), latency=120))
            first = stage.start(EVENTS)
            await asyncio.sleep(1)
            stage.imds.latency = 0.05
            began = stage.now
            served = await asyncio.gather(stage.start(TOKEN), stage.start(INSTANCE), stage.start(VERSIONS))
            assert {one.response.status for one in served} == {200}
            assert stage.now - began == pytest.approx(0.05)
            assert (await first).response.status == 200

        virtual.run(scenario())

    def test_does_not_count_in_the_expected_wait_of_others(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(latency=120))
            await stage.get(EVENTS)
            stage.imds.latency = 0.05
            await asyncio.sleep(5)
            began = stage.now
            leaves = [f"/metadata/instance/compute/tagsList/{number}?api-version=2021-02-01" for number in range(10)]
            served = await asyncio.gather(*map(stage.start, leaves))
            assert {one.response.status for one in served} == {200}, "all have their turn in about a second"
            assert stage.now - began == pytest.approx(1.1)

        virtual.run(scenario())


class TestAcknowledgement:
    def test_is_forwarded_unchanged_and_drops_the_entry(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered())
            await stage.get(EVENTS)
            await stage.get()
            posted = await stage.get(EVENTS, method="POST", body=ACKNOWLEDGEMENT)
            assert (posted.outcome, posted.response.body) == (Outcome.BYPASS, b"3")
            assert posted.cache_status() == b"imdsproxy; fwd=method; fwd-status=200"
            assert (stage.imds.sent[-1].method, stage.imds.sent[-1].body) == ("POST", ACKNOWLEDGEMENT)
            after = await stage.get(EVENTS)
            assert (after.outcome, after.response.body) == (Outcome.MISS, b"4")
            assert (await stage.get()).outcome is Outcome.HIT, "other entries stay"

        virtual.run(scenario())

    @pytest.mark.parametrize("failure", FAILURES)
    def test_is_sent_once_for_any_result_and_drops_the_entry(self, failure: str) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(), ttl=(("/metadata/scheduledevents", 1000.0),))
            await stage.get(EVENTS)
            answer, stage.imds.answer = stage.imds.answer, lambda _sent: FAILURES[failure]
            posted = await stage.get(EVENTS, method="POST", body=ACKNOWLEDGEMENT)
            assert posted.response.status >= 400
            await asyncio.sleep(200)
            assert [sent.method for sent in stage.imds.sent] == ["GET", "POST"]
            stage.imds.answer = answer
            assert (await stage.get(EVENTS)).response.body == b"3"

        virtual.run(scenario())

    @pytest.mark.parametrize("code", [200, 204, 400, 404])
    def test_two_at_once_are_both_sent(self, code: int) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(lambda _sent: status(code), latency=0.5))
            posts = [stage.start(EVENTS, method="POST", body=ACKNOWLEDGEMENT) for _ in range(3)]
            assert {(await post).response.status for post in posts} == {code}
            assert [sent.method for sent in stage.imds.sent] == ["POST"] * 3

        virtual.run(scenario())

    @pytest.mark.parametrize(
        "asked_for",
        [
            EVENTS,
            "/metadata/scheduledevents?api-version=2017-11-01",
            "/Metadata/ScheduledEvents?api-version=2020-07-01",
            "/metadata/scheduledevents/?api-version=2020-07-01",
            "/metadata/%73cheduledevents?api-version=2020-07-01",
        ],
    )
    @pytest.mark.parametrize("posted_to", [EVENTS, "/METADATA/scheduledevents/?api-version=2020-07-01"])
    def test_drops_entries_of_every_spelling_and_version(self, asked_for: str, posted_to: str) -> None:
        async def scenario() -> None:
            stage = Stage(numbered())
            await stage.get(asked_for)
            await stage.get(posted_to, method="POST", body=ACKNOWLEDGEMENT)
            assert (await stage.get(asked_for)).response.body == b"3"

        virtual.run(scenario())

    @pytest.mark.parametrize(
        ("get_sent", "get_takes", "post_takes"),
        [
            pytest.param(0.0, 5.0, 1.0, id="asked before, lands after"),
            pytest.param(0.0, 1.2, 1.0, id="asked before, lands while it is under way"),
            pytest.param(1.0, 3.0, 1.0, id="asked while it is under way, lands after"),
            pytest.param(1.0, 0.1, 1.0, id="asked and answered while it is under way"),
            pytest.param(0.0, 120.0, 0.1, id="the slow first one"),
        ],
    )
    def test_earlier_fetch_answers_no_request_made_after_it(
        self, get_sent: float, get_takes: float, post_takes: float
    ) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(get_takes), ttl=(("/metadata/scheduledevents", 1000.0),))
            if get_sent == 0.0:
                older = stage.start(EVENTS)
            await asyncio.sleep(0.5)
            stage.imds.latency = post_takes
            post = stage.start(EVENTS, method="POST", body=ACKNOWLEDGEMENT)
            if get_sent:
                await asyncio.sleep(0.5)
                stage.imds.latency = get_takes
                older = stage.start(EVENTS)
            await post
            stage.imds.latency = 0.05
            wished = stage.start(EVENTS, headers=((b"cache-control", b"no-cache"),))
            newer = await stage.get(EVENTS)
            assert newer.outcome is Outcome.MISS
            assert sent_at(stage, newer.response.body) >= stage.now - 1.05, "asked after the acknowledgement"
            assert (await wished).response.body not in {b"1", b"2"}
            old = await older
            assert old.response.status == 200, "those who waited for it get it"
            kept = await stage.get(EVENTS)
            assert (kept.outcome, kept.response.body in {b"1", b"2"}) == (Outcome.HIT, False)

        virtual.run(scenario())

    def test_result_of_an_earlier_fetch_is_not_stored(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(5.0), ttl=(("/metadata/scheduledevents", 1000.0),))
            older = stage.start(EVENTS)
            await asyncio.sleep(1)
            stage.imds.latency = 0.1
            await stage.get(EVENTS, method="POST", body=ACKNOWLEDGEMENT)
            assert (await older).response.body == b"1"
            assert (await stage.get(EVENTS)).response.body == b"3"

        virtual.run(scenario())

    def test_completes_although_its_client_disconnected(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(), ttl=(("/metadata/scheduledevents", 1000.0),))
            await stage.get(EVENTS)
            stage.imds.latency = 1.0
            post = stage.start(EVENTS, method="POST", body=ACKNOWLEDGEMENT)
            await asyncio.sleep(0.5)
            post.cancel()
            await asyncio.sleep(1)
            assert [sent.method for sent in stage.imds.sent] == ["GET", "POST"]
            assert (await stage.get(EVENTS)).response.body == b"3"

        virtual.run(scenario())

    def test_does_not_wait_for_slow_requests(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(latency=120.0), max_wait=2.0)
            questions = [stage.start(f"{EVENTS}&x={number}") for number in range(5)]
            await asyncio.sleep(1)
            stage.imds.latency = 0.0
            began = stage.now
            assert (await stage.get(EVENTS, method="POST", body=b"{}")).response.status == 200
            assert stage.now == began
            for task in questions:
                task.cancel()
            await stage.proxy.fetches.close()

        virtual.run(scenario())

    def test_does_not_wait_behind_a_crowd_of_polls(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(latency=120.0))
            questions = [stage.start(f"{EVENTS}&x={number}") for number in range(60)]
            await asyncio.sleep(1)
            stage.imds.latency = 0.2
            posted = [stage.start(EVENTS, method="POST", body=b"%d" % number) for number in range(3)]
            assert [(await one).response.status for one in posted] == [200] * 3
            for task in questions:
                task.cancel()
            await stage.proxy.fetches.close()

        virtual.run(scenario())

    @pytest.mark.parametrize("requests", [2, 3, 5])
    def test_leaves_a_permit_for_other_endpoints(self, requests: int) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(latency=120.0), budget_requests=requests)
            slow = [stage.start(f"{EVENTS}&x={number}") for number in range(5)]
            slow += [stage.start(EVENTS, method="POST", body=b"%d" % number) for number in range(3)]
            await asyncio.sleep(1.5)
            stage.imds.latency = 0.0
            began = stage.now
            assert (await stage.get(INSTANCE)).response.status == 200
            # Of two, an approval has taken the place of a question, whose permit returns a window later.
            assert stage.now - began <= (0.5 if requests == 2 else 0.0)
            for task in slow:
                task.cancel()
            await stage.proxy.fetches.close()

        virtual.run(scenario())

    def test_without_a_permit_in_time_is_not_sent_and_drops_nothing(self) -> None:
        async def scenario() -> None:
            stage = Stage(
                numbered(), budget_requests=1, budget_window=50.0, ttl=(("/metadata/scheduledevents", 1000.0),)
            )
            await stage.get(EVENTS)
            posted = await stage.get(EVENTS, method="POST", body=ACKNOWLEDGEMENT)
            assert (posted.response.status, posted.detail) == (429, "budget")
            await asyncio.sleep(100)
            assert [sent.method for sent in stage.imds.sent] == ["GET"]
            assert (await stage.get(EVENTS)).outcome is Outcome.HIT

        virtual.run(scenario())


class TestNeverStale:
    @pytest.mark.parametrize("failure", FAILURES)
    @pytest.mark.parametrize(
        "general", [{}, {"stale_if_error": (("/metadata", 3600.0),), "ttl": (("/metadata", 60.0),)}]
    )
    def test_failure_after_its_second_is_reported(self, failure: str, general: dict[str, Any]) -> None:
        async def scenario() -> None:
            result = FAILURES[failure]
            told = result.status if isinstance(result, Response) else result.refusal(1).status
            stage = Stage(numbered(), **general)
            began = stage.now
            await stage.get(EVENTS)
            stage.imds.answer = lambda _sent: result
            await asyncio.sleep(began + 0.999 - stage.now)
            assert (await stage.get(EVENTS)).outcome is Outcome.HIT
            await asyncio.sleep(began + 1 - stage.now)
            for _ in range(3):  # the first that fails, and those that come when it is known
                served = await stage.get(EVENTS)
                assert (served.response.status, served.outcome) == (told, Outcome.ERROR)
                assert served.age is None
                await asyncio.sleep(2)

        virtual.run(scenario())

    def test_failure_is_reported_while_imds_is_known_to_fail(self) -> None:
        async def scenario() -> None:
            stage = Stage(retry_max=0)
            stage.imds.answer = lambda sent: ok("old") if stage.imds.count <= 2 else status(500)
            await stage.get(INSTANCE)
            await stage.get(EVENTS)
            await asyncio.sleep(200)
            assert (await stage.get(INSTANCE)).outcome is Outcome.STALE
            assert (await stage.get(EVENTS)).response.status == 500

        virtual.run(scenario())

    def test_failure_is_reported_to_clients_that_joined_the_fetch(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(ok("old"), status(500), ok("new"))))
            await stage.get(EVENTS)
            await asyncio.sleep(1.5)
            assert {one.response.body for one in await stage.many(100, EVENTS)} == {b"new"}
            assert stage.imds.count == 3

        virtual.run(scenario())


class TestNeverPrefetched:
    def test_no_request_at_start_by_warm_up_or_by_other_clients(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(lambda sent: token(86400)))
            await Readiness(stage.proxy, (INSTANCE, TOKEN)).become()
            for _ in range(100):
                for target in (INSTANCE, VERSIONS, TOKEN, "/metadata/loadbalancer?api-version=2020-10-01"):
                    await stage.get(target)
                await asyncio.sleep(37)
            assert stage.imds.count > 100
            assert asked(stage) == []

        virtual.run(scenario())

    def test_no_request_after_a_single_client_request(self) -> None:
        async def scenario() -> None:
            stage = Stage()
            await stage.get(EVENTS)
            for _ in range(100):
                await stage.get(INSTANCE)
                await asyncio.sleep(37)
            assert len(asked(stage)) == 1

        virtual.run(scenario())

    def test_no_request_while_an_answer_is_served_from_the_cache(self) -> None:
        async def scenario() -> None:
            stage = Stage()
            await stage.get(EVENTS)
            for _ in range(99):
                await asyncio.sleep(0.01)
                assert (await stage.get(EVENTS)).outcome is Outcome.HIT
            await asyncio.sleep(3600)
            assert stage.imds.count == 1

        virtual.run(scenario())

    def test_no_request_after_an_acknowledgement_or_a_drop(self) -> None:
        async def scenario() -> None:
            stage = Stage()
            await stage.get(EVENTS)
            await stage.get(EVENTS, method="POST", body=ACKNOWLEDGEMENT)
            stage.proxy.drop()
            await asyncio.sleep(3600)
            assert [sent.method for sent in stage.imds.sent] == ["GET", "POST"]

        virtual.run(scenario())

    @pytest.mark.parametrize("failure", FAILURES)
    def test_fetch_of_a_disconnected_client_ends_within_its_max_wait(self, failure: str) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(lambda _sent: FAILURES[failure]))
            began = stage.now
            client = stage.start(EVENTS)
            await asyncio.sleep(0.5)
            client.cancel()
            await asyncio.sleep(3600)
            assert stage.imds.count <= 11
            assert math.ceil(stage.imds.times()[-1] - began) <= 70
            assert len(stage.proxy.fetches) == 0

        virtual.run(scenario())
