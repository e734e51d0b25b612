"""All faults, where each is tested, and how several happen side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests import virtual
from tests.size import LONG
from tests.system.faults import of_clients, of_imds, of_proxy
from tests.system.faults.run import Fault, Outcome, run
from tests.system.faults.worlds import VirtualWorld, logged_lines, real_world

GROUPS = (of_imds.FAULTS, of_proxy.FAULTS, of_clients.FAULTS)
"""The faults; those of a group happen side by side, each to a proxy of its own."""
ALL = {fault.name: fault for group in GROUPS for fault in group}
VIRTUAL = {**{name: ALL[name] for name in of_imds.LONG_LASTING}, "clock": of_proxy.VIRTUAL_CLOCK}
"""Those that happen to a proxy in virtual time as well, at full length."""
REAL = ALL if LONG else {name: fault for name, fault in ALL.items() if name not in of_imds.TOO_LONG}

Result = Outcome | BaseException


async def happen(faults: Iterable[Fault], folder: Path) -> Mapping[str, Result]:
    """Let faults happen side by side, each to a real proxy of its own."""
    chosen = list(faults)
    results = await asyncio.gather(*(_happen(fault, folder) for fault in chosen), return_exceptions=True)
    return {fault.name: result for fault, result in zip(chosen, results, strict=True)}


async def _happen(fault: Fault, folder: Path) -> Outcome:
    ours = folder / fault.name
    ours.mkdir()
    async with real_world(ours, fault.name, **fault.settings, **({} if LONG else fault.short)) as world:
        if fault.prepare is not None:
            fault.prepare(world)
        await world.start()
        outcome = await run(fault, world, fault.seconds[LONG])
        await world.end()
        return outcome


def happen_in_virtual_time(fault: Fault) -> Outcome:
    """Let a fault happen to a proxy in virtual time, at full length."""

    async def scenario(lines: list[str]) -> Outcome:
        world = VirtualWorld(lines)
        try:
            return await run(fault, world, fault.seconds[1])
        finally:
            await world.stage.proxy.fetches.close()

    with logged_lines() as lines:
        return virtual.run(scenario(lines))
