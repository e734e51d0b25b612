"""What the pods of a simulated VM do, and what comes of it."""

from __future__ import annotations

import asyncio
import random
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from unittest import mock

from benchmarks.scaling_clients import EVENTS, INSTANCE, RESOURCES, Tally, call, token, told
from benchmarks.scaling_node import Door, Imds, Layout, Node
from imdsproxy.ops import readiness
from tests import virtual

# The kubelet's back-off before it starts a container again that has failed.
_FIRST_RESTART, _LAST_RESTART = 10.0, 300.0

STORM_SPREAD = 30.0
"""Seconds after a reboot within which the pods start."""
IDENTITIES = 20
"""Distinct tokens that the pods of a storm want, all together."""
STORM_LASTS = 300.0
"""Seconds after which nobody looks any more which pods are up."""
STEADY_LASTS = 600.0
_POLL = 60.0
_BESIDE_EVERY = 1.0
_LEAF = "/metadata/instance/compute/tagsList/{}?api-version=2021-02-01"
_RENEWAL_POLL = 10.0
# So many targets a second are asked for the first time: as many as there are tokens.
_COLD_A_SECOND = 4.76


class Workload(Enum):
    """What the pods ask for."""

    SAME = "the same token and the instance document"
    OWN = "a token of its own each"
    MIX = "the instance document and tokens for five resources"
    STEADY = "polling, scheduled events every 15 s"
    STEADY_FAST = "polling, scheduled events every second"
    STORM = "start after a reboot"
    RENEWAL = "many targets, each asked for every ten seconds"
    ARRIVAL = "one new target after another, at random moments"


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One line of a table."""

    workload: Workload
    layout: Layout
    pods: int
    max_wait: float = 10.0
    budget_requests: int = 5
    identity_apart: bool = False
    away_for: float = 0.0
    beside: bool = False
    """Somebody asks IMDS itself once a second, past the proxies."""
    warmup: bool = False
    targets: int = 0
    """How many there are to renew."""
    rate: float = 0.0
    """New targets that are asked for in a second."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """One case's figures."""

    case: Case
    calls: int
    sent: int
    most: int
    refused: int
    errors: Mapping[int, int]
    """Answers to clients that were no documents, by status."""
    half: float | None
    last: float | None
    """Seconds until the last that was served; of polls, what 99 of 100 stayed within."""
    unserved: int
    restarts: int


def simulate(case: Case) -> Result:
    """Live through one case in virtual time; the same case always gives the same figures."""
    # A proxy's pauses between its first questions are drawn; here from a sequence that is the same each time.
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(readiness, "_RANDOM", random.Random(1)),
    ):
        return virtual.run(_simulate(case, Path(folder)))


def lasted(case: Case) -> float:
    """Give the seconds for which a case of polling asks IMDS."""
    return 2 * STEADY_LASTS if case.workload is Workload.RENEWAL else STEADY_LASTS


async def _simulate(case: Case, folder: Path) -> Result:
    imds = Imds(identity_apart=case.identity_apart, away_for=case.away_for)
    settings = {
        "max_wait": case.max_wait,
        "budget_requests": case.budget_requests,
        "identity_budget_requests": 20 if case.identity_apart else None,
    }
    node = Node(case.layout, imds, case.pods, folder, **settings)
    tally = Tally(asyncio.get_running_loop().time())
    polls = case.workload in _POLLS
    beside = asyncio.get_running_loop().create_task(_beside(node)) if case.beside else None
    if case.workload is Workload.STORM:
        await _storm(case, node, tally)
    elif polls:
        await _POLLS[case.workload](case, node, tally)
    else:
        await asyncio.sleep(1.0)  # the tokens of a budget that has just begun rest
        tally.began = asyncio.get_running_loop().time()
        await asyncio.gather(*(_at_once(case.workload, pod, node.door(pod), tally) for pod in range(case.pods)))
    if beside is not None:
        beside.cancel()
    await node.close()
    served = sorted(tally.served)
    return Result(
        case=case,
        calls=tally.calls,
        sent=len(imds.arrivals),
        most=imds.most_in_a_second(),
        refused=imds.refused,
        errors=dict(sorted(tally.errors.items())),
        half=_at(served, 0.5, tally.calls if not polls else len(served)),
        last=_at(served, 0.99, len(served)) if polls else max(served, default=None),
        unserved=tally.calls - len(served),
        restarts=tally.restarts,
    )


def _at(served: Sequence[float], share: float, of: int) -> float | None:
    """Give the moment at which this share of all was served, if it was."""
    place = max(0, -int(-share * of // 1) - 1)
    return served[place] if place < len(served) else None


def _targets(workload: Workload, pod: int) -> Sequence[str]:
    if workload is Workload.OWN:
        return [token(identity=pod)]
    if workload is Workload.MIX:
        return [INSTANCE, *map(token, RESOURCES)]
    return [INSTANCE, token()]


async def _at_once(workload: Workload, pod: int, door: Door, tally: Tally) -> None:
    """Ask for everything within one second."""
    chance = random.Random(pod)

    async def one(target: str) -> None:
        tally.calls += 1
        await asyncio.sleep(chance.random())
        if await call(door, target, tally):
            tally.served.append(asyncio.get_running_loop().time() - tally.began)

    await asyncio.gather(*map(one, _targets(workload, pod)))


async def _steady(case: Case, node: Node, tally: Tally) -> None:
    """Poll for ten minutes: the instance document and a token once a minute, and scheduled events."""
    events = 1.0 if case.workload is Workload.STEADY_FAST else 15.0

    async def poll(door: Door, target: str, period: float, phase: float) -> None:
        loop = asyncio.get_running_loop()
        due = tally.began + phase * period
        while due < tally.began + STEADY_LASTS:
            await asyncio.sleep(max(0.0, due - loop.time()))
            await _ask_once(door, target, tally)
            due = max(due + period, loop.time())  # who waited longer than a period asks again at once

    polls = []
    for pod in range(case.pods):
        chance = random.Random(pod)
        for target, period in ((INSTANCE, _POLL), (token(), _POLL), (EVENTS, events)):
            polls.append(poll(node.door(pod), target, period, chance.random()))
    await asyncio.gather(*polls)


async def _renewal(case: Case, node: Node, tally: Tally) -> None:
    """Ask for each of many targets every ten seconds; what comes of it is told of the last ten minutes of twenty."""
    loop = asyncio.get_running_loop()
    door = node.door(0)
    counted = tally.began + STEADY_LASTS
    before = Tally(tally.began)

    async def one(number: int) -> None:
        await asyncio.sleep(number / _COLD_A_SECOND)
        while loop.time() < counted + STEADY_LASTS:
            seen = tally if loop.time() >= counted else before
            await _ask_once(door, _LEAF.format(number), seen)
            await asyncio.sleep(_RENEWAL_POLL)

    await asyncio.gather(*map(one, range(case.targets)))


async def _arrival(case: Case, node: Node, tally: Tally) -> None:
    """Ask for what nobody has asked for before, each time from another pod, for ten minutes."""
    loop = asyncio.get_running_loop()
    chance = random.Random(case.pods)
    asked: list[asyncio.Task[None]] = []
    while loop.time() < tally.began + STEADY_LASTS:
        await asyncio.sleep(chance.expovariate(case.rate))
        door = node.door(chance.randrange(case.pods))
        asked.append(loop.create_task(_ask_once(door, _LEAF.format(len(asked)), tally)))
    await asyncio.gather(*asked)


async def _ask_once(door: Door, target: str, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    tally.calls += 1
    began = loop.time()
    if not told(await door(target), tally):
        tally.served.append(loop.time() - began)


_POLLS: Mapping[Workload, Callable[[Case, Node, Tally], Awaitable[None]]] = {
    Workload.STEADY: _steady,
    Workload.STEADY_FAST: _steady,
    Workload.RENEWAL: _renewal,
    Workload.ARRIVAL: _arrival,
}


async def _storm(case: Case, node: Node, tally: Tally) -> None:
    """Start every pod within half a minute; one that gets no answer fails, and is started again later."""
    loop = asyncio.get_running_loop()
    warmup = (INSTANCE, *(token(identity=number) for number in range(IDENTITIES))) if case.warmup else ()

    async def pod(number: int) -> None:
        await asyncio.sleep(random.Random(number).uniform(0, STORM_SPREAD))
        starting.append(loop.create_task(node.start_sidecar(number)))
        restart = _FIRST_RESTART
        door = node.door(number)
        wanted = (INSTANCE, token(identity=number % IDENTITIES))
        while not await _both(door, wanted, tally):
            tally.restarts += 1
            await asyncio.sleep(restart)
            restart = min(_LAST_RESTART, 2 * restart)
        tally.served.append(loop.time() - tally.began)

    starting = [loop.create_task(node.start_daemon(warmup))]
    tally.calls = case.pods
    pods = [loop.create_task(pod(number)) for number in range(case.pods)]
    await asyncio.wait(pods, timeout=STORM_LASTS)
    for task in (*pods, *starting):
        task.cancel()
    await asyncio.gather(*pods, *starting, return_exceptions=True)


async def _both(door: Door, wanted: Sequence[str], tally: Tally) -> bool:
    for target in wanted:
        if not await call(door, target, tally):
            return False
    return True


async def _beside(node: Node) -> None:
    while True:
        await node.directly(INSTANCE)
        await asyncio.sleep(_BESIDE_EVERY)
