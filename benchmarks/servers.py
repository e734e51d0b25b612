"""Every server that takes part, in front of the same emulated IMDS, and whether what it serves are hits."""

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

from benchmarks import proc
from benchmarks.arrivals import Arrivals
from benchmarks.client import INSTANCE, Answer, Client
from benchmarks.cores import Cores
from benchmarks.figures import BARE, DIRECT, OURS, PLAIN, BenchmarkError
from benchmarks.peers import MEGABYTES, PEERS, Peer, Setup
from benchmarks.processes import Running, free_port, running

HOUR = 3600
"""A lifetime, in seconds, within which nothing is renewed while it is measured."""
NO_WAIT = 0.001
"""A budget window, in seconds, so short that one client's misses never wait for a token: each takes longer.

The number of tokens stays at its default, since a budget's own work grows with that.
"""

_READY = 30.0
_ASKED = 3


@dataclass(frozen=True, slots=True)
class Server:
    """One that runs; `rest` is its memory before anybody asked it anything."""

    name: str
    running: Running
    rest: proc.Memory | None

    @property
    def port(self) -> int:
        """Where it listens on 127.0.0.1."""
        return self.running.port


@dataclass(frozen=True, slots=True)
class Bench:
    """Starts servers on their core. Every one is ended when its block is left, however that happens."""

    cores: Cores
    files: int = 1024
    left_out: dict[str, str] = field(default_factory=dict)

    @contextlib.contextmanager
    def emulator(self, latency: float = 0.0, rate: int = 0) -> Iterator[Running]:
        """Run the emulated IMDS; `latency` seconds are added to every answer, a `rate` of 0 is no limit of its own."""
        arguments = ["--port", "0", "--rate", str(rate), "--identity-rate", "0", "--quiet", "--latency", str(latency)]
        with self._python("imdsproxy.emulator", *arguments) as started:
            yield started

    @contextlib.contextmanager
    def proxy(self, upstream: Running, **settings: object) -> Iterator[Running]:
        """Run the proxy in front of an emulator, from when it is ready; settings are named in lower case."""
        with self.starting_proxy(upstream, **settings) as started:
            _wait_until_ready(started)
            yield started

    @contextlib.contextmanager
    def starting_proxy(self, upstream: Running, **settings: object) -> Iterator[Running]:
        """Run the proxy in front of an emulator, from when it listens."""
        named = {"port": 0, "upstream": f"http://127.0.0.1:{upstream.port}", **settings}
        environment = {f"IMDSPROXY_{name.upper()}": str(value) for name, value in named.items()}
        with self._python("imdsproxy", settings=environment) as started:
            yield started

    @contextlib.contextmanager
    def plain(self, body: bytes = b"{}") -> Iterator[Running]:
        """Run a plain ASGI application that answers every request with this body, on uvicorn."""
        with self._python("benchmarks.plain", given=body) as started:
            yield started

    @contextlib.contextmanager
    def bare(self, answer: bytes) -> Iterator[Running]:
        """Run a bare protocol of uvloop that writes this whole answer for whatever it gets."""
        if importlib.util.find_spec("uvloop") is None:
            raise BenchmarkError("uvloop is not installed")
        with self._python("benchmarks.bare", given=answer) as started:
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
        """Run another cache in front of an emulator, all it writes in a folder that is made for it."""
        program = peer.path()
        if program is None:
            raise BenchmarkError(f"{peer.program} is not installed")
        with tempfile.TemporaryDirectory(prefix="imds-") as folder:
            setup = Setup(Path(folder), free_port(), upstream.port, lifetime, paced, megabytes, self.files)
            command = peer.command(setup, program)
            # What its own children write while they work, as the compiler that varnishd calls, is to be there as well.
            settings = {"TMPDIR": folder}
            with running(peer.name, command, core=self.cores.servers, settings=settings, port=setup.port) as started:
                yield started

    @contextlib.contextmanager
    def caches(self, upstream: Running, *, megabytes: int = MEGABYTES, **settings: object) -> Iterator[list[Server]]:
        """Run the proxy and each peer that there is, with a lifetime of an hour, and see that they serve hits."""
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
        """Run the caches, and two that answer the same and cache nothing."""
        with contextlib.ExitStack() as stack:
            servers = stack.enter_context(self.caches(upstream, megabytes=megabytes, **settings))
            answer = ask(servers[0].running)
            for name, started in ((BARE, self.bare(answer.raw)), (PLAIN, self.plain(answer.body))):
                with self.or_left_out(name):
                    servers.append(self._entered(stack, name, started))
            yield servers

    @contextlib.contextmanager
    def or_left_out(self, name: str) -> Iterator[None]:
        """Note why a server to compare with cannot be measured, and go on without it."""
        try:
            yield
        except BenchmarkError as error:
            if self.left_out.get(name) != str(error):
                self.left_out[name] = str(error)
                sys.stderr.write(f"without {name}: {error}\n")

    def _entered(self, stack: contextlib.ExitStack, name: str, started: AbstractContextManager[Running]) -> Server:
        process = stack.enter_context(started)
        return Server(name, process, proc.memory(process.pid))

    def _python(
        self, module: str, *arguments: str, settings: dict[str, str] | None = None, given: bytes = b""
    ) -> AbstractContextManager[Running]:
        command = [sys.executable, "-m", module, *arguments]
        return running(module, command, core=self.cores.servers, settings=settings, given=given)


def ask(server: Running, target: str = INSTANCE) -> Answer:
    """Ask a server once; BenchmarkError for any status but 200."""
    with Client(server.port) as client:
        return client.expect(target)


def named(servers: Sequence[Server], names: Sequence[str]) -> list[Server]:
    """Give those of the servers that have one of these names."""
    return [server for server in servers if server.name in names]


def with_direct(servers: Sequence[Server], upstream: Running) -> list[Server]:
    """Give the servers, and the emulator itself as one more."""
    return [*servers, Server(DIRECT, upstream, None)]


def _check_hits(server: Server, upstream: Running) -> None:
    """See that a cache, once asked, serves what IMDS does, byte for byte, and asks it no more."""
    body = ask(upstream).body
    ask(server.running)
    arrivals = Arrivals(upstream)
    bodies = {ask(server.running).body for _ in range(_ASKED)}
    if bodies != {body}:
        raise BenchmarkError(f"{server.name} does not serve what IMDS does")
    if reached := len(arrivals.new()):
        raise BenchmarkError(f"{server.name} asked IMDS {reached} times for what it has")


def _wait_until_ready(proxy: Running) -> None:
    end = time.monotonic() + _READY
    with Client(proxy.port) as client:
        while client.get("/-/ready").status != 200:
            if time.monotonic() > end:
                raise BenchmarkError(f"the proxy was not ready within {_READY:g} s")
            time.sleep(0.01)
