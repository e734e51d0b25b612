"""Fresh, stale, refreshed, dropped: the answer of each request, and the requests that it takes."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.protocol.messages import Failure, Response
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import DOWN, SLOW, Imds, Stage, in_turn, ok, status, token
from tests.targets import EVENTS, INSTANCE, TOKEN, VERSIONS

LEAF = "/metadata/instance/compute/vmId?api-version=2021-02-01&format=text"


def numbered() -> Imds:
    """Return an IMDS whose answers all differ."""
    imds = Imds()
    imds.answer = lambda sent: ok(str(imds.sent.index(sent) + 1))
    return imds


def test_miss_is_followed_by_hits_while_fresh() -> None:
    async def scenario() -> None:
        stage = Stage(numbered())
        first = await stage.get()
        assert (first.outcome, first.response.body) == (Outcome.MISS, b"1")
        assert first.cache_status() == b"imdsproxy; fwd=uri-miss; fwd-status=200; ttl=60; stored"
        await asyncio.sleep(59)
        hit = await stage.get()
        assert (hit.outcome, hit.response.body, hit.age) == (Outcome.HIT, b"1", 59)
        assert hit.cache_status() == b"imdsproxy; hit; ttl=1"
        assert stage.imds.count == 1

    virtual.run(scenario())


def test_stale_entry_is_served_and_refreshed_in_the_background() -> None:
    async def scenario() -> None:
        stage = Stage(numbered())
        await stage.get()
        await asyncio.sleep(61)
        stale = await stage.get()
        assert (stale.outcome, stale.response.body, stale.age) == (Outcome.STALE, b"1", 61)
        assert stale.cache_status() == b"imdsproxy; hit; ttl=-1"
        await asyncio.sleep(0.1)
        renewed = await stage.get()
        assert (renewed.outcome, renewed.response.body, renewed.age) == (Outcome.HIT, b"2", 0)

    virtual.run(scenario())


def test_client_waits_for_a_new_answer_after_the_refresh_bound() -> None:
    async def scenario() -> None:
        stage = Stage(numbered())
        await stage.get()
        await asyncio.sleep(121)
        served = await stage.get()
        assert (served.outcome, served.response.body) == (Outcome.MISS, b"2")
        assert served.cache_status() == b"imdsproxy; fwd=stale; fwd-status=200; ttl=60; stored"

    virtual.run(scenario())


@pytest.mark.parametrize(
    ("target", "fresh", "renews"),
    [
        (VERSIONS, 3600, False),
        (INSTANCE, 60, True),
        (LEAF, 300, True),
        ("/metadata/instance/network?api-version=2021-02-01", 30, True),
        ("/metadata/loadbalancer?api-version=2020-10-01", 30, True),
        ("/metadata/attested/document?api-version=2020-09-01", 60, False),
        (EVENTS, 1, False),
        ("/metadata/identity/info?api-version=2018-02-01", 300, False),
    ],
)
def test_default_policy_holds_at_each_deadline(target: str, fresh: int, renews: bool) -> None:
    async def scenario() -> None:
        stage = Stage(numbered())
        await stage.get(target)
        await asyncio.sleep(fresh - 0.5)
        assert (await stage.get(target)).outcome is Outcome.HIT
        await asyncio.sleep(1)
        assert (await stage.get(target)).outcome is (Outcome.STALE if renews else Outcome.MISS)
        await asyncio.sleep(0.1)
        assert stage.imds.count == 2

    virtual.run(scenario())


@pytest.mark.parametrize(
    "target",
    [
        "/metadata/attested/document?api-version=2020-09-01&nonce=1234567890",
        "/metadata/identity/getplatformmetadata?cred-api-version=2.0",
        "/metadata/reprovisiondata?api-version=2019-06-01",
        "/metadata/somethingnew?api-version=2030-01-01",
    ],
)
def test_uncacheable_target_is_collapsed_but_not_stored(target: str) -> None:
    async def scenario() -> None:
        stage = Stage(numbered())
        stage.imds.latency = 0.2
        served = await stage.many(100, target)
        assert {one.response.body for one in served} == {b"1"}
        assert [one.outcome for one in served].count(Outcome.BYPASS) == 1
        assert [one.outcome for one in served].count(Outcome.COLLAPSED) == 99
        assert served[0].cache_status() == b"imdsproxy; fwd=bypass; fwd-status=200"
        assert (await stage.get(target)).response.body == b"2"
        assert stage.imds.count == 2

    virtual.run(scenario())


PLATFORM = "/metadata/identity/getplatformmetadata?cred-api-version=2.0"


@pytest.mark.parametrize(
    "field",
    [(b"authorization", b"x"), (b"cookie", b"x"), (b"range", b"bytes=0-1"), (b"if-none-match", b"x"), (b"x-new", b"x")],
)
def test_request_with_an_unknown_field_is_not_collapsed_and_keeps_the_field(
    field: tuple[bytes, bytes],
) -> None:
    async def scenario() -> None:
        stage = Stage(numbered())
        stage.imds.latency = 0.2
        served = await asyncio.gather(*(stage.start(PLATFORM, headers=(field,)) for _ in range(3)))
        assert len({one.response.body for one in served}) == stage.imds.count == 3
        assert all(field in sent.headers.items() for sent in stage.imds.sent)

    virtual.run(scenario())


@pytest.mark.parametrize("wish", [PLATFORM + "&bypass_cache=true", PLATFORM])
def test_bypass_of_an_uncacheable_target_is_not_collapsed(wish: str) -> None:
    async def scenario() -> None:
        stage = Stage(numbered())
        stage.imds.latency = 0.2
        headers = () if "bypass" in wish else ((b"cache-control", b"no-cache"),)
        await asyncio.gather(*(stage.start(wish, headers=headers) for _ in range(3)))
        assert stage.imds.count == 3

    virtual.run(scenario())


def test_shared_fetch_carries_no_field_of_its_first_client() -> None:
    async def scenario() -> None:
        stage = Stage(numbered())
        own = ((b"user-agent", b"one/1"), (b"x-ms-client-request-id", b"1234"), (b"accept", b"text/plain"))
        await stage.get(PLATFORM, headers=own)
        assert {*own}.isdisjoint(stage.imds.sent[0].headers.items())
        assert b"x-ms-client-request-id" not in stage.imds.sent[0].headers
        assert stage.imds.sent[0].headers[b"metadata"] == b"true"

    virtual.run(scenario())


def test_shared_fetch_ends_when_its_last_client_disconnects() -> None:
    async def scenario() -> None:
        stage = Stage(numbered(), budget_requests=1)
        await stage.get(VERSIONS)
        waiting = [stage.start(PLATFORM) for _ in range(3)]
        await asyncio.sleep(0.1)
        waiting[0].cancel()
        waiting[1].cancel()
        assert (await waiting[2]).response.body == b"2"
        last = stage.start(PLATFORM)
        await asyncio.sleep(0.1)
        last.cancel()
        await asyncio.sleep(0.1)
        assert (len(stage.proxy.fetches), stage.imds.count) == (0, 2)
        assert (await stage.get(PLATFORM)).response.body == b"3", "the next one begins its own"

    virtual.run(scenario())


class TestWhenImdsFails:
    @pytest.mark.parametrize("failure", [DOWN, SLOW, *map(status, (410, 429, 500, 502, 503, 504))])
    def test_stale_entry_is_served_after_the_first_failed_attempt(self, failure: Response | Failure) -> None:
        async def scenario() -> None:
            stage = Stage(numbered())
            await stage.get()
            await asyncio.sleep(200)
            stage.imds.latency = 0.3
            stage.imds.answer = lambda _sent: failure
            began = stage.now
            stale = await stage.get()
            assert (stale.outcome, stale.response.body, stale.detail) == (Outcome.STALE, b"1", "stale-if-error")
            assert stage.now - began == pytest.approx(0.3)
            began = stage.now
            again = await stage.get()
            assert (again.outcome, again.response.body) == (Outcome.STALE, b"1")
            assert stage.now == began, "known to fail: served at once"

        virtual.run(scenario())

    def test_retries_continue_in_the_background_and_renew_the_entry(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(ok("old"), status(500), status(500), ok("new"))))
            await stage.get()
            await asyncio.sleep(200)
            assert (await stage.get()).response.body == b"old"
            await asyncio.sleep(4)
            assert stage.imds.count == 4
            assert (await stage.get()).response.body == b"new"

        virtual.run(scenario())

    def test_stale_entry_keeps_its_deadlines(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(ok("old"), status(500))))
            await stage.get()
            end = stage.now + 60 + 3600
            while stage.now < end - 20:
                assert (await stage.get()).response.body == b"old"
                await asyncio.sleep(13)
            await asyncio.sleep(end - stage.now)
            served = await stage.get()
            assert (served.outcome, served.response.status) == (Outcome.ERROR, 500)

        virtual.run(scenario())

    def test_attested_document_is_never_served_stale(self) -> None:
        async def scenario() -> None:
            target = "/metadata/attested/document?api-version=2020-09-01"
            stage = Stage(Imds(in_turn(ok("old"), status(503))), retry_max=0)
            await stage.get(target)
            await asyncio.sleep(61)
            assert (await stage.get(target)).response.status == 503

        virtual.run(scenario())

    def test_stale_entry_is_not_refreshed_repeatedly(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(ok("old"), status(501))))
            await stage.get()
            await asyncio.sleep(61)
            for _ in range(100):
                assert (await stage.get()).response.body == b"old"
                await asyncio.sleep(0.2)
            assert stage.imds.count <= 1 + 20 / 5 + 1

        virtual.run(scenario())

    def test_last_answer_of_imds_is_passed_on_without_an_entry(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(status(500))))
            began = stage.now
            served = await stage.get()
            assert (served.outcome, served.response.status, served.response.body) == (
                Outcome.ERROR,
                500,
                b'{"error": "500"}',
            )
            assert served.cache_status() == b"imdsproxy; fwd=uri-miss; fwd-status=500"
            assert stage.now - began == pytest.approx(70), "tried for as long as RETRY_MAX says"
            assert [round(at - began) for at in stage.imds.times()] == [0, 1, 3, 7, 15, 25, 35, 45, 55, 65, 70]

        virtual.run(scenario())

    def test_unreachable_imds_is_502_soon_and_slow_imds_504_at_once(self) -> None:
        async def scenario() -> None:
            for failure, code, seconds in ((DOWN, 502, 5), (SLOW, 504, 0)):
                stage = Stage(Imds(in_turn(failure)))
                began = stage.now
                served = await stage.get()
                assert (served.response.status, served.outcome) == (code, Outcome.ERROR)
                assert served.response.header(b"retry-after") == b"1"
                assert stage.now - began == pytest.approx(seconds)

        virtual.run(scenario())


class TestOtherAnswers:
    @pytest.mark.parametrize(
        ("code", "outcome"), [(405, Outcome.MISS), (403, Outcome.MISS), (204, Outcome.ERROR), (302, Outcome.ERROR)]
    )
    def test_are_passed_on_and_not_stored(self, code: int, outcome: Outcome) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(status(code))))
            assert (await stage.get()).response.status == code
            assert (await stage.get()).outcome is outcome
            assert stage.imds.count == 2

        virtual.run(scenario())

    def test_404_replaces_the_stored_document(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(ok("old"), status(404))))
            await stage.get()
            await asyncio.sleep(61)
            assert (await stage.get()).response.body == b"old"
            await asyncio.sleep(0.1)
            assert (await stage.get()).response.status == 404

        virtual.run(scenario())


class TestClientRequestedRefresh:
    @pytest.mark.parametrize(
        ("target", "headers"),
        [(INSTANCE + "&bypass_cache=true", ()), (INSTANCE, ((b"cache-control", b"max-age=0, no-cache"),))],
    )
    def test_renews_the_entry_at_most_once_in_ten_seconds(
        self, target: str, headers: tuple[tuple[bytes, bytes], ...]
    ) -> None:
        async def scenario() -> None:
            stage = Stage(numbered())
            await stage.get()
            wished = await stage.get(target, headers=headers)
            assert (wished.outcome, wished.response.body) == (Outcome.BYPASS, b"2")
            assert wished.cache_status() == b"imdsproxy; fwd=request; fwd-status=200; ttl=60; stored"
            assert stage.imds.sent[-1].target == target, "as the client wrote it"
            assert (await stage.get()).response.body == b"2", "the entry is the new one"
            await asyncio.sleep(9.9)
            assert (await stage.get(target, headers=headers)).outcome is Outcome.HIT
            await asyncio.sleep(0.2)
            assert (await stage.get(target, headers=headers)).response.body == b"3"

        virtual.run(scenario())

    def test_concurrent_renewals_share_one_fetch(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered())
            stage.imds.latency = 0.2
            await stage.get()
            served = await stage.many(50, INSTANCE + "&bypass_cache=true")
            assert {one.response.body for one in served} == {b"2"}
            assert [one.outcome for one in served].count(Outcome.COLLAPSED) == 49

        virtual.run(scenario())

    @pytest.mark.parametrize("code", [400, 404])
    def test_rejected_bypass_cache_is_not_remembered_for_the_plain_target(self, code: int) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(lambda sent: status(code) if "bypass" in sent.target else ok("plain")))
            await stage.get()
            assert (await stage.get(INSTANCE + "&bypass_cache=true")).response.status == code
            assert (await stage.get()).response.body == b"plain"

        virtual.run(scenario())

    def test_repeated_within_ten_seconds_is_an_ordinary_request(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(lambda _sent: token(200)))  # about to expire, so nothing is kept
            for _ in range(3):
                assert (await stage.get(TOKEN + "&bypass_cache=true")).response.status == 200
            assert [sent.target for sent in stage.imds.sent] == [TOKEN + "&bypass_cache=true", TOKEN, TOKEN]

        virtual.run(scenario())

    def test_without_a_permit_may_be_repeated(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered(), max_wait=0.5, budget_requests=1)
            await stage.get()
            wish = ((b"cache-control", b"no-cache"),)
            assert (await stage.get(headers=wish)).response.status == 429
            await asyncio.sleep(1)
            assert (await stage.get(headers=wish)).response.body == b"2"

        virtual.run(scenario())

    def test_rejected_bypass_is_repeated_without_it_and_then_remembered(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(lambda _sent: status(400)))
            for _ in range(5):
                assert (await stage.get(TOKEN + "&bypass_cache=true")).response.status == 400
            assert stage.imds.count == 2

        virtual.run(scenario())

    def test_failure_is_reported_and_the_entry_stays(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(in_turn(ok("old"), status(501))))
            await stage.get()
            assert (await stage.get(INSTANCE + "&bypass_cache=true")).response.status == 501
            assert (await stage.get()).response.body == b"old"

        virtual.run(scenario())

    def test_older_fetch_that_ends_later_does_not_replace_a_renewal(self) -> None:
        async def scenario() -> None:
            stage = Stage(Imds(latency=3.0))
            stage.imds.answer = lambda sent: ok("wished" if "bypass" in sent.target else "older")
            older = stage.start()
            await asyncio.sleep(0.1)
            stage.imds.latency = 0.1
            assert (await stage.get(INSTANCE + "&bypass_cache=true")).response.body == b"wished"
            assert (await older).response.body == b"older"
            assert (await stage.get()).response.body == b"wished"

        virtual.run(scenario())


class TestDropping:
    def test_drops_every_entry_at_once(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered())
            await stage.get()
            await stage.get(VERSIONS)
            assert stage.proxy.drop() == 2
            assert (await stage.get()).outcome is Outcome.MISS

        virtual.run(scenario())

    def test_result_of_a_fetch_before_the_drop_is_not_stored(self) -> None:
        async def scenario() -> None:
            stage = Stage(numbered())
            stage.imds.latency = 1.0
            before = stage.start()
            await asyncio.sleep(0.5)
            stage.proxy.drop()
            after = stage.start()
            assert (await before).response.body != (await after).response.body
            assert (await stage.get()).response.body == b"2"

        virtual.run(scenario())


def test_age_of_another_cache_shortens_freshness() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: ok("x", headers=((b"age", b"50"),))))
        await stage.get()
        await asyncio.sleep(9)
        hit = await stage.get()
        assert (hit.outcome, hit.age, hit.ttl) == (Outcome.HIT, 59, 1)
        assert [value for name, value in hit.headers() if name == b"age"] == [b"59"]
        await asyncio.sleep(1)
        assert (await stage.get()).outcome is Outcome.STALE

    virtual.run(scenario())


def test_entries_are_shared_by_reordered_queries_only() -> None:
    async def scenario() -> None:
        stage = Stage(numbered())
        base = "/metadata/identity/oauth2/token?api-version=2018-02-01"
        bodies = set()
        for extra in (
            "&resource=a",
            "&resource=b",
            "&resource=a&client_id=1",
            "&resource=a&object_id=1",
            "&resource=A",
        ):
            bodies.add((await stage.get(base + extra)).response.body)
        assert len(bodies) == 5
        await stage.get("/metadata/instance?api-version=2021-02-01&format=json")
        assert (await stage.get("/metadata/instance?format=js%6Fn&api-version=2021-02-01")).outcome is Outcome.HIT

    virtual.run(scenario())
