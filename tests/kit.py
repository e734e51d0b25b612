"""Shared helpers: a real proxy process, raw sockets, and an event loop with a clock that a test moves."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, Protocol

import pytest

from imdsproxy.emulator import Arrival, EmulatorServer
from imdsproxy.testing.running import listening_in, metric_in, whole_lines
from tests import forkserver

ROOT = Path(__file__).resolve().parent.parent
METADATA = {"Metadata": "true"}


@dataclass
class Answer:
    """A response as a client sees it; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


def get(
    port: int,
    target: str,
    headers: dict[str, str] | None = None,
    *,
    method: str = "GET",
    body: bytes | None = None,
    patience: float = 30,
) -> Answer:
    """Send one request over a connection of its own, with `Metadata: true` where no headers are given.

    TimeoutError if nothing comes for `patience` seconds.
    """
    connection = HTTPConnection("127.0.0.1", port, timeout=patience)
    try:
        connection.request(method, target, body=body, headers=METADATA if headers is None else headers)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, fields, response.read())
    finally:
        connection.close()


_CRASHED = {-signal.SIGABRT, -signal.SIGSEGV}
_numbers = itertools.count(1)


def unused(target: str) -> str:
    """Return an unused target: it differs in a parameter that IMDS ignores."""
    return f"{target}{'&' if '?' in target else '?'}unused={next(_numbers)}"


def cache_status(answer: Answer) -> dict[str, str]:
    """Return the parameters of Cache-Status; one without a value has the empty one."""
    name, *parameters = answer.headers["cache-status"].split("; ")
    assert name == "imdsproxy"
    return {key: value for key, _, value in (parameter.partition("=") for parameter in parameters)}


def is_hit(answer: Answer) -> bool:
    return "hit" in cache_status(answer)


class Arrivals:
    """What reaches the emulator from now on, of targets that begin so."""

    def __init__(self, imds: EmulatorServer, target: str = "/") -> None:
        self._emulator = imds.emulator
        self._first = len(imds.emulator.arrivals)
        self._target = target.encode()

    def __call__(self) -> list[Arrival]:
        found = self._emulator.arrivals_since(self._first)
        return [arrival for arrival in found if arrival.target.startswith(self._target)]

    def targets(self) -> list[str]:
        return [arrival.target.decode() for arrival in self()]

    def methods(self) -> list[str]:
        return [arrival.method for arrival in self()]


def talk(port: int, sent: bytes | Sequence[bytes], *, wait: float = 5.0, pause: float = 0.0) -> bytes:
    """Send raw bytes (in pieces, `pause` seconds apart) and return all bytes until the other side closes.

    Return the bytes so far if it does not close within `wait` seconds.
    """
    pieces = [sent] if isinstance(sent, bytes) else sent
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=wait) as connection:
        with contextlib.suppress(OSError):
            for piece in pieces:
                connection.sendall(piece)
                if pause:
                    time.sleep(pause)
        with contextlib.suppress(OSError):
            while part := connection.recv(65536):
                received += part
    return received


class ProxyProcess:
    """A running `python -m imdsproxy`, with its log."""

    def __init__(self, process: subprocess.Popen[str] | forkserver.ForkedProcess, log: Path, port: int) -> None:
        self.process = process
        self.port = port
        self._log = log

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> str:
        """Return the log's whole lines; one may just be being written."""
        return whole_lines(self._log)

    def metric(self, name: str) -> float:
        """Return the sum of a metric's samples, whatever their labels; 0 if there is none."""
        return metric_in(get(self.port, "/-/metrics").body.decode(), name)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def descriptors(self) -> list[int]:
        """Return the numbers of the process's open files (Linux)."""
        return descriptors_of(self.process.pid)

    def sockets(self) -> set[str]:
        """Return the process's open sockets, by names that none gets again soon (Linux)."""
        return {name for name in open_files(self.process.pid) if name.startswith("socket:")}

    def resident_bytes(self) -> int:
        """Return the resident memory of the process (Linux)."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("no VmRSS")


def descriptors_of(pid: int) -> list[int]:
    """Return the numbers of a process's open files (Linux). The test is skipped where only root may see them."""
    try:
        return [int(each.name) for each in Path(f"/proc/{pid}/fd").iterdir()]
    except PermissionError:
        pytest.skip("only root sees the open files of a proxy, because its memory is closed to its own user")


def open_files(pid: int) -> set[str]:
    """Return what a process has open, but for what it closes meanwhile: paths, and names such as `socket:[4711]`."""
    found = set()
    for number in descriptors_of(pid):
        with contextlib.suppress(FileNotFoundError):
            found.add(str(Path(f"/proc/{pid}/fd/{number}").readlink()))
    return found


def environment(**settings: object) -> dict[str, str]:
    """Return the environment of a process with these settings, named in lower case."""
    ours = {f"IMDSPROXY_{name.upper()}": str(value) for name, value in settings.items()}
    return {**os.environ, "PYTHONPATH": str(ROOT), "IMDSPROXY_UPSTREAM": "http://127.0.0.1:9", **ours}


@contextlib.contextmanager
def running_proxy(
    folder: Path,
    *,
    ready: bool = True,
    fresh: bool = False,
    prefix: Sequence[str] = (),
    module: str = "imdsproxy",
    arguments: Sequence[str] = (),
    **settings: object,
) -> Iterator[ProxyProcess]:
    """Run the proxy on a free port, end it, and check that it ended well.

    Args:
        folder: Where its log goes.
        ready: Wait until it is ready.
        fresh: Start an interpreter of its own, rather than fork one that has imported the proxy.
        prefix: A command that runs the rest of its line, such as prlimit(1); the start is fresh.
        module: The module to run, such as `tests.altered`. It logs where it listens as the proxy does.
        arguments: The rest of its command line.
        settings: Named in lower case.
    """
    log = folder / f"proxy-{time.monotonic_ns()}.log"
    env = environment(**{"port": 0, **settings})
    process: subprocess.Popen[str] | forkserver.ForkedProcess
    with log.open("w", encoding="utf-8") as stderr:
        if fresh or prefix or not forkserver.AVAILABLE:
            command = [*prefix, sys.executable, "-m", module, *arguments]
            process = subprocess.Popen(command, env=env, cwd=ROOT, stderr=stderr, text=True)
        else:
            main = "imdsproxy.__main__" if module == "imdsproxy" else module
            process = forkserver.of_proxies().start(main, arguments, env=env, stderr=stderr)
    try:
        proxy = ProxyProcess(process, log, _port(process, log))
        if ready:
            wait_until(lambda: get(proxy.port, "/-/ready").status == 200)
        yield proxy
        assert process.poll() not in _CRASHED, proxy.log
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0, proxy.log
        assert "Traceback" not in proxy.log, proxy.log
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(60)


def ended(*arguments: str, module: str = "imdsproxy", **settings: object) -> subprocess.CompletedProcess[str]:
    """Run what is expected to end by itself."""
    env = environment(**settings)
    if module == "imdsproxy" and forkserver.AVAILABLE:
        pipe = subprocess.PIPE
        process = forkserver.of_proxies().start("imdsproxy.__main__", arguments, env=env, stdout=pipe, stderr=pipe)
        try:
            out, err = process.communicate(60)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, process.wait(60), out, err)
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=env,
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        timeout=60,
        check=False,
    )


def refused_start(port: int = 0, **settings: Any) -> str:
    """Start the proxy with settings that it cannot use, named in lower case. Return its one line of output."""
    done = ended(port=port, **settings)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.splitlines()) == 1
    return done.stderr


class Logging(Protocol):
    """What has a log: a running proxy, or a command."""

    @property
    def log(self) -> str:
        """What it has written so far."""


def wait_for_log(source: Logging, words: str, *, times: int = 1, after: int = 0, seconds: float = 30.0) -> int:
    """Wait until the log holds these words, and return how often it does.

    A thread of the proxy writes the log. A line is in the file some time after the answer that it reports, so a test
    that looks without waiting fails now and then.

    Args:
        source: Its log is read.
        words: Part of a line.
        times: How often they must be there at least.
        after: The number of characters at the beginning of the log that do not count.
        seconds: How long to wait.

    Raises:
        AssertionError: They are not there in time. Its text is the log.
    """
    end = time.monotonic() + seconds
    while (found := source.log[after:].count(words)) < times:
        assert time.monotonic() < end, f"{words!r} is in the log {found} times, not {times}:\n{source.log[after:]}"
        time.sleep(0.01)
    return found


def wait_until(true: object, seconds: float = 15.0) -> None:
    """Wait until the callable returns a true value."""
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.01)


def _port(process: subprocess.Popen[str] | forkserver.ForkedProcess, log: Path) -> int:
    end = time.monotonic() + 15
    while time.monotonic() < end:
        if url := listening_in(whole_lines(log)):
            return int(url.rpartition(":")[2])
        assert process.poll() is None, log.read_text(encoding="utf-8")
        time.sleep(0.01)
    raise AssertionError("the proxy does not say where it listens")


def free_port() -> int:
    """Return a port where nothing listens at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
