"""What the pods of a node request, for each workload."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

from benchmarks.scaling.cases import STEADY_SECONDS, Case, Workload
from benchmarks.scaling.clients import Tally, call, count_error
from benchmarks.scaling.node import Door, Node
from benchmarks.targets import EVENTS, INSTANCE, RESOURCES, token

# The kubelet's back-off before it restarts a failed container.
_FIRST_RESTART, _LAST_RESTART = 10.0, 300.0

_STORM_SPREAD = 30.0
"""The seconds after a reboot within which the pods start."""
_STORM_SECONDS = 300.0
"""How long a storm is watched."""
_IDENTITIES = 20
"""The number of identities whose tokens the pods of a storm request, all together."""
_POLL = 60.0
_BESIDE_EVERY = 1.0
_LEAF = "/metadata/instance/compute/tagsList/{}?api-version=2021-02-01"
_RENEWAL_POLL = 10.0
# First requests for new targets in a second: as many as there are permits.
_COLD_A_SECOND = 4.76


def _targets(workload: Workload, pod: int) -> Sequence[str]:
    if workload is Workload.OWN:
        return [token(identity=pod)]
    if workload is Workload.MIX:
        return [INSTANCE, *map(token, RESOURCES)]
    return [INSTANCE, token()]


async def request_all(workload: Workload, pod: int, door: Door, tally: Tally) -> None:
    """Request all targets of one pod within one second."""
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
        while due < tally.began + STEADY_SECONDS:
            await asyncio.sleep(max(0.0, due - loop.time()))
            await _request_once(door, target, tally)
            due = max(due + period, loop.time())  # a request that took longer than the period is followed at once

    polls = []
    for pod in range(case.pods):
        chance = random.Random(pod)
        for target, period in ((INSTANCE, _POLL), (token(), _POLL), (EVENTS, events)):
            polls.append(poll(node.door(pod), target, period, chance.random()))
    await asyncio.gather(*polls)


async def _renewal(case: Case, node: Node, tally: Tally) -> None:
    """Request each of many targets every ten seconds for twenty minutes, and count the last ten."""
    loop = asyncio.get_running_loop()
    door = node.door(0)
    counted = tally.began + STEADY_SECONDS
    before = Tally(tally.began)

    async def one(number: int) -> None:
        await asyncio.sleep(number / _COLD_A_SECOND)
        while loop.time() < counted + STEADY_SECONDS:
            seen = tally if loop.time() >= counted else before
            await _request_once(door, _LEAF.format(number), seen)
            await asyncio.sleep(_RENEWAL_POLL)

    await asyncio.gather(*map(one, range(case.targets)))


async def _arrival(case: Case, node: Node, tally: Tally) -> None:
    """Request new targets at random moments, each from a random pod, for ten minutes."""
    loop = asyncio.get_running_loop()
    chance = random.Random(case.pods)
    requests: list[asyncio.Task[None]] = []
    while loop.time() < tally.began + STEADY_SECONDS:
        await asyncio.sleep(chance.expovariate(case.rate))
        door = node.door(chance.randrange(case.pods))
        requests.append(loop.create_task(_request_once(door, _LEAF.format(len(requests)), tally)))
    await asyncio.gather(*requests)


async def _request_once(door: Door, target: str, tally: Tally) -> None:
    loop = asyncio.get_running_loop()
    tally.calls += 1
    began = loop.time()
    if not count_error(await door(target), tally):
        tally.served.append(loop.time() - began)


POLLING: Mapping[Workload, Callable[[Case, Node, Tally], Awaitable[None]]] = {
    Workload.STEADY: _steady,
    Workload.STEADY_FAST: _steady,
    Workload.RENEWAL: _renewal,
    Workload.ARRIVAL: _arrival,
}


async def start_after_reboot(case: Case, node: Node, tally: Tally) -> None:
    """Start every pod within half a minute; a pod without its responses fails, and is restarted later."""
    loop = asyncio.get_running_loop()
    warmup = (INSTANCE, *(token(identity=number) for number in range(_IDENTITIES))) if case.warmup else ()

    async def pod(number: int) -> None:
        await asyncio.sleep(random.Random(number).uniform(0, _STORM_SPREAD))
        starting.append(loop.create_task(node.start_sidecar(number)))
        restart = _FIRST_RESTART
        door = node.door(number)
        wanted = (INSTANCE, token(identity=number % _IDENTITIES))
        while not await _both(door, wanted, tally):
            tally.restarts += 1
            await asyncio.sleep(restart)
            restart = min(_LAST_RESTART, 2 * restart)
        tally.served.append(loop.time() - tally.began)

    starting = [loop.create_task(node.start_daemon(warmup))]
    tally.calls = case.pods
    pods = [loop.create_task(pod(number)) for number in range(case.pods)]
    await asyncio.wait(pods, timeout=_STORM_SECONDS)
    for task in (*pods, *starting):
        task.cancel()
    await asyncio.gather(*pods, *starting, return_exceptions=True)


async def _both(door: Door, wanted: Sequence[str], tally: Tally) -> bool:
    for target in wanted:
        if not await call(door, target, tally):
            return False
    return True


async def request_beside(node: Node) -> None:
    """Request the instance document from IMDS directly once a second, past the proxies."""
    while True:
        await node.directly(INSTANCE)
        await asyncio.sleep(_BESIDE_EVERY)
