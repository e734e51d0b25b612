"""One run: the processes, the clients, the phases, the samples, and at the end what the verdict depends on."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.machine import procfs
from benchmarks.machine.processes import Running, running
from benchmarks.soak import clients, sampling
from benchmarks.soak.exchange import ask
from benchmarks.soak.floods import FLOODS
from benchmarks.soak.pace import adjusted
from benchmarks.soak.plan import FAULTS, Phase, phases
from benchmarks.soak.state import PATIENCE, Run
from benchmarks.soak.tasks import Tasks, first_of
from benchmarks.soak.verdict import MIB, Measured, Sample
from imdsproxy.server.memory_bound import most_memory

SETTINGS: dict[str, object] = {
    # A small cache is full after minutes, so that a growing one is not taken for a leak.
    "cache_max_bytes": MIB,
    "max_body_bytes": MIB // 4,
    "access_log": "true",
    # Short, so that each of these times passes often, and a fault is over within its phase.
    "header_timeout": 3,
    "read_timeout": 5,
    "retry_max": 10,
}
MOST_CONNECTIONS = 200
"""Connections for which the bound of memory is computed: more than all floods and clients have."""
_SAMPLES = 240
_LONGEST_PAUSE = 5.0
_CONTROL_PAUSE = 1.0
_CONTROLS = 5
_SETTLE_SECONDS = 15.0
_FAULT_LINES = ("Traceback", " critical ", "never retrieved", "was never awaited")
_EVENT = {"EventType": "Reboot", "NoticeInSeconds": 20, "DurationInSeconds": 5}


@dataclass(slots=True)
class Soak:
    """A run that can be ended early, by `stop`.

    Attributes:
        seconds: How long it takes.
        seed: What decides about faults and floods.
        folder: Where the logs and the samples go.
        say: Called with a line about each phase.
    """

    seconds: float
    seed: int
    folder: Path
    say: Callable[[str], None]
    samples: list[Sample] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    used_core: float = 0.0
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    _resting: bool = False

    def measure(self) -> Measured:
        """Run, and return what was measured.

        Raises:
            BenchmarkError: A process did not start, or the proxy has ended.
        """
        socket = self.folder / "proxy.sock"
        emulator_command = [sys.executable, "-m", "imdsproxy.emulator", "--port", "0", "--quiet", "--speed", "4"]
        emulator_log, proxy_log = self.folder / "emulator.log", self.folder / "proxy.log"
        with running("the emulator", emulator_command, core=None, log=emulator_log) as emulator:
            named = {"port": 0, "uds": socket, "upstream": f"http://127.0.0.1:{emulator.port}", **SETTINGS}
            settings = {f"IMDSPROXY_{name.upper()}": str(value) for name, value in named.items()}
            command = [sys.executable, "-m", "imdsproxy"]
            with running("the proxy", command, core=None, settings=settings, log=proxy_log) as proxy:
                measured = asyncio.run(self._run(emulator, proxy, Run(proxy.port, socket, self.seed), proxy_log))
        return measured

    async def _run(self, emulator: Running, proxy: Running, run: Run, log: Path) -> Measured:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self.stop.set)
        record = sampling.Record(emulator.port)
        await _until_ready(proxy.port)
        began = time.monotonic()
        base = sampling.sample(proxy.pid, began)
        found, self.left_out = clients.clients()
        faster = max(1.0, 600.0 / self.seconds)
        async with Tasks() as tasks:
            for client in found.values():
                tasks.add(client(run, faster))
            tasks.add(self._sample(proxy, began))
            tasks.add(self._control(run, record))
            await self._phases(emulator, run, began, tasks)
            lost = await self._last_answers(run, emulator)
        end = await _settled(proxy, began, base)
        await record.read()
        self.used_core = sampling.processor_seconds() / (time.monotonic() - began)
        return Measured(
            samples=self.samples,
            base=base,
            end=end,
            peak=int((procfs.peak(proxy.pid) or 0.0) * MIB),
            bound=most_memory(MIB, MIB // 4, MOST_CONNECTIONS),
            arrivals=record.moments,
            ledger=run.ledger,
            lost=lost,
            used=set(found),
            log=faults_in(log),
        )

    async def _phases(self, emulator: Running, run: Run, began: float, tasks: Tasks) -> None:
        """Begin one phase after the other until the time is over, or a signal or a failed task ends the run."""
        for phase in phases(self.seed, self.seconds):
            left = self.seconds - (time.monotonic() - began)
            if left <= 0.05 or self.stop.is_set():
                return
            seconds = min(phase.seconds, left)
            self.say(_words(phase, time.monotonic() - began, self.samples, run.pace.now))
            self._resting = False
            if phase.fault is not None:
                run.fault_lasts(seconds)
                await sampling.control(
                    emulator.port, "POST", "/-/faults", [{**each, "for": seconds} for each in FAULTS[phase.fault]]
                )
            await sampling.control(emulator.port, "POST", "/-/events", _EVENT)
            async with Tasks() as floods:
                if phase.flood is not None:
                    floods.add(FLOODS[phase.flood](run))
                if phase.rest:
                    floods.add(self._rest(seconds))
                await first_of(self.stop.wait(), asyncio.sleep(seconds), tasks.failed(), floods.failed())

    async def _rest(self, seconds: float) -> None:
        """Sample the second half of a rest only, when what the last flood left has ended."""
        await asyncio.sleep(seconds / 2)
        self._resting = True
        await asyncio.Event().wait()

    async def _sample(self, proxy: Running, began: float) -> None:
        pause = min(_LONGEST_PAUSE, max(0.5, self.seconds / _SAMPLES))
        with (self.folder / "samples.tsv").open("w", encoding="ascii", buffering=1) as file:
            file.write("seconds\tresident_mib\tproportional_mib\tdescriptors\tthreads\tconnections\trest\n")
            while True:
                resting = self._resting
                connections = await sampling.connections(proxy.port)
                one = sampling.sample(proxy.pid, began, connections=connections, rest=resting and self._resting)
                self.samples.append(one)
                file.write(
                    f"{one.at:.1f}\t{one.resident / MIB:.2f}\t{one.proportional / MIB:.2f}\t{one.descriptors}\t"
                    f"{one.threads}\t{one.connections}\t{int(one.rest)}\n"
                )
                await asyncio.sleep(min(pause, 1.0) if self._resting else pause)

    async def _control(self, run: Run, record: sampling.Record) -> None:
        """Keep the processor time within its share, and read the emulator's record."""
        while True:
            at, before = time.monotonic(), sampling.processor_seconds()
            for _ in range(_CONTROLS):
                await asyncio.sleep(_CONTROL_PAUSE)
                await record.read()
            used = (sampling.processor_seconds() - before) / (time.monotonic() - at)
            run.pace.now = adjusted(run.pace.now, used)

    async def _last_answers(self, run: Run, emulator: Running) -> dict[str, int]:
        """Return, by client, how many requests were waiting at the end and still wait when IMDS has been well."""
        await sampling.control(emulator.port, "DELETE", "/-/faults")
        pending = set(run.waiting)
        deadline = time.monotonic() + PATIENCE + _CONTROL_PAUSE
        while not self.stop.is_set() and pending & run.waiting.keys() and time.monotonic() < deadline:  # noqa: ASYNC110  # ends by several causes
            await asyncio.sleep(0.1)
        return {} if self.stop.is_set() else Counter(run.waiting[each] for each in pending & run.waiting.keys())


async def _until_ready(port: int) -> None:
    ready = b"GET /-/ready HTTP/1.1\r\nHost: localhost\r\n\r\n"
    while (await ask(port, ready)).status != 200:  # noqa: ASYNC110  # another process gets ready
        await asyncio.sleep(0.05)


async def _settled(proxy: Running, began: float, base: Sample) -> Sample:
    """Return the first sample with no more descriptors than before the first client, or the last within some time."""
    deadline = time.monotonic() + _SETTLE_SECONDS
    while True:
        end = sampling.sample(proxy.pid, began)
        if end.descriptors <= base.descriptors or time.monotonic() > deadline:
            return end
        await asyncio.sleep(0.2)


def faults_in(log: Path) -> list[str]:
    """Return the lines of a log that are faults of the program."""
    with log.open(encoding="utf-8", errors="replace") as file:
        return [line for line in file if any(mark in line for mark in _FAULT_LINES)]


def _words(phase: Phase, at: float, samples: Sequence[Sample], pace: float) -> str:
    what = "rest" if phase.rest else f"fault: {phase.fault or 'none'}; flood: {phase.flood or 'none'}"
    memory = f"; {samples[-1].resident / MIB:.1f} MiB, {samples[-1].descriptors} descriptors" if samples else ""
    return f"{at:6.0f} s  {what}{memory}; pace {pace:.2f}"
