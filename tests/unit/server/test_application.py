"""What the ASGI application does before the proxy decides."""

from __future__ import annotations

from typing import Any

import pytest

from imdsproxy.app import assemble
from imdsproxy.server.application import Application
from imdsproxy.server.asgi import PRESENCE_EXTENSION
from imdsproxy.server.presence import Presence
from tests.scripted import NOWHERE, Stage
from tests.virtual import run


async def _nothing(*_: Any) -> Any:
    return None


@pytest.mark.parametrize("target", [b"/metadata/instance", b"/metadata/unknown"])
@pytest.mark.parametrize("left", [False, True])
def test_client_that_left_before_the_decision_starts_no_fetch(target: bytes, left: bool) -> None:
    async def steps() -> None:
        stage = Stage()
        application = assemble(NOWHERE, stage.parts, stage.clock, _nothing, Application)
        presence = Presence()
        if left:
            presence.leave()
        scope = {
            "type": "http",
            "method": "GET",
            "raw_path": target,
            "query_string": b"",
            "headers": [(b"host", b"localhost"), (b"metadata", b"true")],
            "http_version": "1.1",
            "extensions": {PRESENCE_EXTENSION: presence},
        }
        await application(scope, _nothing, _nothing)
        asked = [sent.target for sent in stage.imds.sent if sent.target == target.decode()]
        assert [len(asked), len(stage.proxy.fetches)] == ([0, 0] if left else [1, 0])
        await stage.proxy.fetches.close()

    run(steps())
