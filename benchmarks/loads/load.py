"""Sustained load: many connections, each of which sends its next request as soon as it has its response."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.figures import BenchmarkError
from benchmarks.loads import wrk
from benchmarks.loads.shapes import CONNECTIONS, Sample, Shape
from benchmarks.machine import procfs, programs
from benchmarks.machine.processes import ROOT, Running

NEARLY_ALL = 0.95
"""If the load used this share of its core, the load limited the rate, not the server."""

_MARGIN = 30.0


@dataclass(frozen=True, slots=True)
class Load:
    """A source of load; `words` names it in the report."""

    words: str
    run: Callable[[int, Shape, int, float], Sample]
    """Loads a port with a shape over a number of connections for some seconds."""

    def __call__(self, server: Running, shape: Shape, seconds: float, connections: int = CONNECTIONS) -> Sample:
        """Load a server, and measure the processor time of both sides.

        Raises:
            BenchmarkError: The server answered nothing, or the load failed.
        """
        before, began = (_children_seconds(), procfs.processor_seconds(server.pid)), time.perf_counter()
        sample = self.run(server.port, shape, connections, seconds)
        taken = time.perf_counter() - began
        after = (_children_seconds(), procfs.processor_seconds(server.pid))
        if not sample.count:
            raise BenchmarkError("under load: nothing was answered")
        processor = None
        if before[1] is not None and after[1] is not None:
            processor = (after[1] - before[1]) * 1_000_000 / sample.count
        return replace(sample, busy=(after[0] - before[0]) / taken, processor_ms=processor)


def choose() -> Load:
    """Return wrk as the load if it is installed, otherwise the bundled generator."""
    program = programs.find("wrk")
    if program is None:
        return Load("Load by benchmarks.loads.generator, as wrk is not installed: every rate is a lower bound", _own)
    return Load("Load by wrk with one thread", lambda *wanted: _wrk(program, *wanted))


def _wrk(program: str, port: int, shape: Shape, connections: int, seconds: float) -> Sample:
    return wrk.read(_output(wrk.command(program, port, shape, connections, seconds), seconds, wrk.early(seconds)))


def _own(port: int, shape: Shape, connections: int, seconds: float) -> Sample:
    kept = "ends" if shape.ends else "stays"
    arguments = [str(port), shape.kind, str(shape.entries), kept, str(connections), str(seconds)]
    return Sample(**json.loads(_output([sys.executable, "-m", "benchmarks.loads.generator", *arguments], seconds)))


def _output(command: list[str], seconds: float, interrupt_after: float | None = None) -> str:
    name = Path(command[0]).name
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            if interrupt_after is not None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(interrupt_after)
                process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=seconds + _MARGIN)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(f"{name} did not end") from None
        finally:
            process.kill()
    if process.returncode:
        raise BenchmarkError(f"under load: {name}: {(err or out).strip()}")
    return out


def _children_seconds() -> float:
    """Return the processor seconds of all children that have ended.

    The difference between two calls is the load's own time, because no other child ends in between.
    """
    try:
        import resource  # noqa: PLC0415  # there is none on Windows
    except ImportError:
        return 0.0
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
