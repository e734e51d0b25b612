"""Every token that a client gets is valid, for any sequence of requests and failures of IMDS."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from imdsproxy.protocol.messages import Failure, Response
from imdsproxy.records import Outcome, RequestRecord
from tests import virtual
from tests.scripted import DOWN, SLOW, Imds, Sent, Stage, status, token
from tests.size import examples
from tests.targets import TOKEN

HOUR = 3600.0
MARGIN = 300.0
TARGETS = [f"{TOKEN}&client_id={number}" for number in range(3)]
TROUBLES = [status(410), status(429), status(429, retry_after=7), status(500), status(503), status(404), DOWN, SLOW]

seconds = st.one_of(
    st.floats(0.001, 2.0),
    st.floats(1.0, 400.0),
    st.floats(100.0, 5 * HOUR),
    # Just before, at and after the moments at which something changes for one of the lives below.
    st.builds(
        lambda moment, off: max(0.001, moment + off),
        st.sampled_from([300.0, 450.0, 600.0, 1800.0, 3300.0, 4 * HOUR, 12 * HOUR, 24 * HOUR - MARGIN]),
        st.sampled_from([-60.0, -1.0, -0.001, 0.0, 0.001, 1.0]),
    ),
)


@dataclass(frozen=True)
class Step:
    """A step: time passes, IMDS changes its state or the wall clock jumps, then a client sends a request."""

    pause: float
    who: int
    crowd: int
    trouble: Response | Failure | None
    latency: float
    jump: float


steps = st.builds(
    Step,
    pause=seconds,
    who=st.integers(0, len(TARGETS) - 1),
    crowd=st.sampled_from([1, 1, 1, 5]),
    trouble=st.one_of(st.none(), st.none(), st.sampled_from(TROUBLES)),
    latency=st.sampled_from([0.0, 0.05, 0.9, 7.0]),
    jump=st.sampled_from([0.0, 0.0, 0.0, 1.0, -1.0, 5 * HOUR, -30 * HOUR]),
)


@dataclass
class Issuer:
    """Issues the same token to an identity until only `renews_before` of its life is left."""

    lives: list[float]
    renews_before: float
    trouble: Response | Failure | None = None
    latest: dict[str, str] = field(default_factory=dict)
    expires: dict[str, float] = field(default_factory=dict)
    known_until: dict[str, float] = field(default_factory=dict)
    """How long the proxy can serve what it was given for a target."""

    def __call__(self, sent: Sent) -> Response | Failure:
        if self.trouble is not None:
            return self.trouble
        now = asyncio.get_running_loop().time()
        name = self.latest.get(sent.target)
        if name is None or self.expires[name] - now <= self.renews_before:
            name = self.latest[sent.target] = f"token-{len(self.expires)}"
            self.expires[name] = now + self.lives[TARGETS.index(sent.target)]
        left = int(self.expires[name] - now)
        # What was asked for takes its turn from the moment of asking: its answer may have been on the way for long.
        self.known_until[sent.target] = max(self.known_until.get(sent.target, 0.0), sent.at + left - MARGIN)
        return token(left, name)


class Clients:
    """Ask, and look at every answer at the moment it comes."""

    def __init__(self, stage: Stage, issuer: Issuer) -> None:
        self.stage = stage
        self.issuer = issuer

    async def ask(self, target: str) -> None:
        asked_at = self.stage.now
        known = asked_at < self.issuer.known_until.get(target, 0.0)
        served = await self.stage.get(target)
        if known:
            assert served.response.status == 200, "there was a token with more than five minutes left"
            assert self.stage.now == asked_at, "and nobody waits for another"
            assert served.outcome in {Outcome.HIT, Outcome.STALE}
        if served.response.status == 200:
            self.look(served)
        else:
            assert served.response.status in {404, 410, 429, 500, 502, 503, 504}

    def look(self, served: RequestRecord) -> None:
        document = json.loads(served.response.body)
        left = self.issuer.expires[document["access_token"]] - self.stage.now
        told = int(document["expires_in"])
        assert told <= left + 1e-6, "more life than it has"
        assert served.age is None or left >= MARGIN - 1e-6, "from the cache, with under five minutes left"
        assert told >= left - 9, "what the answer took, and a second for rounding"


@given(
    lives=st.lists(st.sampled_from([299.0, 301.0, 700.0, HOUR, 4242.0, 8 * HOUR, 24 * HOUR]), min_size=3, max_size=3),
    renews_before=st.sampled_from([0.0, 60.0, 300.0, 1800.0, 12 * HOUR, 25 * HOUR]),
    plan=st.lists(steps, min_size=1, max_size=60),
)
@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_served_token_is_valid_and_stored_ones_are_served_at_once(
    lives: list[float], renews_before: float, plan: list[Step]
) -> None:
    async def scenario() -> None:
        issuer = Issuer(lives, renews_before)
        stage = Stage(Imds(issuer))
        clients = Clients(stage, issuer)
        asking: list[asyncio.Task[None]] = []
        for step in plan:
            await asyncio.sleep(step.pause)
            issuer.trouble = step.trouble
            stage.imds.latency = step.latency
            stage.clock.wall_offset += step.jump
            loop = asyncio.get_running_loop()
            asking.extend(loop.create_task(clients.ask(TARGETS[step.who])) for _ in range(step.crowd))
        await asyncio.gather(*asking)
        stage.imds.assert_within_budget()
        await stage.proxy.fetches.close()

    virtual.run(scenario())


@given(
    moments=st.lists(st.floats(0.01, 4 * HOUR), min_size=20, max_size=200),
    life=st.sampled_from([HOUR, 4242.0, 8 * HOUR, 24 * HOUR]),
    failing=st.sampled_from([None, *TROUBLES]),
)
@settings(max_examples=examples(100), deadline=None)
def test_imds_gets_one_request_in_half_a_life_and_one_refresh_at_a_time(
    moments: list[float], life: float, failing: Response | Failure | None
) -> None:
    async def scenario() -> None:
        issuer = Issuer([life] * 3, 25 * HOUR)
        stage = Stage(Imds(issuer))
        clients = Clients(stage, issuer)
        await clients.ask(TARGETS[0])
        began, before = stage.now, stage.imds.count
        issuer.trouble = failing
        for moment in moments:
            await asyncio.sleep(moment)
            await clients.ask(TARGETS[0])
        await asyncio.sleep(100)
        asked = stage.imds.count - before
        if failing is None:
            assert asked <= (stage.now - began) / min(life / 2, HOUR) + 1
        else:
            # Eleven tries at the most come of one client; four in ten seconds where nothing listens, else fewer.
            assert asked <= 11 * len(moments)
            assert asked <= (stage.now - began) / 2.5 + 11

    virtual.run(scenario())
