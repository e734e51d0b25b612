"""Which span is whose parent, in virtual time and without OpenTelemetry."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from imdsproxy.ops.spans import Attributes, SpanEnd
from imdsproxy.ops.traces import Kind, Span, Traces
from imdsproxy.protocol.address import IMDS, Address
from imdsproxy.protocol.messages import BudgetClass, Headers, Response
from imdsproxy.records import Outcome, RequestRecord, UpstreamAttempt
from tests.scripted import Imds, ok
from tests.virtual import VirtualClock, run

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
HIT = RequestRecord(Response(200, (), b"{}"), "instance", Outcome.HIT, age=1)
MISS = HIT._replace(outcome=Outcome.MISS)
SENT = UpstreamAttempt("instance", BudgetClass.GENERAL, 0.5, "200")


@dataclass(eq=False)
class Made:
    kind: Kind
    name: str
    began: float
    parent: object
    attributes: dict[str, Any]
    ends: list[tuple[SpanEnd, float]] = field(default_factory=list)
    links: list[Span] = field(default_factory=list)
    sampled: bool = True

    def is_recording(self) -> bool:
        return self.sampled and not self.ends


class Recorder:
    """A tracer that keeps its spans."""

    def __init__(self, *, samples: bool = True) -> None:
        self.spans: list[Made] = []
        self._samples = samples

    def start(
        self, kind: Kind, name: str, at: float, parent: Span | Mapping[str, str] | None, attributes: Attributes
    ) -> Made:
        self.spans.append(Made(kind, name, at, parent, dict(attributes), sampled=self._samples))
        return self.spans[-1]

    def link(self, span: Span, other: Span) -> None:
        assert isinstance(span, Made)
        assert not span.ends
        span.links.append(other)

    def end(self, span: Span, end: SpanEnd, at: float) -> None:
        assert isinstance(span, Made)
        span.ends.append((end, at))

    def fields(self, span: Span) -> Headers:
        assert isinstance(span, Made)
        return ((b"traceparent", b"ours"),)

    async def close(self) -> None:
        return


class Scene:
    def __init__(self, *, samples: bool = True, upstream: Address = IMDS) -> None:
        self.clock = VirtualClock()
        self.tracer = Recorder(samples=samples)
        self.traces = Traces(self.tracer, self.clock)
        self.imds = Imds(lambda _sent: ok())
        self.sender = self.traces.sender(self.imds, upstream)

    async def ask(self, headers: Headers = ()) -> None:
        await self.sender.send("GET", b"/metadata/instance", headers)
        self.traces.observe_attempt(SENT)


def play(steps: Callable[[Scene], Awaitable[None]], **settings: Any) -> Scene:
    """Run the steps, and return the scene."""

    async def running() -> Scene:
        scene = Scene(**settings)
        await steps(scene)
        return scene

    return run(running())


def test_hit_of_the_fast_path_is_one_span_from_its_bytes() -> None:
    async def steps(scene: Scene) -> None:
        head = b"GET /metadata/instance?x HTTP/1.1\r\nTraceparent: %b\r\n\r\n" % PARENT.encode()
        await asyncio.sleep(5)
        scene.traces.observe(HIT, 2.0, None, head)

    scene = play(steps)
    (span,) = scene.tracer.spans
    ((end, at),) = span.ends
    assert (span.kind, span.parent, span.attributes["url.path"]) == (
        "server",
        {"traceparent": PARENT},
        "/metadata/instance",
    )
    assert (end.name, at - span.began) == ("GET instance", 2.0)


@pytest.mark.parametrize("record", [HIT, MISS])
@pytest.mark.parametrize(
    ("fields", "sampled"),
    [
        ((), False),
        (((b"traceparent", PARENT.encode()),), True),
        (((b"traceparent", PARENT[:-1].encode() + b"0"),), False),
        (((b"traceparent", b"broken"),), False),
    ],
)
def test_hit_has_a_span_on_every_way_if_its_client_samples(
    record: RequestRecord, fields: Headers, sampled: bool
) -> None:
    async def steps(scene: Scene) -> None:
        begun = scene.traces.begin(b"GET /a", fields)
        scene.traces.observe(record, 1.0, None, b"GET /a")
        scene.traces.leave(begun)
        lines = b"".join(b"\r\n%b: %b" % field for field in fields)
        scene.traces.observe(record, 1.0, None, b"GET /a HTTP/1.1%b\r\n\r\n" % lines)

    exported = [span for span in play(steps).tracer.spans if span.ends]
    assert len(exported) == (0 if record is HIT and not sampled else 2)


def test_bytes_that_are_no_request_have_no_span() -> None:
    async def steps(scene: Scene) -> None:
        scene.traces.observe(HIT, 0.0, None, b"")

    assert play(steps).tracer.spans == []


def test_attempts_are_children_of_the_request_that_starts_their_fetch() -> None:
    async def steps(scene: Scene) -> None:
        begun = scene.traces.begin(b"GET /a", [(b"traceparent", PARENT.encode())])
        fetch = asyncio.create_task(scene.ask())
        scene.traces.observe(HIT, 1.0, None, b"GET /a")  # such as a stale answer, before the fetch is done
        scene.traces.leave(begun)
        scene.traces.observe(MISS, 0.0, None, b"GET /b")
        await fetch
        await scene.ask()

    request, other, attempt, alone = play(steps).tracer.spans
    assert (request.parent, other.parent, attempt.parent, alone.parent) == ({"traceparent": PARENT}, {}, request, None)
    assert [len(each.ends) for each in (request, other, attempt, alone)] == [1, 1, 1, 1]
    assert other.attributes["url.path"] == "/b"


COLLAPSED = MISS._replace(outcome=Outcome.COLLAPSED)


@pytest.mark.parametrize(
    ("record", "fetches", "linked"),
    [
        (COLLAPSED._replace(fetch=7), [7], True),
        (COLLAPSED._replace(fetch=7), [7, *range(100, 355)], True),
        (COLLAPSED._replace(fetch=7), [7, *range(100, 356)], False),  # so many fetches later it is forgotten
        (COLLAPSED._replace(fetch=8), [7], False),
        (COLLAPSED, [7], False),
        (MISS._replace(fetch=7), [7], False),
    ],
)
def test_client_that_joined_a_fetch_is_linked_to_the_one_that_started_it(
    record: RequestRecord, fetches: list[int], linked: bool
) -> None:
    async def steps(scene: Scene) -> None:
        begun = scene.traces.begin(b"GET /a", [])
        for number in fetches:
            scene.traces.observe_attempt(replace(SENT, fetch=number))
        scene.traces.leave(begun)
        scene.traces.observe_attempt(replace(SENT, fetch=9))  # no client has asked for it
        scene.traces.observe(record, 1.0, None, b"GET /a")

    leader, joined = play(steps).tracer.spans
    assert joined.links == ([leader] if linked else [])


def test_span_that_is_not_sampled_is_not_linked() -> None:
    async def steps(scene: Scene) -> None:
        begun = scene.traces.begin(b"GET /a", [])
        scene.traces.observe_attempt(replace(SENT, fetch=7))
        scene.traces.leave(begun)
        scene.traces.observe(COLLAPSED._replace(fetch=7), 1.0, None, b"GET /a")

    assert [span.links for span in play(steps, samples=False).tracer.spans] == [[], []]


def test_request_without_an_answer_ends_with_its_client() -> None:
    async def steps(scene: Scene) -> None:
        scene.traces.leave(scene.traces.begin(b"GET /a", []))

    (span,) = play(steps).tracer.spans
    assert [end.attributes for end, _ in span.ends] == [{"error.type": "client-gone"}]


def test_span_that_is_not_sampled_is_not_ended() -> None:
    async def steps(scene: Scene) -> None:
        begun = scene.traces.begin(b"GET /a", [])
        await scene.ask()
        scene.traces.observe(HIT, 1.0, None, b"GET /a")
        scene.traces.leave(begun)
        scene.traces.observe(MISS, 1.0, None, b"GET /a")

    assert [span.ends for span in play(steps, samples=False).tracer.spans] == [[], [], []]


@pytest.mark.parametrize("samples", [True, False])
def test_cancelled_attempt_ends_if_it_is_sampled(samples: bool) -> None:
    async def steps(scene: Scene) -> None:
        scene.imds.latency = 10.0
        sending = asyncio.create_task(scene.sender.send("GET", b"/a", ()))
        await asyncio.sleep(1)
        sending.cancel()
        await asyncio.wait([sending])

    (span,) = play(steps, samples=samples).tracer.spans
    assert [end.failed for end, _ in span.ends] == [True] * samples


def test_recalled_attempt_ends_once_and_its_successor_is_a_span_of_its_own() -> None:
    async def steps(scene: Scene) -> None:
        scene.imds.latency = 10.0
        sending = asyncio.create_task(scene.sender.send("GET", b"/a", ()))
        await asyncio.sleep(1)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        scene.traces.observe_attempt(replace(SENT, status="recalled"))
        await scene.ask()

    first, second = play(steps).tracer.spans
    assert [end.attributes for end, _ in first.ends] == [{"error.type": "cancelled"}]
    assert [end.attributes["http.response.status_code"] for end, _ in second.ends] == [200]


def test_refused_permit_is_an_internal_span_of_the_wait() -> None:
    async def steps(scene: Scene) -> None:
        begun = scene.traces.begin(b"GET /a", [])
        await asyncio.sleep(3)
        scene.traces.observe_attempt(replace(SENT, status=None, waited=2.0))
        scene.traces.leave(begun)
        scene.traces.observe_attempt(replace(SENT, status=None, waited=0.0))

    request, wait, alone = play(steps).tracer.spans
    ((end, at),) = wait.ends
    assert (wait.kind, wait.parent, end.name, at - wait.began) == ("internal", request, "wait instance", 2.0)
    assert alone.parent is None


@pytest.mark.parametrize(
    ("upstream", "sent"),
    [
        (IMDS, {b"traceparent": b"theirs", b"tracestate": b"x", b"accept": b"*/*"}),
        (Address("127.0.0.1", 1), {b"traceparent": b"ours", b"accept": b"*/*"}),
        (Address("localhost", unix="/run/x"), {b"traceparent": b"ours", b"accept": b"*/*"}),
    ],
)
def test_trace_is_continued_where_another_proxy_can_be(upstream: Address, sent: dict[bytes, bytes]) -> None:
    async def steps(scene: Scene) -> None:
        await scene.ask(((b"traceparent", b"theirs"), (b"accept", b"*/*"), (b"tracestate", b"x")))

    assert [each.headers for each in play(steps, upstream=upstream).imds.sent] == [sent]
