"""Start the measured processes on their core with our settings only, and end them with all their descendants."""

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

from benchmarks.figures import BenchmarkError
from benchmarks.machine import cores

ROOT = Path(__file__).resolve().parents[2]

_START_TIMEOUT = 30.0
_END_TIMEOUT = 12.0
_LINES_KEPT = 10
_POLL_INTERVAL = 0.002
# The line that each of our own processes writes once it listens.
_ADDRESS = re.compile(r"(?: listening address=|^emulator: |^plain: |^bare: )http://127\.0\.0\.1:(\d+)")
# Not inherited, because they would change the proxy, its way to the emulator, have it traced, or have each start
# compile it again, as no start of an installed proxy does.
_NOT_INHERITED = re.compile(
    r"IMDSPROXY_.*|COVERAGE_.*|PYTHONASYNCIODEBUG|PYTHONDEVMODE|PYTHONDONTWRITEBYTECODE|.*_PROXY", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Running:
    """A process that listens at `port` of 127.0.0.1; `began` is the time of its start (`time.perf_counter`)."""

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
    stdin: bytes = b"",
    port: int | None = None,
    log: Path | None = None,
) -> Iterator[Running]:
    """Run a command during the block, and end it with all its descendants.

    Args:
        name: Names the process in errors.
        command: The program and its arguments.
        core: The core to pin it to, or None.
        settings: Environment variables to add.
        stdin: Bytes for its standard input.
        port: Where it will listen; None if the process prints its address.
        log: A file for all that it prints; None keeps the last lines only, for errors.

    Raises:
        BenchmarkError: The process ended, or did not listen in time.
    """
    inherited = {key: value for key, value in os.environ.items() if not _NOT_INHERITED.fullmatch(key)}
    with cores.on(core):
        began = time.perf_counter()
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**inherited, **(settings or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # its own process group, by which its descendants are ended
        )
    output = _Output(cast("IO[bytes]", process.stdout), name, log)
    try:
        with contextlib.suppress(OSError), cast("IO[bytes]", process.stdin) as pipe:
            pipe.write(stdin)  # fails if the process has ended; its output then has the reason
        if port is None:
            yield Running(process.pid, output.port(), began)
        else:
            _wait_until_listening(name, process, port, output)
            yield Running(process.pid, port, began)
    finally:
        _end(process)
        output.end()


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free at this moment."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


class _Output:
    """The output of a process, read by a thread so that the process never blocks on a full pipe."""

    def __init__(self, stream: IO[bytes], name: str, log: Path | None) -> None:
        self._stream = stream
        self._name = name
        self._log = Path(os.devnull) if log is None else log
        self._last: deque[str] = deque(maxlen=_LINES_KEPT)
        self._port: Future[int] = Future()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def port(self) -> int:
        """Wait for the line with the address, and return its port."""
        try:
            return self._port.result(_START_TIMEOUT)
        except TimeoutError:
            raise BenchmarkError(f"{self._name} printed no address within {_START_TIMEOUT:g} s") from None

    def failure(self) -> BenchmarkError:
        """Return the error for a process that ended before it listened."""
        self.end()
        return self._not_started()

    def end(self) -> None:
        """Wait until the process and its descendants have closed the pipe."""
        self._thread.join(_END_TIMEOUT)

    def _follow(self) -> None:
        with self._stream, self._log.open("wb", buffering=0) as log:
            for raw in self._stream:
                log.write(raw)
                self._last.append(raw.decode("utf-8", "replace"))
                address = _ADDRESS.search(self._last[-1])
                if address and not self._port.done():
                    self._port.set_result(int(address[1]))
        if not self._port.done():
            self._port.set_exception(self._not_started())

    def _not_started(self) -> BenchmarkError:
        return BenchmarkError(f"{self._name} did not start: {' '.join(''.join(self._last).split())}")


def _wait_until_listening(name: str, process: subprocess.Popen[bytes], port: int, output: _Output) -> None:
    end = time.monotonic() + _START_TIMEOUT
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), _START_TIMEOUT):
            return
        if process.poll() is not None:
            raise output.failure()
        if time.monotonic() > end:
            raise BenchmarkError(f"{name} did not listen within {_START_TIMEOUT:g} s")
        time.sleep(_POLL_INTERVAL)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Terminate a process, kill it if it does not end in time, then kill what is left of its group."""
    try:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_TIMEOUT)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
