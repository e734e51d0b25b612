"""A proxy, its IMDS and its clients: as a real process, or whole in virtual time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

from imdsproxy.protocol.peer import Peer
from imdsproxy.records import RequestRecord
from tests import forkserver
from tests.kit import ROOT, ProxyProcess, environment, free_port, get, wait_until
from tests.scripted import Stage
from tests.system.faults import documents
from tests.system.faults.clients import Crowd
from tests.system.faults.imds import Imds, RealImds, VirtualImds

POLICY: dict[str, Any] = {
    "ttl": f"/metadata/instance/network={documents.NETWORK_FRESH}",
    "stale_if_error": f"/metadata/instance/network={documents.NETWORK_STALE}",
}
_START = 60.0


class World(ABC):
    """What a fault happens to."""

    imds: Imds
    crowd: Crowd
    patience: float
    """Seconds that a busy machine may add to what a client waits and to the way back."""

    @property
    @abstractmethod
    def log(self) -> str:
        """What the proxy has logged."""

    @abstractmethod
    def memory(self) -> int:
        """Return what the proxy holds, in bytes."""


class RealWorld(World):
    """A process on loopback."""

    imds: RealImds
    patience = 60.0

    def __init__(self, folder: Path, name: str, **settings: object) -> None:
        self.folder = folder
        self.port = free_port()
        self.imds = RealImds()
        self.crowd = Crowd(self.ask, slack=4.0)
        self.settings = settings
        self.stderr: int | None = None
        """Where the proxy writes its log, if it is not the file."""
        self.command: tuple[str, ...] = ()
        """A command that runs the rest of its line; the proxy then is an interpreter of its own."""
        self.environment: dict[str, str] = {}
        self.reading = -1
        """The end of the pipe that `stderr` writes to, if there is one."""
        self.proxy: ProxyProcess
        self._log = folder / f"{name}.log"

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def memory(self) -> int:
        return self.proxy.resident_bytes()

    async def start(self) -> None:
        """Start the proxy, and wait until it is ready."""
        await asyncio.to_thread(self._start)

    def _start(self) -> None:
        settings = {"port": self.port, "upstream": self.imds.url, **POLICY, **self.settings}
        env = environment(**settings) | self.environment
        with self._log.open("ab") as log:
            stderr = log.fileno() if self.stderr is None else self.stderr
            process: Any
            if self.environment or self.command or not forkserver.AVAILABLE:
                line = [*self.command, sys.executable, "-m", "imdsproxy"]
                process = subprocess.Popen(line, env=env, cwd=ROOT, stderr=stderr)
            else:
                process = forkserver.of_proxies().start("imdsproxy.__main__", env=env, stderr=stderr)
        self.proxy = ProxyProcess(process, self._log, self.port)
        wait_until(self._is_ready, _START)

    def _is_ready(self) -> bool:
        assert self.proxy.process.poll() is None, self.log
        with contextlib.suppress(OSError):
            return get(self.port, "/-/ready").status == 200
        return False

    def log_to_a_pipe(self) -> None:
        """Let the proxy log to a pipe, which the event loop reads."""
        self.reading, self.stderr = os.pipe()
        self.read_log()

    def read_log(self) -> None:
        asyncio.get_running_loop().add_reader(self.reading, self._read_log)

    def leave_log_unread(self) -> None:
        asyncio.get_running_loop().remove_reader(self.reading)

    def _read_log(self) -> None:
        with self._log.open("ab") as log:
            log.write(os.read(self.reading, 1 << 20))

    async def ask(self, method: str, target: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Send one request over a connection of its own."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            fields = f"Host: 127.0.0.1\r\nMetadata: true\r\nConnection: close\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{method} {target} HTTP/1.1\r\n{fields}\r\n".encode() + body)
            head, end, answer = (await reader.read()).partition(b"\r\n\r\n")
        finally:
            writer.transport.abort()
        if not end:
            raise EOFError
        lines = head.decode("latin-1").split("\r\n")
        found = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        return int(lines[0].split()[1]), found, answer

    async def end(self) -> None:
        """End the proxy, which must end well."""
        process = self.proxy.process
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 15) == 0, self.log

    def kill(self) -> None:
        process = self.proxy.process
        if process.poll() is None:
            os.kill(process.pid, signal.SIGCONT)
            process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def real_world(folder: Path, name: str, **settings: object) -> AsyncIterator[RealWorld]:
    """Make a world whose proxy is not started yet; end whatever was left running."""
    world = RealWorld(folder, name, **settings)
    await world.imds.listen()
    try:
        yield world
    finally:
        if hasattr(world, "proxy"):
            world.kill()
        if world.stderr is not None:
            world.leave_log_unread()
            os.close(world.reading)
            os.close(world.stderr)
        await world.imds.close()


class VirtualWorld(World):
    """The whole proxy but its sockets, within an event loop in virtual time."""

    imds: VirtualImds
    patience = 0.1

    def __init__(self, lines: list[str], **settings: Any) -> None:
        self.imds = VirtualImds()
        self.crowd = Crowd(self.ask, slack=0.1)
        policy = {
            "ttl": (("/metadata/instance/network", documents.NETWORK_FRESH),),
            "stale_if_error": (("/metadata/instance/network", documents.NETWORK_STALE),),
        }
        self.stage = Stage(self.imds, **policy, **settings)  # type: ignore[arg-type]  # has what a stage uses of it
        self._lines = lines

    @property
    def log(self) -> str:
        return "\n".join(self._lines)

    def memory(self) -> int:
        return 0

    async def ask(self, method: str, target: str, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        request = self.stage.request(target, method=method, body=body)
        answer = self.stage.proxy.answer(request, lambda: Peer(address="10.0.0.4"))
        record = answer if isinstance(answer, RequestRecord) else await answer
        fields = {name.decode(): value.decode() for name, value in record.headers()}
        return record.response.status, fields, record.response.body


class _Lines(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.INFO)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(f"{record.levelname} {record.getMessage()} {vars(record).get('fields', '')}")


@contextlib.contextmanager
def logged_lines() -> Iterator[list[str]]:
    """Collect what the proxy logs in this process."""
    lines: list[str] = []
    handler, logger = _Lines(lines), logging.getLogger("imdsproxy")
    before = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
