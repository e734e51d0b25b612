"""One simulated VM: its IMDS, its proxies in a layout, and a door to them for each pod. The proxies are the real ones.

All of it is in one event loop that owns its time. What is not there: sockets, processes, processors. So no figure
speaks of those, and nobody ever finds the lock of a budget file taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from imdsproxy.app import Parts, build
from imdsproxy.config import Config
from imdsproxy.emulator.limits import Limits
from imdsproxy.ops.readiness import Readiness
from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import Failure, FailureKind, Headers, Request, Response
from imdsproxy.protocol.request_parser import read
from imdsproxy.records import RequestRecord
from imdsproxy.upstream.client import SLOW_READ_TIMEOUT
from imdsproxy.upstream.headers import to_client
from tests.virtual import VirtualClock

IMDS_TAKES = 0.05
"""Seconds from sending to IMDS until its answer is there, half of them each way."""
_SOCKET_TAKES = 0.001
_READ_TIMEOUT = 10.0  # by default
_TOKEN_LIVES = 86400
_JSON = ((b"content-type", b"application/json; charset=utf-8"), (b"server", b"IMDS"))
_TOKEN = b'{"access_token":"t","expires_in":"%d","token_type":"Bearer"}' % _TOKEN_LIVES
_ASKED = ((b"host", b"localhost"), (b"metadata", b"true"))


class Layout(Enum):
    """Who stands between the pods and IMDS."""

    NONE = "no proxy"
    OWN = "sidecars, own budgets"
    FILE = "sidecars, one file"
    CHAINED = "sidecars, chained"
    DAEMON = "one daemon"


Door = Callable[[str], Awaitable[Response]]
"""Asks for a target as one pod does."""


@dataclass
class Imds:
    """Five a second for all of the VM and five identity requests at once, or identity apart; perhaps away at first."""

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
        """Take one request, as `errand.Sender` says."""
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
            return Response(200, _JSON, _TOKEN if identity else b"{}")
        return Response(410 if away else 429, _JSON, b"{}")

    def most_in_a_second(self) -> int:
        """Count the arrivals in the fullest second; the moment one second later is not in it."""
        most = first = 0
        for last, at in enumerate(self.arrivals):
            while at - self.arrivals[first] >= 1.0:
                first += 1
            most = max(most, last - first + 1)
        return most


@dataclass
class Daemon:
    """The upstream of a chained sidecar: another proxy, reached by its socket."""

    parts: Parts

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        """Ask it as the real upstream does, and read its answer as that does."""
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
    """The VM. Its proxies run already, and hold nothing; `start` is for those that start with their pods."""

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
        """Give a pod its way to IMDS."""
        parts = self.sidecars[pod] if self.sidecars else self.daemon

        async def ask(target: str) -> Response:
            if parts is None:
                return await self.directly(target)
            client = f"pod {pod}" if parts is self.daemon else "127.0.0.1"
            return (await _answer(parts, "GET", target.encode(), _ASKED, client)).response

        return ask

    async def directly(self, target: str) -> Response:
        """Ask IMDS itself, past every proxy."""
        response = await self._imds.send("GET", target.encode(), _ASKED)
        assert isinstance(response, Response)
        return response

    async def start_daemon(self, warmup: tuple[str, ...] = ()) -> None:
        """Do what a daemon does when it starts: hear from IMDS, then fetch what is to be warm."""
        if self.daemon is not None:
            await Readiness(self.daemon.proxy, warmup).become()

    async def start_sidecar(self, pod: int) -> None:
        """Do what a pod's sidecar does when it starts."""
        if self.sidecars:
            await Readiness(self.sidecars[pod].proxy, ()).become()

    async def close(self) -> None:
        """End every flight and give back the file."""
        for parts in (*self.sidecars, *([self.daemon] if self.daemon else [])):
            await parts.proxy.flights.close()
            parts.close()


async def _answer(parts: Parts, method: str, target: bytes, headers: Headers, client: str = "") -> RequestRecord:
    request = read(method, target, headers, parts.accepted_hosts)
    assert isinstance(request, Request), request
    named = client or f"imdsproxy {request.hops[-1]}"
    answer = parts.proxy.answer(request, named)
    return answer if isinstance(answer, RequestRecord) else await answer
