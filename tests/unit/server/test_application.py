"""What the ASGI application does before the proxy decides."""

from __future__ import annotations

from typing import Any

import pytest

from imdsproxy.app import assemble
from imdsproxy.ops.readiness import Readiness
from imdsproxy.ops.status_reader import About, StatusReader
from imdsproxy.records import RequestObserver
from imdsproxy.server.application import Application
from imdsproxy.server.connection_refusals import TOO_SLOW
from imdsproxy.server.extensions import PRESENCE_EXTENSION
from imdsproxy.server.presence import Presence
from tests.scripted import NOWHERE, Stage
from tests.virtual import run


async def _nothing(*_: Any) -> Any:
    return None


def _scope(target: bytes, **more: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "method": "GET",
        "raw_path": target,
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"metadata", b"true")],
        "http_version": "1.1",
        **more,
    }


@pytest.mark.parametrize("target", [b"/metadata/instance", b"/metadata/unknown"])
@pytest.mark.parametrize("left", [False, True])
def test_client_that_left_before_the_decision_starts_no_fetch(target: bytes, left: bool) -> None:
    async def steps() -> None:
        stage = Stage()
        application = assemble(NOWHERE, stage.parts, stage.clock, _nothing, Application)
        presence = Presence()
        if left:
            presence.leave()
        await application(_scope(target, extensions={PRESENCE_EXTENSION: presence}), _nothing, _nothing)
        asked = [sent.target for sent in stage.imds.sent if sent.target == target.decode()]
        assert [len(asked), len(stage.proxy.fetches)] == ([0, 0] if left else [1, 0])
        await stage.proxy.fetches.close()

    run(steps())


def test_every_observer_is_told_of_requests_and_of_bytes_that_are_none() -> None:
    told: list[list[tuple[Any, ...]]] = [[], []]

    def observer(number: int) -> RequestObserver:
        return lambda *given: told[number].append(given)

    async def steps() -> None:
        stage = Stage()
        readiness = Readiness(stage.proxy, ())
        application = Application(
            proxy=stage.proxy,
            metrics=stage.parts.metrics,
            history=stage.parts.history,
            status=StatusReader(stage.proxy, readiness, stage.parts.history, stage.clock, About("", 1.0)),
            readiness=readiness,
            accepted_hosts=stage.accepted_hosts,
            shares=stage.parts.shares,
            clock=stage.clock,
            observers=[observer(0), observer(1)],
            close=_nothing,
        )
        await application(_scope(b"/metadata/../x", client=("127.0.0.1", 7)), _nothing, _nothing)
        application.refuse(TOO_SLOW, "127.0.0.1")

    run(steps())
    assert told[0] == told[1]
    assert [id(given[0]) for given in told[0]] == [id(given[0]) for given in told[1]]
    assert [(given[0].response.status, given[1:]) for given in told[0]] == [
        (400, (0.0, ("127.0.0.1", 7), b"GET /metadata/../x")),
        (408, (0.0, ("127.0.0.1", 0), b"")),
    ]
