"""The load: many connections that ask again as soon as they are answered, by wrk or, without it, by our own."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from benchmarks import peers, proc
from benchmarks.client import INSTANCE
from benchmarks.figures import BenchmarkError
from benchmarks.processes import ROOT, Running

CONNECTIONS = 32
NEARLY_ALL = 0.95
"""The share of its core from which on the load is taken to be what limits the rate."""

Kind = Literal["repeated", "differing", "entries"]

_SCRIPT = Path(__file__).resolve().parent / "requests.lua"
_MARGIN = 30.0
_PATIENCE = "10s"
_COUNT = re.compile(r"^ *(\d+) requests in ", re.MULTILINE)
_RATE = re.compile(r"^Requests/sec: +([\d.]+)$", re.MULTILINE)
_SHARE = re.compile(r"^ *(50|99)% +([\d.]+)(us|ms|s|m) *$", re.MULTILINE)
_REFUSED = re.compile(r"^ *Non-2xx or 3xx responses: (\d+)$", re.MULTILINE)
_BROKEN = re.compile(r"^ *Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)$", re.MULTILINE)
_MILLISECONDS = {"us": 0.001, "ms": 1.0, "s": 1000.0, "m": 60_000.0}


@dataclass(frozen=True, slots=True)
class Shape:
    """What is asked: one target again and again, with heads that differ, or so many targets in turn."""

    kind: Kind
    entries: int = 1

    def targets(self) -> list[str]:
        """Give each target that is asked for."""
        return [f"{INSTANCE}&n={number}" for number in range(self.entries)] if self.kind == "entries" else [INSTANCE]


REPEATED = Shape("repeated")
DIFFERING = Shape("differing")


@dataclass(frozen=True, slots=True)
class Sample:
    """What one round told. `failed` counts answers that were no 2xx, and connections that broke or were too slow."""

    count: int
    rate: float
    p50_ms: float
    p99_ms: float
    failed: int
    busy: float = 0.0
    """The share of its core that the load itself took."""
    processor_ms: float | None = None
    """Processor time of the server for a thousand requests, where it is told."""


@dataclass(frozen=True, slots=True)
class Load:
    """Loads a server; `words` says for people by what means."""

    words: str
    run: Callable[[int, Shape, int, int], Sample]

    def __call__(self, server: Running, shape: Shape, seconds: int, connections: int = CONNECTIONS) -> Sample:
        """Load for whole seconds; BenchmarkError where nothing was answered at all."""
        before, began = (_children(), proc.processor_seconds(server.pid)), time.perf_counter()
        sample = self.run(server.port, shape, connections, seconds)
        taken, after = time.perf_counter() - began, (_children(), proc.processor_seconds(server.pid))
        if not sample.count:
            raise BenchmarkError("under load: nothing was answered")
        processor = None
        if before[1] is not None and after[1] is not None:
            processor = (after[1] - before[1]) * 1_000_000 / sample.count
        return replace(sample, busy=(after[0] - before[0]) / taken, processor_ms=processor)


def choose() -> Load:
    """Take wrk where it is installed."""
    wrk = peers.found("wrk")
    if wrk is None:
        return Load("Load by benchmarks.generator, as wrk is not installed: every rate is a lower bound", _own)
    return Load("Load by wrk with one thread", lambda *wanted: _wrk(wrk, *wanted))


def read(text: str) -> Sample:
    """Read what wrk prints with `--latency`; BenchmarkError where it tells no rate."""
    count, rate = _COUNT.search(text), _RATE.search(text)
    shares = {share: float(value) * _MILLISECONDS[unit] for share, value, unit in _SHARE.findall(text)}
    if count is None or rate is None or shares.keys() != {"50", "99"}:
        raise BenchmarkError(f"wrk told no rate: {' '.join(text.split())}")
    refused, broken = _REFUSED.search(text), _BROKEN.search(text)
    failed = (int(refused[1]) if refused else 0) + (sum(map(int, broken.groups())) if broken else 0)
    return Sample(int(count[1]), float(rate[1]), shares["50"], shares["99"], failed)


def _wrk(program: str, port: int, shape: Shape, connections: int, seconds: int) -> Sample:
    options = ["-t", "1", "-c", str(connections), "-d", f"{seconds}s", "--timeout", _PATIENCE, "--latency"]
    url = f"http://127.0.0.1:{port}{INSTANCE}"
    match shape.kind:
        case "repeated":
            arguments = ["-H", "Metadata: true", url]
        case "differing":
            arguments = ["-s", str(_SCRIPT), url, "--", "differing"]
        case "entries":
            arguments = ["-s", str(_SCRIPT), url, "--", "entries", str(shape.entries)]
    return read(_output([program, *options, *arguments], seconds))


def _own(port: int, shape: Shape, connections: int, seconds: int) -> Sample:
    arguments = [str(port), shape.kind, str(shape.entries), str(connections), str(seconds)]
    return Sample(**json.loads(_output([sys.executable, "-m", "benchmarks.generator", *arguments], seconds)))


def _output(command: list[str], seconds: int) -> str:
    name = Path(command[0]).name
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds + _MARGIN)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{name} did not end") from None
    if done.returncode:
        raise BenchmarkError(f"under load: {name}: {(done.stderr or done.stdout).strip()}")
    return done.stdout


def _children() -> float:
    """Give the processor seconds of all children that have ended: between two calls, those of the load."""
    try:
        import resource  # noqa: PLC0415  # there is none on Windows
    except ImportError:
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
