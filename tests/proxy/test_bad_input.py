"""Refusals of IMDS: passed on in its own wording, and remembered for `NEGATIVE_TTL` at most."""

from __future__ import annotations

import asyncio

import pytest

from imdsproxy.protocol.messages import Failure, Response
from imdsproxy.records import Outcome
from tests import virtual
from tests.scripted import DOWN, SLOW, Imds, Sent, Stage, in_turn, ok, status, token
from tests.targets import EVENTS, INSTANCE, TOKEN

WORDS = {
    "resource missing": (
        "/metadata/identity/oauth2/token?api-version=2018-02-01",
        b'{"error":"invalid_request","error_description":"Required query variable \'resource\' is missing"}',
    ),
    "two identities": (TOKEN + "&client_id=a&object_id=b", b'{"error":"invalid_request"}'),
    "unknown identity": (
        TOKEN + "&client_id=nobody",
        b'{"error":"invalid_request","error_description":"Identity not found"}',
    ),
    "unknown version": ("/metadata/instance?api-version=1999-01-01", b'{ "error":\t"Bad request. \xff" }\r\n'),
    "unknown version of events": ("/metadata/scheduledevents?api-version=1999-01-01", b'{"error":"Bad request."}'),
    "attested": ("/metadata/attested/document", b'{"error":"Bad request."}'),
}
"""What is asked, and IMDS's words, which may be anything."""


def refusing(code: int = 400, latency: float = 0.0) -> Stage:
    return Stage(Imds(lambda _sent: status(code), latency=latency))


DATE = (b"date", b"Mon, 11 Apr 2022 22:26:58 GMT")


@pytest.mark.parametrize(
    ("case", "code"),
    [(case, code) for case in WORDS for code in (400, 404) if code == 400 or TOKEN[:30] not in WORDS[case][0]],
)
def test_imds_own_wording_is_passed_on_each_time(case: str, code: int) -> None:
    async def scenario() -> None:
        target, words = WORDS[case]
        own = Response(
            code, ((b"content-type", b"application/json"), (b"server", b"IMDS/150.870.65.1854"), DATE), words
        )
        stage = Stage(Imds(lambda _sent: own))
        for outcome in (Outcome.MISS, Outcome.HIT, Outcome.HIT):
            served = await stage.get(target)
            assert served.outcome is outcome
            assert served.response == own
            await asyncio.sleep(1)
        assert stage.imds.count == 1

    virtual.run(scenario())


@pytest.mark.parametrize(
    ("target", "code"), [(INSTANCE, 400), (INSTANCE, 404), (TOKEN, 400), (EVENTS, 400), (EVENTS, 404)]
)
@pytest.mark.parametrize(("negative_ttl", "latency"), [(5.0, 0.0), (5.0, 2.0), (0.5, 0.2), (60.0, 9.0)])
def test_refusals_are_remembered_for_negative_ttl(code: int, target: str, negative_ttl: float, latency: float) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: status(code), latency=latency), negative_ttl=negative_ttl)
        await stage.get(target)
        (sent_at,) = stage.imds.times()
        stage.imds.answer = lambda _sent: token(86400)
        await asyncio.sleep(sent_at + negative_ttl - 0.001 - stage.now)
        last = await stage.get(target)
        assert (last.outcome, last.response.status) == (Outcome.HIT, code)
        assert stage.imds.count == 1
        await asyncio.sleep(sent_at + negative_ttl - stage.now)
        assert (await stage.get(target)).response.status == 200

    virtual.run(scenario())


@pytest.mark.parametrize(("negative_ttl", "latency"), [(0.0, 0.0), (0.0, 1.0), (0.5, 0.5), (5.0, 9.0)])
def test_refusals_are_not_remembered_with_ttl_0_or_after_a_slow_answer(negative_ttl: float, latency: float) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(status(404), ok()), latency=latency), negative_ttl=negative_ttl)
        served = await stage.get()
        assert (served.response.status, served.stored) == (404, False)
        assert (await stage.get()).response.status == 200

    virtual.run(scenario())


@pytest.mark.parametrize(
    "target",
    [
        "/metadata/unknown?api-version=2021-02-01",
        "/metadata/identity/unknown?api-version=2018-02-01",
        "/metadata/attested/document?api-version=2020-09-01&nonce=1",
    ],
)
def test_refusals_of_uncacheable_targets_are_not_stored(target: str) -> None:
    async def scenario() -> None:
        stage = refusing()
        for count in (1, 2, 3):
            assert (await stage.get(target)).response.status == 400
            assert stage.imds.count == count

    virtual.run(scenario())


def test_crowd_with_one_bad_request_costs_one_request() -> None:
    async def scenario() -> None:
        stage = refusing(latency=0.3)
        served = await stage.many(200, TOKEN + "&client_id=nobody")
        assert {one.response.status for one in served} == {400}
        assert stage.imds.count == 1

    virtual.run(scenario())


def test_repeated_bad_request_is_one_request_in_each_negative_ttl() -> None:
    async def scenario() -> None:
        stage = refusing(latency=0.05)
        began = stage.now
        while stage.now < began + 60:
            await stage.get(TOKEN + "&client_id=nobody")
            await asyncio.sleep(0.1)
        assert 10 <= stage.imds.count <= 13

    virtual.run(scenario())


def test_stored_refusal_answers_only_the_same_target() -> None:
    async def scenario() -> None:
        base = "/metadata/identity/oauth2/token?api-version=2018-02-01"
        refused = [base, f"{base}&resource=a&client_id=nobody", f"{base}&resource=a&client_id=x&object_id=y"]
        good = [
            *(f"{base}&resource=a", f"{base}&resource=a&client_id=x", f"{base}&resource=a&object_id=nobody"),
            *(f"{base}&resource=a&object_id=y", f"{base}&resource=A&client_id=nobody"),
        ]

        def answer(sent: Sent) -> Response | Failure:
            return status(400) if sent.target in refused else token(86400, sent.target.replace('"', ""))

        stage = Stage(Imds(answer))
        for _ in range(2):
            for target in (*refused, *good):
                served = await stage.get(target)
                assert served.response.status == (400 if target in refused else 200), target
        assert stage.imds.count == len(refused) + len(good)

    virtual.run(scenario())


@pytest.mark.parametrize(("failure", "told"), [(status(500), 500), (status(410), 410), (DOWN, 502), (SLOW, 504)])
@pytest.mark.parametrize("target", [INSTANCE, TOKEN, EVENTS])
def test_refusal_is_never_served_stale(target: str, failure: Response | Failure, told: int) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(status(400), failure)), retry_max=0, stale_if_error=(("/metadata", 3600.0),))
        await stage.get(target)
        await asyncio.sleep(5)
        assert (await stage.get(target)).response.status == told

    virtual.run(scenario())


def test_refusal_is_never_refreshed_in_the_background() -> None:
    async def scenario() -> None:
        stage = refusing()
        for target in (INSTANCE, TOKEN, EVENTS):
            await stage.get(target)
            await asyncio.sleep(4.9)
            await stage.get(target)
        await asyncio.sleep(3600)
        assert stage.imds.count == 3

    virtual.run(scenario())


def test_acknowledgement_drops_stored_refusals_too() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(status(404), ok("acknowledged"), ok("events"))))
        assert (await stage.get(EVENTS)).response.status == 404
        await stage.get(EVENTS, method="POST", body=b"{}")
        assert (await stage.get(EVENTS)).response.body == b"events"

    virtual.run(scenario())


@pytest.mark.parametrize("wish", [(TOKEN + "&bypass_cache=true", ()), (TOKEN, ((b"cache-control", b"no-cache"),))])
def test_client_requested_refresh_replaces_a_stored_refusal(
    wish: tuple[str, tuple[tuple[bytes, bytes], ...]],
) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(status(400), token(86400))))
        assert (await stage.get(TOKEN)).response.status == 400
        target, headers = wish
        assert (await stage.get(target, headers=headers)).response.status == 200
        assert (await stage.get(TOKEN)).outcome is Outcome.HIT

    virtual.run(scenario())
