"""Processes that are measured: started on their core with settings of our own, ended with all that they started."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from benchmarks import cores
from benchmarks.figures import BenchmarkError

ROOT = Path(__file__).resolve().parent.parent

_START = 30.0
_END = 12.0
_LINES_KEPT = 10
_LOOK_AGAIN = 0.002
# What each of our own says, once it listens.
_ADDRESS = re.compile(r"(?: listening address=|^emulator: |^plain: |^bare: )http://127\.0\.0\.1:(\d+)")
# Nothing that the caller has set changes the proxy, or how it reaches the emulator, or has it traced.
_NOT_OURS = re.compile(r"IMDSPROXY_.*|COVERAGE_.*|PYTHONASYNCIODEBUG|PYTHONDEVMODE|.*_PROXY", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Running:
    """A process that listens at `port` of 127.0.0.1; `began` is `perf_counter` seconds before its start."""

    pid: int
    port: int
    began: float


@contextlib.contextmanager
def running(  # noqa: PLR0913 - all but the first two by keyword
    name: str,
    command: Sequence[str],
    *,
    core: int | None,
    settings: Mapping[str, str] | None = None,
    given: bytes = b"",
    port: int | None = None,
) -> Iterator[Running]:
    """Run a command while the block lasts; it is ended however the block is left.

    Where no `port` is given, the process says its own. BenchmarkError where it does not come to listen.
    """
    inherited = {key: value for key, value in os.environ.items() if not _NOT_OURS.fullmatch(key)}
    with cores.on(core):
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**inherited, **(settings or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a group of its own, by which whatever it started is found again
        )
    output = _Output(cast("IO[bytes]", process.stdout), name)
    try:
        with contextlib.suppress(OSError), cast("IO[bytes]", process.stdin) as stdin:
            stdin.write(given)  # one that ended at once does not take it, and has said why
        if port is None:
            yield Running(process.pid, output.port(), began)
        else:
            _wait_until_listening(name, process, port, output)
            yield Running(process.pid, port, began)
    finally:
        _end(process)
        output.end()


def free_port() -> int:
    """Give a port of 127.0.0.1 where nothing listens at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class _Output:
    """What a process says; a thread goes on reading it, so that the process never waits for a reader."""

    def __init__(self, stream: IO[bytes], name: str) -> None:
        self._stream = stream
        self._name = name
        self._last: deque[str] = deque(maxlen=_LINES_KEPT)
        self._port: Future[int] = Future()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def port(self) -> int:
        """Wait for the line that tells the address."""
        try:
            return self._port.result(_START)
        except TimeoutError:
            raise BenchmarkError(f"{self._name} did not say within {_START:g} s where it listens") from None

    def failure(self) -> BenchmarkError:
        """Give the error of a process that ended before it listened."""
        self.end()
        return self._not_started()

    def end(self) -> None:
        """Wait until nobody can write any more: not the process, nor one that it started."""
        self._thread.join(_END)

    def _follow(self) -> None:
        with self._stream:
            for raw in self._stream:
                self._last.append(raw.decode("utf-8", "replace"))
                told = _ADDRESS.search(self._last[-1])
                if told and not self._port.done():
                    self._port.set_result(int(told[1]))
        if not self._port.done():
            self._port.set_exception(self._not_started())

    def _not_started(self) -> BenchmarkError:
        return BenchmarkError(f"{self._name} did not start: {' '.join(''.join(self._last).split())}")


def _wait_until_listening(name: str, process: subprocess.Popen[bytes], port: int, output: _Output) -> None:
    end = time.monotonic() + _START
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _START):
            return
        if process.poll() is not None:
            raise output.failure()
        if time.monotonic() > end:
            raise BenchmarkError(f"{name} did not listen within {_START:g} s")
        time.sleep(_LOOK_AGAIN)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and make it if it does not; then whatever is left of its group."""
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
