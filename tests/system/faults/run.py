"""Let a fault happen to a proxy, measure what came of it, and check what has to hold in every fault."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from imdsproxy.testing.counting import most_in_a_second
from tests.system.faults.clients import Crowd, Got, check_approvals
from tests.system.faults.worlds import RealWorld, World

BUDGET = 5
GROWTH = 12 << 20
"""Bytes that a proxy may hold more after a fault than before. What the allocators keep differs from run to run; the
load alone makes a new process grow by up to 4 MiB."""
POOL = 24 << 20
"""The same where clients have used the pool for requests: what the C library may keep of it (docs/memory.md)."""
_QUIET = 6.0
"""Seconds before a fault, in which every kind is answered and the network document has become stale once."""
_STAYS_WELL = 3.0

Trouble = Callable[[Any, float], Awaitable[None]]
"""Makes the trouble in a world, for so many seconds, and returns when its cause is gone."""


@dataclass(frozen=True)
class Fault:
    """A line of the table."""

    name: str
    """The parameter of its test."""
    words: str
    """What happens, for people."""
    trouble: Trouble
    seconds: tuple[float, float]
    """How long, in `make test` and at full size."""
    begins: str = "IMDS fails"
    """What the log says when it begins; empty if nothing is wrong by the proxy's own judgement."""
    ends: str = "IMDS answers again"
    longest: float = 80.0
    """The longest that a client may have to wait for its answer, at full size."""
    well_within: float = 15.0
    """The longest that it may take until all is well again."""
    log_within: float = 20.0
    """The longest until the log says so."""
    settings: Mapping[str, object] = field(default_factory=dict)
    short: Mapping[str, object] = field(default_factory=dict)
    """Settings in `make test` alone."""
    prepare: Callable[[RealWorld], None] | None = None
    """Changes how the proxy is started."""
    growth: int = GROWTH
    cut: bool = False
    """Whether connections may end without an answer: the proxy was killed."""


@dataclass(frozen=True)
class Outcome:
    """What came of a fault: what its line of the table says."""

    got: dict[str, dict[str, float]]
    """The answers to each kind of request, in a word, with the longest wait in seconds."""
    well_after: float
    """Seconds from the end of the cause until each kind was answered well, for good."""
    arrived: int
    """Requests that reached IMDS during the fault."""
    worst: int
    """The most of them in any second, until all was well."""
    grown: int
    """Bytes that the proxy holds more than before."""


async def run(fault: Fault, world: World, seconds: float) -> Outcome:
    """Let a fault happen, and return what came of it; AssertionError if a promise was not kept."""
    loop = asyncio.get_running_loop()
    crowd = world.crowd
    crowd.start()
    begun = loop.time()
    await _until(
        lambda: crowd.answered_well_since(begun, loop.time()), 40.0 + world.patience, lambda: _state(crowd, begun)
    )
    await asyncio.sleep(_QUIET)
    memory = world.memory()
    begin = loop.time()
    await fault.trouble(world, seconds)
    end = loop.time()
    within = fault.well_within + fault.longest + world.patience
    await _until(lambda: crowd.answered_well_since(end, loop.time()), within, lambda: _state(crowd, end))
    await asyncio.sleep(_STAYS_WELL)
    await crowd.end(fault.longest + world.patience)
    if fault.ends:
        await _until(lambda: fault.ends in world.log, fault.log_within + world.patience, lambda: world.log[-3000:])
    outcome = Outcome(
        _during(crowd.got, begin, end),
        _well_after(crowd.got, end),
        sum(begin <= asked.at < end for asked in world.imds.arrivals),
        most_in_a_second(asked.at for asked in world.imds.arrivals),
        world.memory() - memory,
    )
    _check(fault, world, outcome)
    return outcome


def _check(fault: Fault, world: World, outcome: Outcome) -> None:
    crowd, log = world.crowd, world.log
    assert not crowd.broken, crowd.broken[0]
    check_approvals(crowd.approvals, world.imds.arrivals)
    assert outcome.worst <= BUDGET, f"{outcome.worst} requests reached IMDS within a second"
    slowest = max(crowd.got, key=lambda got: got.ended - got.began)
    assert slowest.ended - slowest.began <= fault.longest + world.patience, f"a client waited too long: {slowest}"
    assert outcome.well_after <= fault.well_within + world.patience, f"well only after {outcome.well_after:.1f} s"
    assert outcome.grown <= fault.growth, f"{outcome.grown / 2**20:.1f} MiB more than before"
    assert fault.cut or not [got for got in crowd.got if not got.status], "a connection ended without an answer"
    assert "Traceback" not in log, log[-3000:]
    if fault.begins:
        assert log.count(fault.begins) >= 1, log[-3000:]
        assert log.find(fault.begins) < log.rfind(fault.ends), log[-3000:]


async def _until(true: Callable[[], bool], seconds: float, state: Callable[[], str]) -> None:
    end = asyncio.get_running_loop().time() + seconds
    while not true():
        assert asyncio.get_running_loop().time() < end, f"not well within {seconds:.0f} s\n{state()}"
        await asyncio.sleep(0.1)


def _state(crowd: Crowd, begin: float) -> str:
    """Return the latest answers to each kind, for a person."""
    kinds: dict[str, list[str]] = {}
    for got in crowd.got:
        if got.began >= begin:
            kinds.setdefault(got.kind, []).append(f"{got.word} {got.cache_status} {got.body[:120]!r}")
    return f"{len(crowd.under_way)} wait\n" + "\n".join(f"{kind}: {words[-2:]}" for kind, words in kinds.items())


def _during(got: list[Got], begin: float, end: float) -> dict[str, dict[str, float]]:
    """Return what requests got that began during the fault."""
    found: dict[str, dict[str, float]] = {}
    for each in got:
        if begin <= each.began < end:
            words = found.setdefault(each.kind, {})
            words[each.word] = max(words.get(each.word, 0.0), each.ended - each.began)
    return found


def _well_after(got: list[Got], end: float) -> float:
    """Return how long after `end` the last kind got its first good answer after which none was bad."""
    latest = 0.0
    for kind in {each.kind for each in got}:
        ours = [each for each in got if each.kind == kind]
        bad = max((each.ended for each in ours if not each.good), default=-math.inf)
        first = min((each.ended for each in ours if each.good and each.ended > max(bad, end)), default=bad)
        latest = max(latest, first - end)
    return latest
