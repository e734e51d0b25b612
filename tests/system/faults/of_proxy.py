"""The faults of the proxy itself and of its machine."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from pathlib import Path
from typing import Any

from tests.system.faults.run import POOL, Fault
from tests.system.faults.worlds import RealWorld, VirtualWorld

_DAY = 86_400
_HEADS = 400
_FEW = 200
_DROPPED = "imdsproxy_log_dropped_total"
_HIT = b"GET /metadata/versions HTTP/1.1\r\nHost: localhost\r\nUser-Agent: %s\r\n\r\n" % (b"a" * 80)
_LAST_HIT = _HIT[:-2] + b"Connection: close\r\n\r\n"
FAKETIME = next(
    Path(__file__).resolve().parents[3].glob(".debian/libfaketime/usr/lib/*/faketime/libfaketime.so.1"), None
)


def share_the_budget(world: RealWorld) -> None:
    """Name a file for the budget, as the service does, so that the next process knows what the last one has spent."""
    world.settings["budget_file"] = world.folder / "budget"


async def kill_and_restart(world: RealWorld, seconds: float) -> None:
    """End the process at once, and start the next one as soon as possible."""
    world.proxy.process.kill()
    await asyncio.to_thread(world.proxy.process.wait)
    await world.start()


async def stop_and_go_on(world: RealWorld, seconds: float) -> None:
    world.proxy.signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    world.proxy.signal(signal.SIGCONT)


async def take_descriptors(world: RealWorld, seconds: float) -> None:
    """Allow the process no descriptor beyond those that it has, and let clients take what is left."""
    pid = world.proxy.process.pid
    _, hard = before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    most = max(map(int, await asyncio.to_thread(os.listdir, f"/proc/{pid}/fd")))
    taken: list[asyncio.StreamWriter] = []
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (most + 1, hard))
    try:
        while len(taken) < most:
            taken += (await asyncio.open_connection("127.0.0.1", world.port))[1:]
        await asyncio.sleep(seconds)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for each in taken:
            each.transport.abort()


async def fill_memory(world: RealWorld, seconds: float) -> None:
    """Send heads without an end, until the pool that all connections share is full."""
    head = b"GET / HTTP/1.1\r\nHost: x\r\n" + b"".join(b"x-%d: %s\r\n" % (n, b"a" * 670) for n in range(90))
    held = []
    try:
        for _ in range(_HEADS):
            writer = (await asyncio.open_connection("127.0.0.1", world.port))[1]
            held.append(writer)
            writer.write(head)
            await asyncio.sleep(0)
        await asyncio.sleep(seconds)
    finally:
        for each in held:
            each.transport.abort()


async def stall_the_log(world: RealWorld, seconds: float) -> None:
    """Leave the access log unread until lines are dropped; then read on."""
    world.leave_log_unread()
    end = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < end or not await asyncio.to_thread(world.proxy.metric, _DROPPED):
        reader, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(_HIT * 99 + _LAST_HIT)
        await reader.read()
        writer.transport.abort()
    world.read_log()


async def fill_the_disk(world: RealWorld, seconds: float) -> None:
    """Allow the process no longer file than its log; what it writes then fails as on a full disk."""
    pid = world.proxy.process.pid
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (len(world.log.encode()), before[1]))
    await asyncio.sleep(seconds)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def fake_time(world: RealWorld) -> None:
    world.environment = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(world.folder / "offset"),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    (world.folder / "offset").write_text("+0", encoding="ascii")
    share_the_budget(world)


async def jump(world: RealWorld, seconds: float) -> None:
    """Set the wall clock a day ahead, then a day back, then right again."""
    for offset in (_DAY, -_DAY, 0):
        (world.folder / "offset").write_text(f"{offset:+d}", encoding="ascii")
        await asyncio.sleep(seconds / 3)


def few_descriptors(world: RealWorld) -> None:
    world.command = ("prlimit", f"--nofile={_FEW}:{_FEW}")


async def too_many_connections(world: RealWorld, seconds: float) -> None:
    """Hold more connections than the process has descriptors for, each within a request."""
    held = []
    try:
        for _ in range(_FEW):
            held.append((await asyncio.open_connection("127.0.0.1", world.port))[1])
            held[-1].write(b"GET / HTTP/1.1\r\n")
        await asyncio.sleep(seconds)
    finally:
        for each in held:
            each.transport.abort()


_SHORT = (3.0, 8.0)
_UNSEEN: dict[str, Any] = {"begins": "", "ends": ""}
FAULTS = (
    Fault(
        *("killed", "the proxy is killed (SIGKILL) and started again, with `IMDSPROXY_BUDGET_FILE`", kill_and_restart),
        *((0.0, 0.0), "", "listening"),
        well_within=45.0,
        prepare=share_the_budget,
        cut=True,
    ),
    Fault("stopped", "the proxy is stopped (SIGSTOP) and goes on", stop_and_go_on, _SHORT, **_UNSEEN),
    Fault(
        *("descriptors", "the proxy has no free descriptor", take_descriptors, _SHORT),
        *("no connection can be accepted", "connections are accepted again"),
    ),
    Fault(
        *("connections", "more connections than descriptors", too_many_connections, _SHORT),
        *("too many connections", "connections are accepted again"),
        prepare=few_descriptors,
        cut=True,
    ),
    Fault(
        *("memory", "the memory for requests is used up", fill_memory, _SHORT),
        *("memory for requests used up", "no more requests are refused for want of memory"),
        growth=POOL,
    ),
    Fault(
        *("log", "nothing reads the access log", stall_the_log, _SHORT, "", "log lines dropped"),
        settings={"access_log": "true"},
        prepare=RealWorld.log_to_a_pipe,
    ),
    Fault(
        *("disk", "the disk of the access log is full", fill_the_disk, _SHORT, "", "log lines dropped"),
        settings={"access_log": "true"},
    ),
    Fault(
        *("clock", "the wall clock jumps a day ahead, then a day back", jump, (6.0, 60.0)), **_UNSEEN, prepare=fake_time
    ),
)


async def jump_virtually(world: VirtualWorld, seconds: float) -> None:
    for offset in (_DAY, -2 * _DAY, _DAY):
        world.stage.clock.wall_offset += offset
        await asyncio.sleep(seconds / 3)


VIRTUAL_CLOCK = Fault("clock", "as above", jump_virtually, (60.0, 60.0), **_UNSEEN)
