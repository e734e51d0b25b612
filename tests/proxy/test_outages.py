"""IMDS answers 410 or 429: which fetch sends, which ones wait, and what clients get."""

from __future__ import annotations

import asyncio
import logging

import pytest

from imdsproxy.ops.readiness import Readiness
from imdsproxy.protocol.messages import Failure, FailureKind, Response
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import DOWN, Imds, Sent, Stage, in_turn, ok, status, token
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS


def gone_for(seconds: float, begin: float) -> Imds:
    imds = Imds()

    def answer(sent: Sent) -> Response | Failure:
        return status(410) if sent.at < begin + seconds else ok(sent.target)

    imds.answer = answer
    return imds


def leaf(number: int) -> str:
    return f"/metadata/instance/compute/tagsList/{number}?api-version=2021-02-01"


class TestGone:
    def test_one_probe_at_a_time_until_imds_is_back(self) -> None:
        async def scenario() -> None:
            stage = Stage(max_wait=60.0)
            began = stage.now
            stage.imds.answer = gone_for(30, began).answer
            stage.imds.latency = 0.01
            served = await asyncio.gather(*(stage.start(leaf(n)) for n in range(40)))
            assert {one.response.status for one in served} == {200}
            away = [at - began for at in stage.imds.times() if at < began + 30]
            # The five that were under way when it went, then one at a time: 1, 2, 4, 8, then 10 s apart.
            assert [round(at) for at in away] == [0, 0, 0, 0, 0, 1, 3, 7, 15, 25]
            assert stage.now - began < 35 + 40 / 5 + 1

        virtual.run(scenario())

    def test_stale_entry_within_its_bound_is_served_at_once(self) -> None:
        async def scenario() -> None:
            stage = Stage()
            await stage.get()
            await asyncio.sleep(200)
            stage.imds.answer = gone_for(60, stage.now).answer
            asking = stage.start(VERSIONS)
            await asyncio.sleep(0.5)
            began = stage.now
            assert (await stage.get()).outcome is Outcome.STALE
            assert stage.now == began
            asking.cancel()

        virtual.run(scenario())

    def test_new_requests_wait_for_the_probe_and_send_nothing(self) -> None:
        async def scenario() -> None:
            stage = Stage()
            began = stage.now
            stage.imds.answer = gone_for(20, began).answer
            first = stage.start(VERSIONS)
            await asyncio.sleep(5)
            late = [stage.start(leaf(n)) for n in range(5)]
            await asyncio.sleep(5)
            assert {sent.target for sent in stage.imds.sent} == {VERSIONS}
            assert (await first).response.status == 200
            assert {(await task).response.status for task in late} == {200}

        virtual.run(scenario())

    def test_post_waits_for_the_recovery_and_is_sent_once(self) -> None:
        async def scenario() -> None:
            stage = Stage()
            stage.imds.answer = gone_for(20, stage.now).answer
            first = stage.start(VERSIONS)
            await asyncio.sleep(2)
            posted = await stage.get(EVENTS, method="POST", body=b"{}")
            assert posted.response.status == 200
            assert [sent.method for sent in stage.imds.sent].count("POST") == 1
            await first

        virtual.run(scenario())

    def test_410_beyond_the_limit_is_passed_on_to_all(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(status(410))))
            began = stage.now
            served = await asyncio.gather(*(stage.start(leaf(n)) for n in range(8)))
            assert {one.response.status for one in served} == {410}
            assert {one.outcome for one in served} == {Outcome.ERROR}
            assert stage.now - began == pytest.approx(70, abs=2)
            assert stage.imds.count < 30

        virtual.run(scenario())

    def test_another_fetch_becomes_the_probe_when_it_gives_up(self) -> None:
        async def scenario() -> None:
            stage = Stage()
            began = stage.now
            stage.imds.answer = gone_for(90, began).answer
            first = stage.start(VERSIONS)
            await asyncio.sleep(40)
            second = stage.start(leaf(1))
            assert (await first).response.status == 410
            assert (await second).response.status == 200
            assert stage.now - began < 40 + 71

        virtual.run(scenario())

    def test_another_fetch_becomes_the_probe_when_its_client_hangs_up(self) -> None:
        async def scenario() -> None:
            stage = Stage()
            stage.imds.answer = gone_for(20, stage.now).answer
            alone = stage.start("/metadata/attested/document?api-version=2020-09-01&nonce=1")
            await asyncio.sleep(0.5)
            other = stage.start(VERSIONS)
            await asyncio.sleep(0.1)
            alone.cancel()
            assert (await other).response.status == 200

        virtual.run(scenario())

    def test_fetch_that_waits_for_its_permit_at_a_410_returns_the_permit(self) -> None:
        async def scenario() -> None:
            stage = Stage(budget_requests=1)
            began = stage.now
            stage.imds.answer = gone_for(10, began).answer
            await asyncio.gather(*(stage.start(leaf(n)) for n in range(4)))
            away = [sent for sent in stage.imds.sent if sent.at < began + 10]
            assert len({sent.target for sent in away}) == 1

        virtual.run(scenario())


class TestBusy:
    def test_retry_after_delays_every_request(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(status(429, retry_after=4), ok())))
            began = stage.now
            served = await asyncio.gather(stage.start(), *(stage.start(leaf(n)) for n in range(3)))
            assert {one.response.status for one in served} == {200}
            later = [at - began for at in stage.imds.times()]
            assert later[:4] == [0, 0, 0, 0], "those were under way"
            assert all(at >= 4 for at in later[4:])

        virtual.run(scenario())

    def test_without_retry_after_the_rate_is_halved_and_recovers(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(status(429), ok())), max_wait=1000.0)
            began = stage.now
            await asyncio.gather(*(stage.start(leaf(n)) for n in range(100)))
            times = [at - began for at in stage.imds.times()]
            first_five = sum(1 < at <= 6 for at in times)
            assert first_five <= 20, "5 a second would be 25"
            last_five = sum(times[-1] - 5 < at <= times[-1] for at in times)
            assert last_five >= 20

        virtual.run(scenario())

    def test_retry_after_beyond_retry_max_is_passed_on(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(status(429, retry_after=500))))
            served = await stage.get()
            assert served.response.status == 429
            assert served.response.header(b"retry-after") == b"500"
            assert stage.imds.count == 1

        virtual.run(scenario())

    def test_retry_without_a_permit_in_time_passes_on_the_last_answer(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(status(500))), budget_requests=1, budget_window=20.0, max_wait=2.0)
            served = await stage.get()
            assert (served.response.status, stage.imds.count) == (500, 1)

        virtual.run(scenario())


class TestSilence:
    """Connections are neither accepted nor refused: packets are lost, as during the maintenance of the host."""

    SILENT = Failure(FailureKind.SILENT, "no connection within 2 s", sent=False)

    def test_of_a_known_upstream_is_retried_until_the_limit(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds())
            await stage.get(VERSIONS)
            silent_until = stage.now + 50
            stage.imds.latency = 2.0
            stage.imds.answer = lambda sent: self.SILENT if sent.at < silent_until else ok("back")
            assert (await stage.get()).response.body == b"back"

        virtual.run(scenario())

    def test_upstream_that_never_answered_fails_soon(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(lambda _sent: self.SILENT, latency=2.0))
            began = stage.now
            served = await stage.get()
            assert (served.response.status, served.detail) == (504, "upstream-silent")
            assert stage.now - began <= 8

        virtual.run(scenario())

    def test_ends_at_the_limit_for_all_attempts(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(ok(), self.SILENT)), retry_max=30.0)
            await stage.get(VERSIONS)
            began = stage.now
            assert (await stage.get()).response.status == 504
            assert stage.now - began == pytest.approx(30)

        virtual.run(scenario())


def test_every_attempt_takes_its_own_permit() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(status(500), status(500), status(500), ok())), retry_base=0.01)
        times = [served.response.status for served in await asyncio.gather(*(stage.start(leaf(n)) for n in range(9)))]
        assert times == [200] * 9
        stage.imds.assert_within_budget()
        assert stage.imds.count == 12

    virtual.run(scenario())


def test_after_a_500_identity_waits_at_least_a_second() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(status(500), token(86400))), retry_base=0.1)
        began = stage.now
        assert (await stage.get(TOKEN)).response.status == 200
        assert stage.now - began == pytest.approx(1.0)

    virtual.run(scenario())


def test_identity_budget_is_separate_if_it_is_set() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: token(86400), latency=1.0), identity_budget_requests=20, max_wait=100.0)
        for n in range(5):
            stage.start(leaf(n))
        tokens = [stage.start(TOKEN + str(n)) for n in range(12)]
        await asyncio.sleep(0.5)
        assert stage.imds.under_way == 10, "five of each"
        await asyncio.gather(*tokens)
        times = [sent.at for sent in stage.imds.sent if "token" in sent.target]
        assert max(times) - min(times) == pytest.approx(2.0)

    virtual.run(scenario())


def test_failure_and_recovery_are_each_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(ok(), DOWN, DOWN, status(500), ok())))
        await stage.get(VERSIONS)
        await stage.get(INSTANCE)

    with caplog.at_level(logging.INFO):
        virtual.run(scenario())
    assert [record.getMessage().partition(";")[0] for record in caplog.records] == ["IMDS fails", "IMDS answers again"]


class TestIndependence:
    def test_waiting_fetches_hold_no_permit_that_the_probe_needs(self) -> None:
        async def scenario() -> None:
            stage = Stage()
            began = stage.now
            stage.imds.answer = gone_for(2.5, began).answer
            feeling = stage.start(EVENTS)
            await asyncio.sleep(0.1)
            others = [stage.start(f"{EVENTS}&x={number}") for number in range(2)]
            served = await asyncio.gather(feeling, *others, stage.start(VERSIONS))
            assert {one.response.status for one in served} == {200}
            assert stage.now - began == pytest.approx(3.0)

        virtual.run(scenario())

    def test_waiting_fetches_of_disconnected_clients_are_bounded(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(status(410))))
            first = stage.start(VERSIONS)
            await asyncio.sleep(0.1)
            crowd = [stage.start(leaf(number)) for number in range(1000)]
            await asyncio.sleep(0.1)
            told = [task.result() for task in crowd if task.done()]
            assert {one.response.status for one in told} == {410}
            for task in crowd:
                task.cancel()
            assert len(stage.proxy.fetches) <= 1 + 256
            await first
            await asyncio.sleep(1)
            assert len(stage.proxy.fetches) == 0

        virtual.run(scenario())

    def test_old_failure_says_nothing_about_imds_now(self) -> None:
        async def scenario() -> None:
            stage = Stage(retry_max=0)
            stage.imds.answer = lambda sent: status(500) if "foo" in sent.target else ok("new")
            await stage.get()
            await asyncio.sleep(200)
            await stage.get("/metadata/foo")
            assert (await stage.get()).outcome is Outcome.STALE, "IMDS failed just now"
            await asyncio.sleep(3000)
            await stage.get("/metadata/foo")
            await asyncio.sleep(71)
            assert (await stage.get()).outcome is Outcome.MISS

        virtual.run(scenario())

    def test_no_permit_is_granted_between_a_429_and_its_throttling(self) -> None:
        async def scenario() -> None:
            stage = Stage(identity_budget_requests=20)
            stage.imds.latency = 0.1
            stage.imds.answer = lambda sent: status(429, retry_after=5) if sent.at < 1005 else token(86400)
            await asyncio.gather(*(stage.start(TOKEN + str(number)) for number in range(12)))
            assert [at for at in stage.imds.times() if 1000 < at < 1005.1] == []

        virtual.run(scenario())


def test_first_versions_request_follows_the_users_ttl() -> None:
    async def scenario() -> None:
        stage = Stage(ttl=(("/metadata/versions", 10.0),))
        await Readiness(stage.proxy, ()).become()
        await asyncio.sleep(11)
        assert (await stage.get(VERSIONS)).outcome is Outcome.MISS

    virtual.run(scenario())


def test_first_versions_request_ignores_deny() -> None:
    async def scenario() -> None:
        stage = Stage(deny=("/metadata/versions",))
        readiness = Readiness(stage.proxy, ())
        await readiness.become()
        assert readiness.obstacle is None
        assert (await stage.get(VERSIONS)).response.status == 403

    virtual.run(scenario())
