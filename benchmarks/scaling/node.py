"""One simulated VM: its IMDS, the real proxies in a layout, and a way to them for each pod.

All of it runs in one event loop with virtual time. Sockets, processes and processors are not simulated, so no figure
covers them, and the lock of a budget file is always free.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from imdsproxy.config import Config
from imdsproxy.emulator.limits import Limits
from imdsproxy.ops.readiness import Readiness
from imdsproxy.parts.parts import Parts, build
from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import Failure, FailureKind, Headers, Request, Response
from imdsproxy.protocol.peer import Peer
from imdsproxy.protocol.request_parser import read
from imdsproxy.records import RequestRecord
from imdsproxy.upstream.client import SLOW_READ_TIMEOUT
from imdsproxy.upstream.headers import to_client
from tests.virtual import VirtualClock

IMDS_TAKES = 0.05
"""Seconds from a request to IMDS until its response, half of them each way."""
_SOCKET_TAKES = 0.001
_READ_TIMEOUT = 30.0
_TOKEN_LIVES = 86400
# What every endpoint but that of tokens can have said.
_DOCUMENT = b'{"apiVersions":[],"compute":{},"loadbalancer":{},"Events":[],"tenantId":"","signature":""}'
_HEADERS = ((b"content-type", b"application/json; charset=utf-8"), (b"server", b"IMDS"))
_TOKEN = b'{"access_token":"t","expires_in":"%d","token_type":"Bearer"}' % _TOKEN_LIVES
_REQUEST_HEADERS = ((b"host", b"localhost"), (b"metadata", b"true"))


class Layout(Enum):
    """What stands between the pods and IMDS."""

    NONE = "no proxy"
    OWN = "sidecars, own budgets"
    FILE = "sidecars, one file"
    CHAINED = "sidecars, chained"
    DAEMON = "one daemon"


Door = Callable[[str], Awaitable[Response]]
"""Requests a target as one pod does."""


@dataclass
class Imds:
    """IMDS with its limits: five requests a second for the VM, and five identity requests at once.

    Attributes:
        identity_apart: Whether identity has a limit of its own instead.
        away_for: For how many seconds it answers 410 at first.
        arrivals: When each request arrived.
        refused: How many were answered with 429.
    """

    identity_apart: bool = False
    away_for: float = 0.0
    arrivals: list[float] = field(default_factory=list)
    refused: int = 0

    def __post_init__(self) -> None:
        self._limits = Limits(identity_shares_general=not self.identity_apart)
        self._began = asyncio.get_running_loop().time()

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        """Answer one request; see `imdsproxy.upstream.task.Sender`."""
        del method, headers, body, slow
        await asyncio.sleep(IMDS_TAKES / 2)
        now = asyncio.get_running_loop().time()
        self.arrivals.append(now)
        identity = target.startswith(b"/metadata/identity")
        away = now - self._began < self.away_for
        admitted = not away and self._limits.admit(now, identity=identity)
        self.refused += not away and not admitted
        await asyncio.sleep(IMDS_TAKES / 2)
        if admitted:
            self._limits.leave(identity=identity)
            return Response(200, _HEADERS, _TOKEN if identity else _DOCUMENT)
        return Response(410 if away else 429, _HEADERS, b"{}")


@dataclass
class Daemon:
    """The upstream of a chained sidecar: the proxy of the node, reached through its socket."""

    parts: Parts

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        """Send a request as the real upstream client does, and read the response in the same way."""
        del body
        limit = SLOW_READ_TIMEOUT if slow else _READ_TIMEOUT
        try:
            async with asyncio.timeout(limit):
                await asyncio.sleep(_SOCKET_TAKES)
                served = await _answer(self.parts, method, target, ((b"host", b"localhost"), *headers))
                await asyncio.sleep(_SOCKET_TAKES)
        except TimeoutError:
            return Failure(FailureKind.TIMEOUT, f"no answer within {limit:g} s")
        return Response(served.response.status, to_client(served.headers()), served.response.body)


class Node:
    """The VM with its proxies, which have empty caches.

    `start_daemon` and `start_sidecar` add what a proxy does when it starts; other cases assume running proxies.
    """

    def __init__(self, layout: Layout, imds: Imds, pods: int, folder: Path, **settings: Any) -> None:
        self._clock = VirtualClock()
        self._imds = imds
        self._layout = layout
        self.daemon: Parts | None = None
        self.sidecars: list[Parts] = []
        plain = Config(upstream=Address("127.0.0.1", 9), **settings)
        chained = Config(upstream=Address("localhost", unix="/run/imdsproxy.sock"), **settings)
        filed = Config(upstream=Address("127.0.0.1", 9), budget_file=str(folder / "budget"), **settings)
        if layout in {Layout.CHAINED, Layout.DAEMON}:
            self.daemon = build(plain, imds, self._clock)
        if layout is Layout.CHAINED:
            assert self.daemon is not None
            upstream = Daemon(self.daemon)
            self.sidecars = [build(chained, upstream, self._clock) for _ in range(pods)]
        elif layout in {Layout.OWN, Layout.FILE}:
            self.sidecars = [build(plain if layout is Layout.OWN else filed, imds, self._clock) for _ in range(pods)]

    def door(self, pod: int) -> Door:
        """Return the way of a pod to IMDS."""
        parts = self.sidecars[pod] if self.sidecars else self.daemon

        async def ask(target: str) -> Response:
            if parts is None:
                return await self.directly(target)
            client = f"pod {pod}" if parts is self.daemon else "127.0.0.1"
            return (await _answer(parts, "GET", target.encode(), _REQUEST_HEADERS, client)).response

        return ask

    async def directly(self, target: str) -> Response:
        """Request from IMDS directly, past every proxy."""
        response = await self._imds.send("GET", target.encode(), _REQUEST_HEADERS)
        assert isinstance(response, Response)
        return response

    async def start_daemon(self, warmup: tuple[str, ...] = ()) -> None:
        """Do what a daemon does when it starts: wait for IMDS, then fetch the warm-up targets."""
        if self.daemon is not None:
            await Readiness(self.daemon.proxy, warmup).become()

    async def start_sidecar(self, pod: int) -> None:
        """Do what the sidecar of a pod does when it starts."""
        if self.sidecars:
            await Readiness(self.sidecars[pod].proxy, ()).become()

    async def close(self) -> None:
        """End every collapsed fetch, and release the budget files."""
        for parts in (*self.sidecars, *([self.daemon] if self.daemon else [])):
            await parts.proxy.fetches.close()
            parts.close()


async def _answer(parts: Parts, method: str, target: bytes, headers: Headers, client: str = "") -> RequestRecord:
    request = read(method, target, headers, parts.accepted_hosts)
    assert isinstance(request, Request), request
    # A pod comes by its address; a sidecar by the socket, where all sidecars are processes of one user.
    peer = Peer(address=client) if client else Peer(user=65532, proxy=request.hops[-1])
    answer = parts.proxy.answer(request, lambda: peer)
    return answer if isinstance(answer, RequestRecord) else await answer
