"""Hits per second on one core, beside a plain application under the same load."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.client import INSTANCE, Client
from benchmarks.figures import BenchmarkError, Effort, Figure, median
from benchmarks.processes import ROOT, TOLD_NOWHERE, Bench, Running

CONNECTIONS = 32

_GOAL = 15_000
_MARGIN = 30.0
_COUNT = re.compile(r"^ *(\d+) requests in ", re.MULTILINE)
_RATE = re.compile(r"^Requests/sec: +([\d.]+)$", re.MULTILINE)
_FAILED = re.compile(r"^ *(?:Non-2xx or 3xx responses|Socket errors): .*$", re.MULTILINE)
_PLAIN = "a plain ASGI application"

Load = Callable[[int, int], tuple[int, float]]
"""Loads a port for so many seconds; gives how often it was answered, and how often in a second."""


@dataclass(frozen=True, slots=True)
class _Round:
    """Answers per second, and per second of the server's processor time, None where that is not told."""

    rate: float
    own_rate: float | None


def hits_per_second(bench: Bench, effort: Effort) -> list[Figure]:
    """Measure in turn the proxy on a hit, and a plain application that answers the same body."""
    load, words = _load()
    ours: list[_Round] = []
    bare: list[_Round] = []
    with bench.emulator() as emulator, bench.proxy(emulator) as proxy:
        with Client(proxy.port) as client:
            client.document(INSTANCE)
            body = client.get(INSTANCE).body
        with bench.plain(body) as plain:
            for _ in range(effort.load_rounds):
                ours.append(_round(load, proxy, effort.load_seconds))
                bare.append(_round(load, plain, effort.load_seconds))
    rate, beside = median([each.rate for each in ours]), median([each.rate for each in bare])
    own_rate = _own_rate(ours)
    return [
        Figure(
            name="hits_per_second",
            what=f"hits on one core, {CONNECTIONS} connections",
            measured=rate,
            unit="/s",
            beside=beside,
            beside_what=_PLAIN,
            bound="at least",
            goal=_GOAL,
            note=f"{words}; a body of {len(body):,} bytes; {rate / beside:.0%} of what the plain application "
            "does on the same uvicorn.",
        ),
        Figure(
            name="hits_per_processor_second",
            what="hits per second of processor time",
            measured=own_rate,
            unit="/s",
            beside=_own_rate(bare),
            beside_what=_PLAIN,
            note=TOLD_NOWHERE
            if own_rate is None
            else "The same rounds, counted by the time the server had on its core: other programs count less in it.",
        ),
    ]


def _round(load: Load, server: Running, seconds: int) -> _Round:
    before = server.processor_seconds()
    count, rate = load(server.port, seconds)
    after = server.processor_seconds()
    if before is None or after is None or after <= before:
        return _Round(rate, None)
    return _Round(rate, count / (after - before))


def _own_rate(rounds: Sequence[_Round]) -> float | None:
    told = [each.own_rate for each in rounds if each.own_rate is not None]
    return median(told) if told else None


def _load() -> tuple[Load, str]:
    wrk = shutil.which("wrk")
    if wrk is None:
        return _own, "Load by benchmarks.generator, as wrk is not installed: a lower bound for both"

    def load(port: int, seconds: int) -> tuple[int, float]:
        return _wrk(wrk, port, seconds)

    return load, "Load by wrk with one thread"


def _wrk(program: str, port: int, seconds: int) -> tuple[int, float]:
    url = f"http://127.0.0.1:{port}{INSTANCE}"
    arguments = ["-t", "1", "-c", str(CONNECTIONS), "-d", f"{seconds}s", "-H", "Metadata: true", url]
    text = _output([program, *arguments], seconds)
    failed = _FAILED.search(text)
    if failed:
        raise BenchmarkError(f"under load: {failed[0].strip()}")
    count, rate = _COUNT.search(text), _RATE.search(text)
    if count is None or rate is None or int(count[1]) == 0:
        raise BenchmarkError(f"wrk told no rate: {text.strip()}")
    return int(count[1]), float(rate[1])


def _own(port: int, seconds: int) -> tuple[int, float]:
    arguments = [str(port), str(CONNECTIONS), str(seconds), INSTANCE]
    count, rate = _output([sys.executable, "-m", "benchmarks.generator", *arguments], seconds).split()
    return int(count), float(rate)


def _output(command: list[str], seconds: int) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds + _MARGIN)
    except subprocess.TimeoutExpired:
        raise BenchmarkError(f"{command[0]} did not end") from None
    if done.returncode:
        raise BenchmarkError(f"under load: {(done.stderr or done.stdout).strip()}")
    return done.stdout
