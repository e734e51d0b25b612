"""The pages under `/-/`, for operators. No page changes the proxy, or shows an answer of IMDS."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router

from imdsproxy.ops.metrics import CONTENT_TYPE, Metrics
from imdsproxy.ops.readiness import Readiness

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.requests import Request

PATHS = frozenset({"/-/healthy", "/-/ready", "/-/metrics"})


def pages(
    readiness: Readiness, metrics: Metrics, lifespan: Callable[[object], AbstractAsyncContextManager[None]]
) -> Router:
    """Return the pages as an ASGI application, which also runs the lifespan."""

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

    async def figures(_request: Request) -> Response:
        return Response(metrics.text(), media_type=CONTENT_TYPE)

    return Router(
        routes=[Route("/-/healthy", healthy), Route("/-/ready", ready), Route("/-/metrics", figures)],
        lifespan=lifespan,
    )
