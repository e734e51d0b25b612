"""Tokens for their whole life, on a clock that a test owns."""

from __future__ import annotations

import asyncio
import json

import pytest

from imdsproxy.messages import Failure, Response
from imdsproxy.served import Outcome
from tests import virtual
from tests.scripted import TOKEN, Imds, Sent, Stage, in_turn, ok, status, token

LIFE = 86400
HOUR = 3600


class Issuer:
    """Mints tokens and knows when each expires, by its own name."""

    def __init__(self, life: int = LIFE) -> None:
        self.life = life
        self.expires: dict[str, float] = {}
        self.failing = False

    def __call__(self, sent: Sent) -> Response | Failure:
        if self.failing:
            return status(500)
        name = f"token-{len(self.expires)}"
        self.expires[name] = asyncio.get_running_loop().time() + self.life
        return token(self.life, name)


def test_over_48_hours_with_a_client_every_minute() -> None:
    async def scenario() -> None:
        issuer = Issuer()
        stage = Stage(Imds(issuer, latency=0.5))
        await stage.get(TOKEN)
        for minute in range(48 * 60):
            if minute % 700 == 350:
                stage.clock.wall_offset += HOUR if minute % 1400 == 350 else -2 * HOUR
            began = stage.now
            served = await stage.get(TOKEN)
            assert stage.now == began, "nobody waits"
            body = json.loads(served.response.body)
            left = issuer.expires[body["access_token"]] - stage.now
            assert left >= 300
            assert left - 2 <= int(body["expires_in"]) <= left
            await asyncio.sleep(60)
        assert stage.imds.count == 4, "at half of its life, so twice a day"

    virtual.run(scenario())


def test_only_the_digits_of_expires_in_change() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: token(LIFE)))
        first = (await stage.get(TOKEN)).response.body
        assert first == token(LIFE).body
        await asyncio.sleep(100.5)
        hit = await stage.get(TOKEN)
        assert hit.response.body == first.replace(b'"86400"', b'"86299"')
        assert (hit.outcome, hit.age) == (Outcome.HIT, 100)

    virtual.run(scenario())


def test_when_imds_fails_from_half_life_on_it_is_served_to_its_bound_and_then_the_error_is_passed_on() -> None:
    async def scenario() -> None:
        issuer = Issuer()
        stage = Stage(Imds(issuer))
        await stage.get(TOKEN)
        end = stage.now + LIFE - 300
        await asyncio.sleep(LIFE / 2)
        issuer.failing = True
        while stage.now < end:
            served = await stage.get(TOKEN)
            assert served.response.status == 200
            await asyncio.sleep(min(60.0, end - stage.now) or 1)
        served = await stage.get(TOKEN)
        assert (served.response.status, served.outcome) == (500, Outcome.ERROR)

    virtual.run(scenario())


@pytest.mark.parametrize("life", [0, 1, 299, 300])
def test_one_with_under_five_minutes_is_passed_on_and_not_kept(life: int) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: token(life)))
        served = await stage.get(TOKEN)
        assert served.response.body == token(life).body
        assert served.cache_status() == b"imdsproxy; fwd=uri-miss; fwd-status=200"
        assert (await stage.get(TOKEN)).outcome is Outcome.MISS

    virtual.run(scenario())


@pytest.mark.parametrize(
    "body",
    [
        b'{"access_token":"t"}',
        b'{"access_token":"t","expires_in":"-5"}',
        b'{"access_token":"t","expires_in":"soon"}',
        b'{"access_token":"t","expires_in":"99999999999999"}',
        b'{"access_token":"t","expires_in":"3600","expires_in":"7200"}',
        b'{"expires_in":"3600"}',
        b"not json",
    ],
)
def test_one_whose_life_cannot_be_told_is_passed_on_and_not_kept(body: bytes) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: ok(body)))
        assert (await stage.get(TOKEN)).response.body == body
        assert (await stage.get(TOKEN)).outcome is Outcome.MISS

    virtual.run(scenario())


def test_a_404_of_the_identity_endpoint_does_not_take_the_place_of_a_token_that_lives() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(token(LIFE), status(404))))
        await stage.get(TOKEN)
        await asyncio.sleep(LIFE / 2 + 1)
        for _ in range(50):
            assert (await stage.get(TOKEN)).response.status == 200
            await asyncio.sleep(0.1)
        assert stage.imds.count <= 3, "and does not ask again and again"

    virtual.run(scenario())


def test_an_identity_that_is_gone_takes_its_token_with_it() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(token(LIFE), status(400))))
        await stage.get(TOKEN)
        await asyncio.sleep(LIFE / 2 + 1)
        await stage.get(TOKEN)
        await asyncio.sleep(0.1)
        assert (await stage.get(TOKEN)).response.status == 400

    virtual.run(scenario())


def test_a_setting_can_shorten_its_freshness_and_its_staleness_and_never_lengthen_them() -> None:
    async def scenario() -> None:
        path = "/metadata/identity/oauth2/token"
        stage = Stage(Imds(Issuer()), ttl=((path, 60.0),), stale_if_error=((path, 10.0),))
        await stage.get(TOKEN)
        await asyncio.sleep(61)
        assert (await stage.get(TOKEN)).outcome is Outcome.STALE
        long = Stage(Imds(Issuer(3600)), ttl=((path, 1e6),), stale_if_error=((path, 1e6),))
        await long.get(TOKEN)
        await asyncio.sleep(1801)
        assert (await long.get(TOKEN)).outcome is Outcome.STALE, "past half of its life"

    virtual.run(scenario())
