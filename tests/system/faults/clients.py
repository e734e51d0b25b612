"""Clients of every kind, and what they hold the proxy to."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from tests.system.faults import documents
from tests.system.faults.documents import Asked


@dataclass(frozen=True)
class Got:
    """What a client got; status 0 is the end of the connection without an answer."""

    kind: str
    began: float
    ended: float
    status: int
    fields: Mapping[str, str] = field(default_factory=dict)
    """Header fields, names in lower case."""
    body: bytes = b""
    refreshed: float = 0.0
    """Seconds for which a document is served while it is refreshed, as it is while all is well."""

    @property
    def cache_status(self) -> str:
        return self.fields.get("cache-status", "")

    @property
    def good(self) -> bool:
        """Whether it is what a client gets while all is well: an answer no older than the background refresh allows."""
        ttl = re.search(r"ttl=-(\d+)", self.cache_status)
        return self.status == 200 and (ttl is None or int(ttl[1]) <= self.refreshed)

    @property
    def word(self) -> str:
        """Return the answer in a word."""
        if not self.status:
            return "cut off"
        return f"{self.status} stale" if self.status == 200 and not self.good else str(self.status)


@dataclass(frozen=True)
class Kind:
    """Requests of one kind, one every `pause` seconds."""

    name: str
    target: str
    pause: float
    method: str = "GET"
    refreshed: float = 0.0


KINDS = (
    Kind("stored documents", documents.INSTANCE, 0.5, refreshed=60.0),
    Kind("stored tokens", documents.TOKEN + "first", 0.5),
    Kind("stored tokens", documents.TOKEN + "second", 0.5),
    Kind("bounded documents", documents.NETWORK, 0.5, refreshed=documents.NETWORK_FRESH),
    Kind("new tokens", documents.TOKEN + "short", 1.0),
    Kind("new documents", documents.NEW, 2.0),
    Kind("scheduled events", documents.EVENTS, 1.0),
    Kind("approvals", documents.EVENTS, 3.0, "POST"),
)
Ask = Callable[[str, str, bytes], Awaitable[tuple[int, Mapping[str, str], bytes]]]
"""Sends a method, a target and a body; returns status, fields and body, or raises OSError or EOFError."""


@dataclass
class Crowd:
    """The clients of one proxy. Each request is sent on time, whether the earlier ones have been answered or not."""

    ask: Ask
    slack: float
    """Seconds that a busy machine may add, in every comparison of times."""
    got: list[Got] = field(default_factory=list)
    under_way: dict[asyncio.Task[None], float] = field(default_factory=dict)
    approvals: dict[bytes, Got] = field(default_factory=dict)
    """What each POST got, by its body."""
    broken: list[Exception] = field(default_factory=list)
    """The promises that were not kept."""
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _askers: list[asyncio.Task[None]] = field(default_factory=list)

    def start(self) -> None:
        self._askers = [asyncio.create_task(self._keep_asking(kind)) for kind in KINDS]

    async def end(self, patience: float) -> None:
        """Stop, and wait for what is under way. A client that is not answered in time has been forgotten."""
        for task in self._askers:
            task.cancel()
        if self.under_way:
            _, hung = await asyncio.wait(self.under_way, timeout=patience)
            assert not hung, f"{len(hung)} clients were not answered"
        await asyncio.gather(*self._askers, return_exceptions=True)

    def answered_well_since(self, begin: float, now: float) -> bool:
        """Return whether each kind has got two good answers in a row since then, and no client waits any longer."""
        if any(now - began > self.slack for began in self.under_way.values()):
            return False
        for kind in KINDS:
            latest = [each.good for each in self.got if each.kind == kind.name and each.ended >= begin][-2:]
            if latest != [True, True]:
                return False
        return True

    async def _keep_asking(self, kind: Kind) -> None:
        while True:
            task = asyncio.create_task(self._ask(kind))
            self.under_way[task] = asyncio.get_running_loop().time()
            task.add_done_callback(self._done)
            await asyncio.sleep(kind.pause)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self.under_way[task]

    async def _ask(self, kind: Kind) -> None:
        loop = asyncio.get_running_loop()
        number = next(self._numbers)
        target = f"{kind.target}{number}" if kind.target == documents.NEW else kind.target
        body = b'{"StartRequests":[{"EventId":"%d"}]}' % number if kind.method == "POST" else b""
        began = loop.time()
        try:
            status, fields, answer = await self.ask(kind.method, target, body)
        except (OSError, EOFError):
            status, fields, answer = 0, {}, b""
        got = Got(kind.name, began, loop.time(), status, fields, answer, kind.refreshed)
        self.got.append(got)
        if body:
            self.approvals[body] = got
        try:
            check_failure(got)
            if not body:
                check_answer(got, target, self.slack)
        except (AssertionError, LookupError, ValueError) as error:
            self.broken.append(error)


def check_failure(got: Got) -> None:
    """Check that an answer of the proxy's own says what is wrong, and when to ask again."""
    if "detail=" in got.cache_status and got.status != 200:
        said = json.loads(got.body)
        assert said["error"], got
        assert said["error_description"], got
        assert int(got.fields["retry-after"]) >= 1, got


def check_answer(got: Got, target: str, slack: float) -> None:
    """Check what one answer shows: that it is for this client, within its stale bound, and within a token's life."""
    if got.status != 200:
        return
    said = json.loads(got.body)
    if "access_token" in said:
        identity, _, issued = said["access_token"].partition(".")
        assert target.endswith(f"client_id={identity}"), f"the token of {identity} went to {target}"
        life = documents.SHORT_LIFE if identity == "short" else documents.LIFE
        left = float(issued) + life - got.began
        assert left >= documents.NEVER_STORED - slack, f"a token was served {left:.1f} s before its end"
        assert int(said["expires_in"]) <= left + slack, "a token claims to live longer than it does"
        return
    assert said["target"] == target, f"the answer to {said['target']} went to {target}"
    oldest = {
        documents.NETWORK: documents.NETWORK_FRESH + documents.NETWORK_STALE,
        documents.EVENTS: 1.0,
        documents.INSTANCE: 3660.0,
    }
    age = got.began - said["at"]
    assert age <= oldest.get(target, 0.0) + slack, f"{target} was served {age:.1f} s old"


def check_approvals(approvals: dict[bytes, Got], arrivals: list[Asked]) -> None:
    """Check that no POST reached IMDS twice, and that each that was answered well has reached it."""
    reached = [asked.body for asked in arrivals if asked.method == "POST"]
    assert len(reached) == len(set(reached)), "a POST reached IMDS twice"
    lost = [body for body, got in approvals.items() if got.status == 200 and body not in reached]
    assert not lost, f"{len(lost)} POSTs were confirmed and had not reached IMDS"
    refused = [body for body, got in approvals.items() if "detail=budget" in got.cache_status and body in reached]
    assert not refused, "a POST was refused for want of a permit and had reached IMDS"
