"""Start and end the servers in front of one emulated IMDS, and check that the caches serve hits."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import BARE, DIRECT, OURS, PLAIN, BenchmarkError
from benchmarks.loads.client import Client, Response
from benchmarks.machine import procfs
from benchmarks.machine.cores import Cores
from benchmarks.machine.processes import Running, free_port, running
from benchmarks.servers.arrivals import Arrivals
from benchmarks.servers.peers import MEGABYTES, PEERS, Peer, Setup
from benchmarks.targets import INSTANCE

HOUR = 3600
"""A lifetime, in seconds, longer than any measurement, so that nothing is renewed during one."""
NO_WAIT = 0.001
"""A budget window, in seconds, shorter than a miss takes, so that one client's misses never wait for a permit.

The number of permits stays at its default, because the work of a budget grows with it.
"""

_READY_TIMEOUT = 30.0
_CHECKED_HITS = 3


@dataclass(frozen=True, slots=True)
class Server:
    """A running server; `rest` is its memory when it had started, None if unknown."""

    name: str
    running: Running
    rest: procfs.Memory | None

    @property
    def port(self) -> int:
        """The port of 127.0.0.1 that it listens on."""
        return self.running.port


@dataclass(frozen=True, slots=True)
class Bench:
    """Starts servers on their core, and ends each when its block ends.

    Attributes:
        cores: Where servers and load run.
        files: How many files a process may have open.
        left_out: The reason for each server or part that was not measured.
    """

    cores: Cores
    files: int = 1024
    left_out: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def emulator(self, latency: float = 0.0, rate: int = 0) -> Iterator[Running]:
        """Run the emulated IMDS; every response takes `latency` seconds more, and a `rate` of 0 is no limit."""
        arguments = ["--port", "0", "--rate", str(rate), "--identity-rate", "0", "--quiet", "--latency", str(latency)]
        with self._python("imdsproxy.emulator", *arguments) as started:
            yield started

    @contextlib.contextmanager
    def proxy(self, upstream: Running, **settings: object) -> Iterator[Running]:
        """Run the proxy in front of an emulator, and wait until it is ready. Settings are named in lower case."""
        with self.starting_proxy(upstream, **settings) as started:
            _wait_until_ready(started)
            yield started

    @contextlib.contextmanager
    def starting_proxy(self, upstream: Running, **settings: object) -> Iterator[Running]:
        """Run the proxy in front of an emulator, and wait until it listens."""
        named = {"port": 0, "upstream": f"http://127.0.0.1:{upstream.port}", **settings}
        environment = {f"IMDSPROXY_{name.upper()}": str(value) for name, value in named.items()}
        with self._python("imdsproxy", settings=environment) as started:
            yield started

    @contextlib.contextmanager
    def asgi_app(self, body: bytes = b"{}") -> Iterator[Running]:
        """Run an ASGI application on uvicorn that answers every request with this body."""
        with self._python("benchmarks.servers.asgi_app", stdin=body) as started:
            yield started

    @contextlib.contextmanager
    def bare_uvloop(self, response: bytes) -> Iterator[Running]:
        """Run a protocol on uvloop that writes these bytes for whatever it reads."""
        if importlib.util.find_spec("uvloop") is None:
            raise BenchmarkError("uvloop is not installed")
        with self._python("benchmarks.servers.bare_uvloop", stdin=response) as started:
            yield started

    @contextlib.contextmanager
    def bare_closing(self, response: bytes) -> Iterator[Running]:
        """Run the same protocol, which closes each connection after one response, as the response then says."""
        if importlib.util.find_spec("uvloop") is None:
            raise BenchmarkError("uvloop is not installed")
        last = response.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1)
        with self._python("benchmarks.servers.bare_uvloop", "closing", stdin=last) as started:
            yield started

    @contextlib.contextmanager
    def peer(
        self,
        peer: Peer,
        upstream: Running,
        *,
        lifetime: int = HOUR,
        paced: bool = False,
        megabytes: int = MEGABYTES,
    ) -> Iterator[Running]:
        """Run another cache in front of an emulator; all its files are in a temporary folder.

        Raises:
            BenchmarkError: The cache is not installed, or did not start.
        """
        program = peer.path()
        if program is None:
            raise BenchmarkError(f"{peer.program} is not installed")
        with tempfile.TemporaryDirectory(prefix="imds-") as folder:
            setup = Setup(Path(folder), free_port(), upstream.port, lifetime, paced, megabytes, self.files)
            command = peer.command(setup, program)
            # Its children write there as well, such as the compiler that varnishd calls.
            settings = {"TMPDIR": folder}
            with running(peer.name, command, core=self.cores.servers, settings=settings, port=setup.port) as started:
                yield started

    @contextlib.contextmanager
    def caches(self, upstream: Running, *, megabytes: int = MEGABYTES, **settings: object) -> Iterator[list[Server]]:
        """Run the proxy and each installed peer, with a lifetime of an hour, and check that they serve hits."""
        ours: dict[str, object] = {
            "ttl": f"/metadata/instance={HOUR}",
            "cache_max_bytes": megabytes * 2**20,
            **settings,
        }
        with contextlib.ExitStack() as stack:
            servers = [self._entered(stack, OURS, self.proxy(upstream, **ours))]
            _check_hits(servers[0], upstream)
            for peer in PEERS:
                with self.or_left_out(peer.name):
                    server = self._entered(stack, peer.name, self.peer(peer, upstream, megabytes=megabytes))
                    _check_hits(server, upstream)
                    servers.append(server)
            yield servers

    @contextlib.contextmanager
    def all(self, upstream: Running, *, megabytes: int = MEGABYTES, **settings: object) -> Iterator[list[Server]]:
        """Run the caches, and the two servers without a cache, which send the same response."""
        with contextlib.ExitStack() as stack:
            servers = stack.enter_context(self.caches(upstream, megabytes=megabytes, **settings))
            response = ask(servers[0].running)
            for name, started in ((BARE, self.bare_uvloop(response.raw)), (PLAIN, self.asgi_app(response.body))):
                with self.or_left_out(name):
                    servers.append(self._entered(stack, name, started))
            yield servers

    @contextlib.contextmanager
    def all_closing(self, upstream: Running) -> Iterator[list[Server]]:
        """Run the caches, and the bare protocol that closes each connection after one response."""
        with contextlib.ExitStack() as stack:
            servers = stack.enter_context(self.caches(upstream))
            response = ask(servers[0].running)
            with self.or_left_out(BARE):
                servers.append(self._entered(stack, BARE, self.bare_closing(response.raw)))
            yield servers

    @contextlib.contextmanager
    def or_left_out(self, name: str) -> Iterator[None]:
        """Note why a server of the comparison cannot be measured, and continue without it."""
        try:
            yield
        except BenchmarkError as error:
            if self.left_out.get(name) != str(error):
                self.left_out[name] = str(error)
                sys.stderr.write(f"without {name}: {error}\n")

    def _entered(self, stack: contextlib.ExitStack, name: str, started: AbstractContextManager[Running]) -> Server:
        process = stack.enter_context(started)
        return Server(name, process, procfs.memory(process.pid))

    def _python(
        self, module: str, *arguments: str, settings: dict[str, str] | None = None, stdin: bytes = b""
    ) -> AbstractContextManager[Running]:
        command = [sys.executable, "-m", module, *arguments]
        return running(module, command, core=self.cores.servers, settings=settings, stdin=stdin)


def ask(server: Running, target: str = INSTANCE) -> Response:
    """Send one request to a server; raise BenchmarkError if the status is not 200."""
    with Client(server.port) as client:
        return client.expect(target)


def with_direct(servers: Sequence[Server], upstream: Running) -> list[Server]:
    """Return the servers, and the emulator itself as one more."""
    return [*servers, Server(DIRECT, upstream, None)]


def _check_hits(server: Server, upstream: Running) -> None:
    """Check that a cache, once filled, serves the body of IMDS byte for byte without asking IMDS.

    Raises:
        BenchmarkError: It does not.
    """
    body = ask(upstream).body
    ask(server.running)
    arrivals = Arrivals(upstream)
    bodies = {ask(server.running).body for _ in range(_CHECKED_HITS)}
    if bodies != {body}:
        raise BenchmarkError(f"{server.name} does not serve the body that IMDS sends")
    if reached := len(arrivals.new()):
        raise BenchmarkError(f"{server.name} asked IMDS {reached} times for a stored entry")


def _wait_until_ready(proxy: Running) -> None:
    end = time.monotonic() + _READY_TIMEOUT
    with Client(proxy.port) as client:
        while client.get("/-/ready").status != 200:
            if time.monotonic() > end:
                raise BenchmarkError(f"the proxy was not ready within {_READY_TIMEOUT:g} s")
            time.sleep(0.01)
