"""The faults of IMDS."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from typing import Any

from tests.system.faults.documents import Asked
from tests.system.faults.imds import WELL, Reply
from tests.system.faults.run import Fault
from tests.system.faults.worlds import RealWorld, World

EPOCH = 1_800_000_000
_UPDATE = ("IMDS is being updated", "IMDS answers again after its update")
_THROTTLED = ("IMDS throttles this VM", "IMDS throttles no longer")


def played(reply: Callable[[Asked, float, float], Reply]) -> Callable[[World, float], Awaitable[None]]:
    """Return the trouble in which each request gets `reply(asked, seconds since the begin, seconds left)`."""

    async def trouble(world: World, seconds: float) -> None:
        begin = asyncio.get_running_loop().time()
        world.imds.play = lambda asked: reply(asked, asked.at - begin, begin + seconds - asked.at)
        await asyncio.sleep(seconds)
        world.imds.play = lambda _asked: WELL

    return trouble


def broken(how: str, path: str = "") -> Callable[[World, float], Awaitable[None]]:
    return played(lambda asked, _since, _left: Reply(how) if asked.target.startswith(path) else WELL)


async def refuse(world: RealWorld, seconds: float) -> None:
    await world.imds.close()
    await asyncio.sleep(seconds)
    await world.imds.listen()


async def no_route(world: RealWorld, seconds: float) -> None:
    """Take away the route to IMDS's address, in the network namespace of these tests."""
    await _ip("add", world.imds.address)
    try:
        await asyncio.sleep(seconds)
    finally:
        await _ip("del", world.imds.address)


async def _ip(what: str, address: str) -> None:
    line = ("ip", "route", what, "unreachable", address, "table", "local")
    process = await asyncio.create_subprocess_exec(*line)
    assert await process.wait() == 0, line


def _throttled(_asked: Asked, _since: float, left: float) -> Reply:
    return Reply(status=429, fields=(b"Retry-After: %d" % max(1, min(10, left)),))


def _throttled_until(_asked: Asked, since: float, left: float) -> Reply:
    """Answer with dates of a clock that is not this machine's."""
    dates = (formatdate(EPOCH + since + each, usegmt=True).encode() for each in (0.0, max(1.0, min(10.0, left))))
    return Reply(status=429, fields=(b"Date: " + next(dates), b"Retry-After: " + next(dates)))


def _at_random() -> Callable[[Asked, float, float], Reply]:
    chance = random.Random(1)
    return lambda _asked, _since, _left: Reply(status=500) if chance.random() < 0.5 else WELL


def _slow_events(asked: Asked, _since: float, left: float) -> Reply:
    return Reply(latency=max(0.0, left)) if "/scheduledevents" in asked.target and asked.method == "GET" else WELL


_IMPATIENT = {"read_timeout": 3}
_BROKEN: dict[str, Any] = {"seconds": (4.0, 20.0)}
FAULTS = (
    Fault("refused", "IMDS refuses connections", refuse, **_BROKEN),
    Fault("no-route", "there is no route to IMDS", no_route, **_BROKEN),
    Fault(
        *("hanging", "IMDS hangs on `/metadata/instance`", broken("hang", "/metadata/instance"), (4.0, 40.0)),
        well_within=32.0,
        short=_IMPATIENT,
    ),
    Fault("reset", "IMDS resets connections", broken("reset"), **_BROKEN),
    Fault("truncated", "IMDS sends half of each answer", broken("truncate"), **_BROKEN),
    Fault(
        *(
            "dripping",
            "IMDS sends documents and tokens at 4 bytes a second",
            broken("drip", "/metadata/i"),
            (4.0, 40.0),
        ),
        well_within=32.0,
        short=_IMPATIENT,
    ),
    Fault("flooding", "IMDS sends bodies of 1 GiB", broken("flood"), **_BROKEN),
    Fault("garbage", "IMDS sends what is not HTTP", broken("garbage"), **_BROKEN),
    Fault(
        *("updating", "IMDS answers 410 for 70 s", played(lambda *_: Reply(status=410)), (70.0, 70.0), *_UPDATE),
    ),
    Fault(
        *("updating-long", "IMDS answers 410 for 3 min", played(lambda *_: Reply(status=410)), (180.0, 180.0)),
        *_UPDATE,
    ),
    Fault(
        *("throttled", "IMDS answers 429 for a minute, `Retry-After` in seconds", played(_throttled), (60.0, 60.0)),
        *_THROTTLED,
    ),
    Fault(
        *("throttled-date", "the same, `Retry-After` as a date", played(_throttled_until), (60.0, 60.0)), *_THROTTLED
    ),
    Fault("random", "IMDS answers every other request with 500, for 30 s", played(_at_random()), (30.0, 30.0)),
    Fault(
        *("slow-events", "IMDS takes 2 min for scheduled events", played(_slow_events), (120.0, 120.0)),
        begins="",
        ends="",
        longest=130.0,
    ),
)
TOO_LONG = ("updating", "updating-long", "throttled", "throttled-date", "random", "slow-events")
"""Those that are too long for `make test` in real time."""
LONG_LASTING = (*TOO_LONG, "hanging", "dripping")
"""Those whose end depends on the proxy's own limits of time."""
