"""The ASGI application of a proxy that exports traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from imdsproxy.ops.spans import is_page
from imdsproxy.ops.traces import Traces
from imdsproxy.protocol.messages import Refusal
from imdsproxy.server.application import Application
from imdsproxy.server.asgi import target

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send


class TracedApplication(Application):
    """Begins a span before each request on the full path. The pages under `/-/` have none."""

    def __init__(self, *, traces: Traces, **parts: Any) -> None:
        super().__init__(**parts)
        self._traces = traces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan."""
        written = target(scope, receive) if scope["type"] == "http" else b"/-/"
        wire = b"-" if isinstance(written, Refusal) else written
        if is_page(wire):
            await super().__call__(scope, receive, send)
            return
        head = scope["method"].encode("utf-8", "backslashreplace") + b" " + wire
        begun = self._traces.begin(head, scope["headers"])
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._traces.leave(begun)
