"""The whole proxy in virtual time, in front of an IMDS that a test scripts."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import unquote

from imdsproxy.config import Config
from imdsproxy.parts.parts import Parts, build
from imdsproxy.protocol.accepted_hosts import AcceptedHosts
from imdsproxy.protocol.address import Address
from imdsproxy.protocol.messages import BudgetClass, Failure, FailureKind, Headers, Refusal, Request, Response
from imdsproxy.protocol.peer import Peer
from imdsproxy.protocol.request_parser import read
from imdsproxy.records import RequestRecord
from imdsproxy.settings.places import parse_upstream
from tests.targets import INSTANCE
from tests.virtual import VirtualClock

JSON = ((b"content-type", b"application/json; charset=utf-8"), (b"server", b"IMDS/150.870.65.1854"))
DOWN = Failure(FailureKind.UNREACHABLE, "connection refused", sent=False)
SLOW = Failure(FailureKind.TIMEOUT, "too slow")

NOWHERE = Config(upstream=Address("127.0.0.1", 9))
"""The defaults, less the real IMDS."""


def ok(body: bytes | str = b"{}", status: int = 200, headers: Headers = ()) -> Response:
    return Response(status, (*JSON, *headers), body.encode() if isinstance(body, str) else body)


def status(code: int, *, retry_after: int | None = None) -> Response:
    headers = () if retry_after is None else ((b"retry-after", b"%d" % retry_after),)
    return ok(json.dumps({"error": str(code)}), code, headers)


def token(life: int, name: str = "t") -> Response:
    return ok(
        f'{{"access_token":"{name}","expires_in":"{life}","expires_on":"1","resource":"r","token_type":"Bearer"}}'
    )


@dataclass(eq=False)
class Sent:
    at: float
    method: str
    target: str
    headers: dict[bytes, bytes]
    body: bytes


Behaviour = Callable[[Sent], Response | Failure]


_NAMES = {
    "/metadata/versions": "apiVersions",
    "/metadata/instance": "compute",
    "/metadata/attested/document": "signature",
    "/metadata/scheduledevents": "Events",
    "/metadata/loadbalancer": "loadbalancer",
    "/metadata/identity/info": "tenantId",
    "/metadata/identity/oauth2/token": "access_token",
}
"""What each document has at its top level."""
_MARKED = re.compile(rb'\{"\w+":"x","mark":("(?:[^"\\]|\\.)*")\}')


def marked(target: str, response: Response) -> Response:
    """Put a test's short mark into a document that the endpoint can have said, unless the body is one already."""
    path = unquote(target.partition("?")[0]).rstrip("/").lower()
    name = _NAMES.get(path, "x" if path.startswith("/metadata/instance/") else "")
    if response.status != 200 or not name or f'"{name}"'.encode() in response.body:
        return response
    if name == "x" and response.body.startswith((b"{", b"[")):
        return response
    body = f'{{"{name}":"x","mark":{json.dumps(response.body.decode("latin-1"))}}}'
    return Response(response.status, response.headers, body.encode())


def unmarked(record: RequestRecord) -> RequestRecord:
    """Return the record with the test's mark as its body, where there is one."""
    match = _MARKED.fullmatch(record.response.body)
    if match is None:
        return record
    mark = json.loads(match[1]).encode("latin-1")
    return record._replace(response=Response(record.response.status, record.response.headers, mark))


@dataclass
class Imds:
    """Answers after `latency` seconds, as `answer` says; keeps what arrived.

    Tests of order and time say no more than a mark, which goes over in a document of the endpoint; with `raw` every
    body goes over as it is.
    """

    answer: Behaviour = lambda _sent: ok()
    latency: float = 0.0
    raw: bool = False
    sent: list[Sent] = field(default_factory=list)
    under_way: int = 0

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes = b"", *, slow: bool = False
    ) -> Response | Failure:
        del slow
        sent = Sent(asyncio.get_running_loop().time(), method, target.decode(), dict(headers), body)
        self.sent.append(sent)
        self.under_way += 1
        try:
            await asyncio.sleep(self.latency)
            answer = self.answer(sent)
            if isinstance(answer, Failure) or method != "GET" or self.raw:
                return answer
            return marked(sent.target, answer)
        finally:
            self.under_way -= 1

    @property
    def count(self) -> int:
        return len(self.sent)

    def times(self) -> list[float]:
        return [sent.at for sent in self.sent]

    def assert_within_budget(self, newest: int = 0) -> None:
        """Require that no second has more than five requests, among all or the `newest`."""
        times = self.times()[-newest:]
        for first, sixth in zip(times, times[5:], strict=False):
            assert sixth - first >= 1 - 1e-9


def in_turn(*answers: Response | Failure) -> Behaviour:
    """Answer with each in turn, then with the last for ever."""
    left = list(answers)
    return lambda _sent: left.pop(0) if len(left) > 1 else left[0]


class Stage:
    """A proxy, its IMDS and its clock."""

    def __init__(self, imds: Imds | None = None, *, seed: bytes = b"", **settings: Any) -> None:
        self.imds = imds or Imds()
        self.clock = VirtualClock()
        if "upstream" in settings:
            settings["upstream"] = parse_upstream(settings["upstream"])
        self.parts: Parts = build(replace(NOWHERE, **settings), self.imds, self.clock, seed)
        self.proxy = self.parts.proxy
        self.accepted_hosts = AcceptedHosts(instance=self.parts.accepted_hosts.instance)
        self._read: dict[tuple[str, str, Headers], Request] = {}

    @property
    def now(self) -> float:
        return self.clock.monotonic()

    def request(
        self, target: str = INSTANCE, *, method: str = "GET", headers: Headers = (), body: bytes = b""
    ) -> Request:
        """Return a request, read once for all that ask the same."""
        wanted = (target, method, headers)
        request = self._read.get(wanted)
        if request is None:
            fields = ((b"host", b"127.0.0.1"), (b"metadata", b"true"), *headers)
            result = read(method, target.encode(), fields, self.accepted_hosts)
            assert not isinstance(result, Refusal), result
            request = self._read[wanted] = result
        return request._replace(body=body)

    async def get(self, target: str = INSTANCE, *, client: str | Peer = "", **more: Any) -> RequestRecord:
        peer = client if isinstance(client, Peer) else Peer(address=client)
        answer = self.proxy.answer(self.request(target, **more), lambda: peer)
        return unmarked(answer if isinstance(answer, RequestRecord) else await answer)

    def start(self, target: str = INSTANCE, **more: Any) -> asyncio.Task[RequestRecord]:
        return asyncio.get_running_loop().create_task(self.get(target, **more))

    def tokens(self) -> int:
        """Return the available permits of the general budget."""
        return self.proxy.fetcher.limiters[BudgetClass.GENERAL].budget.available(self.now)

    async def many(self, count: int, target: str = INSTANCE) -> list[RequestRecord]:
        return list(await asyncio.gather(*(self.start(target) for _ in range(count))))
