"""Tokens over their whole life, in virtual time."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from imdsproxy.protocol.messages import Failure, Response
from imdsproxy.records import Outcome, RequestRecord
from tests import virtual
from tests.scripted import DOWN, SLOW, Imds, Sent, Stage, in_turn, ok, status, token
from tests.size import size
from tests.targets import TOKEN

# Measuring coverage would double its time, and other tests reach the same branches.
pytestmark = [pytest.mark.any_python, pytest.mark.no_cover]

LIFE = 86400
HOUR = 3600
MARGIN = 300
"""Seconds before its end from which a token is not given out any more."""

FAILURES: dict[str, tuple[Response | Failure, int]] = {
    "500": (status(500), 500),
    "503": (status(503), 503),
    "410": (status(410), 410),
    "429": (status(429), 429),
    "429-told": (status(429, retry_after=30), 429),
    "404": (status(404), 404),
    "unreachable": (DOWN, 502),
    "timeout": (SLOW, 504),
}
"""What IMDS's ways to fail are told as, once nothing can be served instead."""
SOME_FAILURES = size(short=("500", "429-told", "timeout"), full=tuple(FAILURES))
"""Those with which a token of a day is tried; one of an hour is tried with all."""


@dataclass
class Issuer:
    """The identity endpoint of IMDS. The name of a token states when it expires.

    With `renews_before`, it issues the same token until only that much of its life is left.
    """

    life: Callable[[str], int] = lambda _target: LIFE
    renews_before: float | None = None
    trouble: Callable[[Sent], Response | Failure | None] = lambda _sent: None
    expires: dict[str, float] = field(default_factory=dict)
    given: list[str] = field(default_factory=list)
    """The target of each request that got a token."""
    _latest: dict[str, str] = field(default_factory=dict)

    def __call__(self, sent: Sent) -> Response | Failure:
        trouble = self.trouble(sent)
        if trouble is not None:
            return trouble
        now = asyncio.get_running_loop().time()
        name = self._latest.get(sent.target)
        if name is None or self.renews_before is None or self.expires[name] - now <= self.renews_before:
            name = self._latest[sent.target] = f"token-{len(self.expires)}"
            self.expires[name] = now + self.life(sent.target)
        self.given.append(sent.target)
        return token(int(self.expires[name] - now), name)

    def left(self, served: RequestRecord) -> tuple[int, float]:
        """Return what an answer says is left of its token, and what really is."""
        assert served.response.status == 200, served
        body = json.loads(served.response.body)
        return int(body["expires_in"]), self.expires[body["access_token"]] - asyncio.get_running_loop().time()


def for_identity(number: int, resource: str) -> str:
    return f"{TOKEN}/{resource}&client_id=e0000000-0000-4000-8000-00000000000{number}"


# Two identities, three resources: eight hours, a day and odd lives beside each other.
LIVES = dict(
    zip(
        (for_identity(number, resource) for number in (1, 2) for resource in ("a", "b", "c")),
        (HOUR, 8 * HOUR, LIFE, LIFE, 4242, 1801),
        strict=True,
    )
)
CLOUDS: list[Response | Failure] = [
    status(500),
    status(503),
    status(410),
    status(429),
    status(429, retry_after=3),
    DOWN,
    SLOW,
    status(404),
]


@pytest.mark.attack(11)
@pytest.mark.parametrize("troubled", [False, True], ids=["fine", "troubled"])
def test_every_token_is_valid_over_48_hours(troubled: bool) -> None:
    async def scenario() -> None:
        chance = random.Random(7)  # the same trouble each time
        issuer = Issuer(LIVES.__getitem__)
        stage = Stage(Imds(issuer, latency=0.5), identity_budget_requests=20, token_fresh=LIFE)
        for target in LIVES:
            assert (await stage.get(target)).outcome is Outcome.MISS
        if troubled:
            issuer.trouble = lambda _sent: chance.choice(CLOUDS) if chance.random() < 0.3 else None
        for minute in range(48 * 60):
            if minute % 700 == 350:
                stage.clock.wall_offset += HOUR + 1 if minute % 1400 == 350 else -30 * HOUR
            for target in LIVES:
                began = stage.now
                served = await stage.get(target)
                assert stage.now == began, "no client waits"
                told, left = issuer.left(served)
                assert left >= MARGIN
                assert left - 2 <= told <= left
            await asyncio.sleep(60)
        for target, life in LIVES.items():
            # At half of its life, or with the first client after that, who comes within a minute.
            longest = life // 2 + (600 if troubled else 60)
            asked = issuer.given.count(target)
            assert 48 * HOUR / longest - 1 <= asked <= 48 * HOUR / (life // 2) + 1, life
            assert life < LIFE or asked in {4, 5}, "about twice a day"
        assert troubled or stage.imds.count == len(issuer.given)

    virtual.run(scenario())


@pytest.mark.parametrize(
    ("renews_before", "asked", "waits"), [(LIFE / 2, 2, 0), (1800, 7, 0), (600, 9, 1), (300, 9, 1)]
)
def test_same_token_from_imds_is_refreshed_at_half_of_its_remaining_life(
    renews_before: float, asked: int, waits: int
) -> None:
    """IMDS keeps tokens itself; a renewal brings a new one only when IMDS has one, so each asks for half as long."""

    async def scenario() -> None:
        issuer = Issuer(renews_before=renews_before)
        stage = Stage(Imds(issuer, latency=0.5), token_fresh=LIFE)
        await stage.get(TOKEN)
        waited = 0
        for minute in range(1, 48 * 60):
            await asyncio.sleep(1000 + 60 * minute - stage.now)
            began = stage.now
            told, left = issuer.left(await stage.get(TOKEN))
            waited += stage.now > began
            assert left >= MARGIN
            assert left - 2 <= told <= left
        assert stage.imds.count <= asked * len(issuer.expires)
        assert waited <= waits * len(issuer.expires), "who comes when IMDS has nothing newer than what is about to end"

    virtual.run(scenario())


def test_token_is_renewed_at_half_of_its_life_by_one_request() -> None:
    async def scenario() -> None:
        issuer = Issuer()
        stage = Stage(Imds(issuer, latency=0.5), token_fresh=LIFE)
        await stage.get(TOKEN)
        (began,) = stage.imds.times()
        await asyncio.sleep(began + LIFE / 2 - 0.001 - stage.now)
        assert (await stage.get(TOKEN)).outcome is Outcome.HIT
        await asyncio.sleep(0.002)
        assert stage.imds.count == 1
        assert {one.outcome for one in await stage.many(100, TOKEN)} == {Outcome.STALE}
        await asyncio.sleep(1)
        renewed = await stage.get(TOKEN)
        assert (renewed.outcome, stage.imds.count) == (Outcome.HIT, 2)
        assert issuer.left(renewed)[1] > LIFE - 2

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


@pytest.mark.parametrize("life", [LIFE, 200])
def test_response_time_is_subtracted_from_expires_in(life: int) -> None:
    """IMDS may have written `expires_in` at the moment it was asked."""

    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: token(life), latency=8.0))
        expires = stage.now + life
        for served in await stage.many(3, TOKEN):
            assert int(json.loads(served.response.body)["expires_in"]) <= expires - stage.now

    virtual.run(scenario())


class TestWhenImdsFailsFromTheRenewalOn:
    @pytest.mark.parametrize(
        ("life", "failure"),
        [*((HOUR, failure) for failure in FAILURES), *((LIFE, failure) for failure in SOME_FAILURES)],
    )
    def test_token_is_served_until_its_bound_and_then_the_error(self, life: int, failure: str) -> None:
        async def scenario() -> None:
            result, told = FAILURES[failure]
            pause = 60.0 if life == HOUR else size(short=290.0, full=60.0)
            issuer = Issuer(lambda _target: life)
            stage = Stage(Imds(issuer))
            await stage.get(TOKEN)
            end = stage.now + life - MARGIN
            await asyncio.sleep(life / 2)
            issuer.trouble = lambda _sent: result
            while stage.now < end - 0.001:
                began = stage.now
                expires_in, left = issuer.left(await stage.get(TOKEN))
                assert stage.now == began, "no client waits"
                assert left - 1 <= expires_in <= left
                await asyncio.sleep(min(pause, end - 0.001 - stage.now))
            assert issuer.left(await stage.get(TOKEN))[1] > MARGIN
            await asyncio.sleep(end - stage.now)
            served = await stage.get(TOKEN)
            assert (served.response.status, served.outcome) == (told, Outcome.ERROR)
            assert stage.now - end <= 71, "for as long as IMDS is asked again"
            await asyncio.sleep(100)
            issuer.trouble = lambda _sent: None
            assert issuer.left(await stage.get(TOKEN))[1] > life - 2, "and once IMDS is back, so are tokens"

        virtual.run(scenario())

    @pytest.mark.parametrize(
        ("failure", "latency", "every_minute", "every_second"),
        [
            # Eleven tries in the 70 seconds of `RETRY_MAX`, then five seconds' rest and the next client that comes.
            ("500", 0.05, 330, 530),
            ("410", 0.05, 330, 530),
            ("429", 0.05, 330, 530),
            # As often as IMDS said, which is what it wished for.
            ("429-told", 0.05, 120, 121),
            # Four tries in five seconds, then five seconds' rest.
            ("unreachable", 0.05, 240, 1320),
            # One try, then five seconds' rest.
            ("timeout", 10.0, 60, 240),
            ("404", 0.05, 60, 610),
        ],
    )
    def test_imds_gets_few_requests(self, failure: str, latency: float, every_minute: int, every_second: int) -> None:
        async def asked_in_an_hour(pause: float) -> int:
            issuer = Issuer()
            stage = Stage(Imds(issuer))
            await stage.get(TOKEN)
            await asyncio.sleep(LIFE / 2)
            issuer.trouble = lambda _sent: FAILURES[failure][0]
            stage.imds.latency = latency
            before = stage.imds.count
            for _ in range(int(HOUR / pause)):
                assert (await stage.get(TOKEN)).outcome is Outcome.STALE
                await asyncio.sleep(pause)
            stage.imds.assert_within_budget()
            return stage.imds.count - before

        assert virtual.run(asked_in_an_hour(60)) <= every_minute
        assert virtual.run(asked_in_an_hour(size(short=3, full=1))) <= every_second

    @pytest.mark.parametrize(
        "result",
        [*map(status, (401, 403, 408, 405, 302, 204)), ok("{}"), ok(b"no token"), token(MARGIN)],
        ids=["401", "403", "408", "405", "302", "204", "empty", "unreadable", "short"],
    )
    def test_imds_gets_few_requests_if_its_answers_cannot_be_stored(self, result: Response) -> None:
        async def scenario() -> None:
            issuer = Issuer()
            stage = Stage(Imds(issuer, latency=0.05))
            await stage.get(TOKEN)
            await asyncio.sleep(LIFE / 2)
            issuer.trouble = lambda _sent: result
            before = stage.imds.count
            for _ in range(10 * 60):
                issuer.left(await stage.get(TOKEN))
                await asyncio.sleep(0.1)
            assert stage.imds.count - before <= 60 / 5 + 1, "as often as where a renewal fails"

        virtual.run(scenario())

    @pytest.mark.parametrize("failure", ["500", "410", "unreachable"])
    def test_refreshes_of_many_identities_leave_permits_for_waiting_clients(self, failure: str) -> None:
        async def scenario() -> None:
            issuer = Issuer()
            stage = Stage(Imds(issuer, latency=0.05))
            for target in LIVES:
                await stage.get(target)
            await asyncio.sleep(LIFE / 2)
            result = FAILURES[failure][0]
            issuer.trouble = lambda sent: result if sent.target in LIVES else None
            for number in range(600):
                for target in LIVES:
                    issuer.left(await stage.get(target))
                if number % 20 == 0 and failure != "410":  # that is all of IMDS, and is waited out
                    began = stage.now
                    issuer.left(await stage.get(for_identity(9, str(number))))
                    assert stage.now - began <= 1.11
                await asyncio.sleep(1)
            stage.imds.assert_within_budget()

        virtual.run(scenario())

    def test_first_client_after_recovery_gets_the_old_token_and_the_next_the_new_one(self) -> None:
        async def scenario() -> None:
            issuer = Issuer()
            stage = Stage(Imds(issuer))
            await stage.get(TOKEN)
            await asyncio.sleep(LIFE / 2)
            issuer.trouble = lambda _sent: status(500)
            for _ in range(30):
                await stage.get(TOKEN)
                await asyncio.sleep(60)
            issuer.trouble = lambda _sent: None
            await stage.get(TOKEN)
            await asyncio.sleep(10.1)  # the longest pause between two tries
            assert issuer.left(await stage.get(TOKEN))[1] > LIFE - 20

        virtual.run(scenario())


@pytest.mark.parametrize("life", [0, 1, 299, 300])
def test_token_with_under_five_minutes_is_passed_on_and_not_stored(life: int) -> None:
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
def test_token_with_a_doubtful_life_is_passed_on_and_not_stored(body: bytes) -> None:
    async def scenario() -> None:
        stage = Stage(Imds(lambda _sent: ok(body)))
        assert (await stage.get(TOKEN)).response.body == body
        assert (await stage.get(TOKEN)).outcome is Outcome.MISS

    virtual.run(scenario())


def test_404_does_not_replace_a_living_token() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(token(LIFE), status(404))))
        await stage.get(TOKEN)
        await asyncio.sleep(LIFE / 2 + 1)
        for _ in range(50):
            assert (await stage.get(TOKEN)).response.status == 200
            await asyncio.sleep(0.1)
        assert stage.imds.count <= 3, "and does not ask again and again"

    virtual.run(scenario())


def test_400_does_not_replace_a_living_token() -> None:
    async def scenario() -> None:
        stage = Stage(Imds(in_turn(token(LIFE), status(400))))
        await stage.get(TOKEN)
        end = stage.now + LIFE - MARGIN
        await asyncio.sleep(LIFE / 2 + 1)
        for wish in ((), ((b"cache-control", b"no-cache"),), ()):
            served = await stage.get(TOKEN, headers=wish)
            assert served.response.status == (400 if wish else 200), "who asks past the cache is told"
            await asyncio.sleep(6)
        assert stage.imds.count == 4
        await asyncio.sleep(end - 0.001 - stage.now)
        assert (await stage.get(TOKEN)).response.status == 200
        await asyncio.sleep(0.001)
        assert (await stage.get(TOKEN)).response.status == 400

    virtual.run(scenario())


def test_settings_only_shorten_the_use_of_a_token() -> None:
    async def scenario() -> None:
        path = "/metadata/identity/oauth2/token"
        stage = Stage(Imds(Issuer()), ttl=((path, 60.0),), stale_if_error=((path, 10.0),))
        await stage.get(TOKEN)
        await asyncio.sleep(61)
        assert (await stage.get(TOKEN)).outcome is Outcome.STALE
        long = Stage(Imds(Issuer(lambda _target: HOUR)), ttl=((path, 1e6),), stale_if_error=((path, 1e6),))
        await long.get(TOKEN)
        await asyncio.sleep(1801)
        assert (await long.get(TOKEN)).outcome is Outcome.STALE, "past half of its life"

    virtual.run(scenario())
