"""The processes that are measured: started on their core with settings of our own, ended by their handle."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from benchmarks import cores
from benchmarks.client import Client
from benchmarks.cores import Cores
from benchmarks.figures import BenchmarkError

ROOT = Path(__file__).resolve().parent.parent

TOLD_NOWHERE = "Left out: this system has no /proc to read it from."

_START = 30.0
_END = 12.0
_LINES_KEPT = 10
# What each of the three says, once it listens.
_ADDRESS = re.compile(r"(?: listening address=|^emulator: |^plain: )http://127\.0\.0\.1:(\d+)")
# Nothing that the caller has set changes the proxy, or how it reaches the emulator, or has it traced.
_NOT_OURS = re.compile(r"IMDSPROXY_.*|COVERAGE_.*|PYTHONASYNCIODEBUG|PYTHONDEVMODE|.*_PROXY", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Running:
    """A process that listens at `port` of 127.0.0.1; `began` is `perf_counter` seconds before its start."""

    pid: int
    port: int
    began: float

    def resident_mebibytes(self) -> float | None:
        """Give the resident memory, or None where the system has no /proc."""
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{self.pid}/status").read_text(encoding="ascii").splitlines():
                if line.startswith("VmRSS:"):
                    return int(line.split()[1]) / 1024
        return None

    def processor_seconds(self) -> float | None:
        """Give the processor time it has had since its start, or None where the system has no /proc."""
        with contextlib.suppress(OSError):
            # The second field, the name, stands in brackets and may hold anything; 14 and 15 are what is wanted.
            after_name = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
            return (int(after_name[11]) + int(after_name[12])) / os.sysconf("SC_CLK_TCK")
        return None


@dataclass(frozen=True, slots=True)
class Bench:
    """Starts processes on the servers' core. Every one is ended when its block is left, however that happens."""

    cores: Cores

    @contextlib.contextmanager
    def emulator(self, latency: float = 0.0) -> Iterator[Running]:
        """Run the emulated IMDS without its own limit; `latency` seconds are added to every answer."""
        arguments = ["imdsproxy.emulator", "--port", "0", "--rate", "0", "--identity-rate", "0", "--quiet"]
        with self._running([*arguments, "--latency", str(latency)]) as running:
            yield running

    @contextlib.contextmanager
    def proxy(self, upstream: Running, *, until_ready: bool = True, **settings: object) -> Iterator[Running]:
        """Run the proxy in front of an emulator; settings are named in lower case."""
        named = {"port": 0, "upstream": f"http://127.0.0.1:{upstream.port}", **settings}
        environment = {f"IMDSPROXY_{name.upper()}": str(value) for name, value in named.items()}
        with self._running(["imdsproxy"], environment) as running:
            if until_ready:
                _wait_until_ready(running)
            yield running

    @contextlib.contextmanager
    def plain(self, body: bytes = b"{}") -> Iterator[Running]:
        """Run a plain ASGI application that answers every request with this body, on the same server library."""
        with self._running(["benchmarks.plain"], given=body) as running:
            yield running

    @contextlib.contextmanager
    def _running(
        self, module: Sequence[str], settings: Mapping[str, str] | None = None, given: bytes = b""
    ) -> Iterator[Running]:
        inherited = {name: value for name, value in os.environ.items() if not _NOT_OURS.fullmatch(name)}
        with cores.on(self.cores.servers):
            began = time.perf_counter()
            process = subprocess.Popen(
                [sys.executable, "-m", *module],
                cwd=ROOT,
                env={**inherited, **(settings or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        output = _Output(cast("IO[bytes]", process.stdout), module[0])
        try:
            with contextlib.suppress(OSError), cast("IO[bytes]", process.stdin) as stdin:
                stdin.write(given)  # one that ended at once does not take it, and has said why
            yield Running(process.pid, output.port(), began)
        finally:
            _end(process)
            output.end()


class _Output:
    """What a process says; a thread goes on reading it, so that the process never waits for a reader."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        self._name = name
        self._port: Future[int] = Future()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def port(self) -> int:
        """Wait for the line that tells the address."""
        try:
            return self._port.result(_START)
        except TimeoutError:
            raise BenchmarkError(f"{self._name} did not say within {_START:g} s where it listens") from None

    def end(self) -> None:
        """Wait until nobody can write any more: not the process, nor one that it started."""
        self._thread.join(_END)

    def _follow(self) -> None:
        last: deque[str] = deque(maxlen=_LINES_KEPT)
        with self._stream:
            for raw in self._stream:
                last.append(raw.decode("utf-8", "replace"))
                found = _ADDRESS.search(last[-1])
                if found and not self._port.done():
                    self._port.set_result(int(found[1]))
        if not self._port.done():
            self._port.set_exception(BenchmarkError(f"{self._name} did not start: {''.join(last).strip()}"))


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it if it does not."""
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _wait_until_ready(proxy: Running) -> None:
    end = time.monotonic() + _START
    with Client(proxy.port) as client:
        while client.get("/-/ready").status != 200:
            if time.monotonic() > end:
                raise BenchmarkError(f"the proxy was not ready within {_START:g} s")
            time.sleep(0.01)
