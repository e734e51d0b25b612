"""The pages under `/-/`, for operators. None of them changes the proxy, or shows an answer of IMDS."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route, Router

from imdsproxy.ops.metrics import Metrics
from imdsproxy.ops.readiness import Readiness
from imdsproxy.ops.status_page import LivePages, page
from imdsproxy.ops.status_reader import StatusReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request
    from starlette.types import Scope

PATHS = frozenset({"/-/healthy", "/-/ready", "/-/metrics", "/-/status", "/-/status.json"})

_JSON_HEADERS = {
    "cache-control": "no-store",
    "x-content-type-options": "nosniff",
    "cross-origin-resource-policy": "same-origin",
}


def pages(
    readiness: Readiness,
    metrics: Metrics,
    status: StatusReader,
    lifespan: Callable[[object], AbstractAsyncContextManager[None]],
    may_last: Callable[[Scope], bool],
) -> Router:
    """Return the pages as an ASGI application, which also runs the lifespan.

    Args:
        readiness: Whether the proxy is ready.
        metrics: The metrics.
        status: The status.
        lifespan: The lifespan.
        may_last: Returns whether the answer to a request may stay open. When another server is stopped, it waits for
            the end of each answer before it tells the application.
    """
    live = LivePages(status.json, lambda: readiness.stopping)

    async def healthy(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def ready(_request: Request) -> Response:
        obstacle = readiness.obstacle
        if obstacle is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse(
            {"error": "not_ready", "error_description": obstacle},
            status_code=503,
            headers={"cache-status": "imdsproxy; detail=not-ready", "retry-after": "1"},
        )

    async def figures(request: Request) -> Response:
        text, media_type = await metrics.answer(request.headers.get("accept", ""))
        return Response(text, media_type=media_type, headers={"vary": "accept"})

    async def status_json(_request: Request) -> Response:
        return Response(status.json(), media_type="application/json", headers=_JSON_HEADERS)

    async def status_page(request: Request) -> Response:
        # A browser asks for HTML. Anything else, such as curl, would wait for the end of the page. HTTP/1.0 has no
        # chunks (RFC 9112 section 6.1).
        is_browser = "text/html" in request.headers.get("accept", "") and request.scope["http_version"] != "1.0"
        if not is_browser or not may_last(request.scope):
            return Response(live.once(), media_type="text/html", headers=page().headers)
        if request.method == "HEAD":
            response = Response(media_type="text/html", headers=page().headers)
            del response.headers["content-length"]  # as the answer to a GET has none (RFC 9110 section 9.3.2)
            return response
        return StreamingResponse(live.parts(), media_type="text/html", headers=page().headers)

    return Router(
        routes=[
            Route("/-/healthy", healthy),
            Route("/-/ready", ready),
            Route("/-/metrics", figures),
            Route("/-/status", status_page),
            Route("/-/status.json", status_json),
        ],
        lifespan=lifespan,
    )
