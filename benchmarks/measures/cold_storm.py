"""A cold storm: all clients at once request what no cache holds, while IMDS answers five requests a second."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.effort import Effort
from benchmarks.figures import DIRECT, NGINX, OURS, Figure, Unit
from benchmarks.loads.client import read_response, request
from benchmarks.machine.processes import Running
from benchmarks.samples import most_in_a_second, percentile
from benchmarks.servers.arrivals import Arrival, Arrivals
from benchmarks.servers.bench import Bench
from benchmarks.servers.peers import PEERS
from benchmarks.targets import INSTANCE

_LATENCY = 0.02
_RATE = 5
_LIFETIME = 60
_FIRST_WAIT = 1.0
_RETRIES_OF_A_LIBRARY = 3
# Seconds between the storms of two servers: the first burst at each IMDS ends before the next one starts.
_APART = 0.6
# Seconds in which every client connects, and the permit of the readiness check returns.
_BEFORE = 1.5
_MARGIN = 30.0


@dataclass(frozen=True, slots=True)
class Storm:
    """The outcome of one storm: for each client the seconds until its response, None if it gave up."""

    answered: Sequence[float | None]
    attempts: Sequence[int]
    arrivals: Sequence[Arrival]

    def after(self, share: float) -> float:
        """Return the seconds until this share of the clients had a response, infinity if that never came."""
        return percentile([math.inf if each is None else each for each in self.answered], share)

    def figures(self) -> dict[str, float]:
        """Return the figures by name, without the times that never came."""
        times = [each for each in self.answered if each is not None]
        figures = {
            "reached_requests": len(self.arrivals),
            "refused_requests": sum(arrival.status == 429 for arrival in self.arrivals),
            "most_in_a_second_requests": most_in_a_second([arrival.at for arrival in self.arrivals]),
            "median_s": self.after(0.5),
            "last_s": max(times, default=math.inf),
            "library_clients": sum(
                each is None or tries > 1 + _RETRIES_OF_A_LIBRARY
                for each, tries in zip(self.answered, self.attempts, strict=True)
            ),
            "gave_up_clients": len(self.answered) - len(times),
        }
        return {name: float(value) for name, value in figures.items() if math.isfinite(value)}


def storm(bench: Bench, effort: Effort) -> list[Figure]:
    """Run the same storm on IMDS itself, and on each cache in front of an IMDS of its own."""
    storms: dict[str, Storm] = {}
    with contextlib.ExitStack() as stack:
        waiting: dict[str, tuple[Running, Running]] = {}

        def imds() -> Running:
            return stack.enter_context(bench.emulator(_LATENCY, _RATE))

        behind = imds()
        waiting[OURS] = (stack.enter_context(bench.proxy(behind)), behind)
        for peer in PEERS:
            with bench.or_left_out(peer.name):
                behind = imds()
                cache = stack.enter_context(bench.peer(peer, behind, lifetime=_LIFETIME, paced=True))
                waiting[peer.name] = (cache, behind)
        behind = imds()
        waiting[DIRECT] = (behind, behind)
        arrivals = {name: Arrivals(upstream) for name, (_, upstream) in waiting.items()}
        ports = {name: server.port for name, (server, _) in waiting.items()}
        clients = asyncio.run(_storms(ports, effort))
        for name, outcomes in clients.items():
            answered, attempts = zip(*outcomes, strict=True)
            storms[name] = Storm(answered, attempts, arrivals[name].new())
    return _figures(storms, effort)


def _figures(storms: dict[str, Storm], effort: Effort) -> list[Figure]:
    clients = f"{effort.cold_clients:,} clients, {effort.cold_targets} cold targets"
    by_server = {name: outcome.figures() for name, outcome in storms.items()}
    how = (
        f"IMDS takes {_LATENCY:g} s, answers {_RATE} a second and 429 to the rest. A client without a 200 tries again "
        f"1, 2, 4 … s later, until {effort.cold_patience:g} s are over. imdsproxy has its default settings; {NGINX} "
        f"passes 290 requests a minute and lets the others wait; all store responses for {_LIFETIME} s."
    )
    rows: Sequence[tuple[str, str, Unit, str]] = (
        ("reached_requests", "requests to IMDS", "requests", how),
        ("refused_requests", "of them answered 429", "requests", ""),
        ("most_in_a_second_requests", "most requests to IMDS in any second", "requests", ""),
        ("median_s", "half of all clients answered after", "s", "Empty if that never came."),
        ("last_s", "the last answer that came, after", "s", ""),
        (
            "library_clients",
            "not answered after three retries",
            "clients",
            "Microsoft's own client library gives up after them.",
        ),
        ("gave_up_clients", "gave up", "clients", ""),
    )
    return [
        Figure(
            name=f"cold_{name}",
            what=f"{clients}: {what}",
            unit=unit,
            measured={server: figures[name] for server, figures in by_server.items() if name in figures},
            note=note,
        )
        for name, what, unit, note in rows
    ]


async def _storms(ports: dict[str, int], effort: Effort) -> dict[str, list[tuple[float | None, int]]]:
    tasks = {}
    async with (
        asyncio.timeout(effort.cold_patience + len(ports) * _APART + _BEFORE + _MARGIN),
        asyncio.TaskGroup() as group,
    ):
        for number, (name, port) in enumerate(ports.items()):
            tasks[name] = group.create_task(_one_storm(port, effort, _BEFORE + number * _APART))
    return {name: task.result() for name, task in tasks.items()}


async def _one_storm(port: int, effort: Effort, delay: float) -> list[tuple[float | None, int]]:
    start = asyncio.Event()
    targets = [f"{INSTANCE}&cold={number % effort.cold_targets}" for number in range(effort.cold_clients)]
    clients = [_Client(port, target) for target in targets]
    for client in clients:
        await client.connect()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(client.ask(start, effort.cold_patience)) for client in clients]
        await asyncio.sleep(delay)
        start.set()
    return [task.result() for task in tasks]


class _Client:
    """A client that repeats one request until it has a 200, over one connection while that stays open."""

    def __init__(self, port: int, target: str) -> None:
        self._port = port
        self._raw = request(port, target)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        self._streams = await asyncio.open_connection("127.0.0.1", self._port)

    async def ask(self, start: asyncio.Event, patience: float) -> tuple[float | None, int]:
        """Return the seconds until the response, None if the client gave up, and the number of attempts."""
        await start.wait()
        clock = asyncio.get_running_loop().time
        began = clock()
        wait, attempts = _FIRST_WAIT, 0
        try:
            async with asyncio.timeout(patience):
                while True:
                    attempts += 1
                    if await self._attempt() == 200:
                        return clock() - began, attempts
                    await asyncio.sleep(wait)
                    wait *= 2
        except TimeoutError:
            return None, attempts
        finally:
            self._drop()

    async def _attempt(self) -> int | None:
        """Send the request once, and return the status, or None if the connection failed."""
        try:
            if self._streams is None:
                await self.connect()
            assert self._streams is not None
            reader, writer = self._streams
            writer.write(self._raw)
            return (await read_response(reader)).status
        except (OSError, asyncio.IncompleteReadError):
            self._drop()
            return None

    def _drop(self) -> None:
        streams, self._streams = self._streams, None
        if streams is not None:
            streams[1].close()
