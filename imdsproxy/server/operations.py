"""The requests under `/-/`: the pages of `ops`, and the purge."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from imdsproxy.ops.pages import PATHS
from imdsproxy.protocol.messages import Refusal, Request
from imdsproxy.protocol.peer import Peer
from imdsproxy.records import Outcome, RequestRecord, refused
from imdsproxy.server import purge
from imdsproxy.server.asgi import send_record
from imdsproxy.server.caller import peer_of
from imdsproxy.server.extensions import ADMIN_EXTENSION, by_unix_socket, extension

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

_NO_PAGE = Refusal(
    404,
    "no-page",
    "not_found",
    "There is no such page. The pages are /-/healthy, /-/ready, /-/metrics, /-/status and /-/status.json.",
)


class Operations:
    """Answers the requests under `/-/`."""

    def __init__(
        self, pages: ASGIApp, drop: Callable[[str | None], int], date: Callable[[], tuple[bytes, bytes]]
    ) -> None:
        """Join the parts.

        Args:
            pages: Serves the pages.
            drop: Drops the cached entries of a path, or all, and returns how many there were.
            date: Returns the Date of an answer.
        """
        self._pages = pages
        self._drop = drop
        self._date = date

    async def serve(self, request: Request, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        path = request.target.path
        if path == purge.PATH:
            privileged = by_unix_socket(scope) or bool(extension(scope, ADMIN_EXTENSION))
            await send_record(self._purge(request, peer_of(request, scope), privileged=privileged), self._date, send)
            return
        if path not in PATHS:
            await send_record(refused(_NO_PAGE), self._date, send)
            return

        async def dated(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message["headers"], self._date()]}
            await send(message)

        await self._pages({**scope, "path": path, "root_path": ""}, receive, dated)

    def _purge(self, request: Request, client: Peer, *, privileged: bool) -> RequestRecord:
        path = purge.path_to_drop(request, privileged=privileged)
        if isinstance(path, Refusal):
            return refused(path)
        count = self._drop(path)
        fields = {"path": path or "/metadata", "entries": count, "client": client.name}
        logger.info("cached entries purged", extra={"fields": fields})
        return RequestRecord(purge.dropped(path, count), "none", Outcome.BYPASS, detail="purged")
