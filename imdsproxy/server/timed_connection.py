"""Limits of time of one connection: for a whole request, for an idle client, for a client that does not read.

uvicorn has only the second of them, and only after the first answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from imdsproxy.server.bounded_parser import BoundedParser
from imdsproxy.server.connection_refusals import TOO_SLOW


class TimedConnection(BoundedParser):
    """A parser with limits of time. All moments are those of the event loop's clock."""

    __slots__ = ("_deadline", "_idle_since", "_made", "_write_timeout")

    header_timeout = 10.0
    """Seconds for a whole request, from its first byte. A subclass made at start has the user's value."""
    keep_alive = 75.0
    """Seconds after which an idle connection is closed, and one whose client does not read its answer is aborted."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._made = 0.0  # when the connection began
        self._idle_since: float | None = None  # when the last answer was written
        self._deadline: asyncio.TimerHandle | None = None
        self._write_timeout: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the connection. A silent client is idle from the start."""
        # Not uvicorn's method: it asks the system for both addresses, and makes a `FlowControl`.
        self.connections.add(self)
        self.transport = transport
        self.scheme = "http"
        self._made = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(self.keep_alive, self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection, and cancel its timers."""
        self._unset_keepalive_if_required()
        self._stop_deadline()
        self.resume_writing()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the write timeout, because the client reads more slowly than the proxy writes."""
        super().pause_writing()
        self._start_write_timeout()
        self._unsent = self.transport.get_write_buffer_size()
        if not self._settle():
            self.loop.call_soon(self.transport.abort)  # not within the transport's own write

    def resume_writing(self) -> None:
        """Cancel the write timeout, because the client has caught up."""
        super().resume_writing()
        self._unsent = 0
        self._settle()
        if self._write_timeout is not None:
            self._write_timeout.cancel()
            self._write_timeout = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, or abort it if its client has not read the last answer.

        Requests do not restart the timer. When it fires, this checks how long the connection has been idle.
        """
        since = self._made if self._idle_since is None else self._idle_since
        left = since + self.keep_alive - self.loop.time() if self._idle else self.keep_alive
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    @property
    def _idle(self) -> bool:
        """Whether there is no request: none in part, and none that waits for its answer."""
        return self._whole and (self.cycle is None or self.cycle.response_complete)

    def _start_write_timeout(self) -> None:
        if self._write_timeout is None:
            self._write_timeout = self.loop.call_later(self.keep_alive, self.transport.abort)

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.header_timeout, self._too_slow)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.flow.delays:  # an earlier request is being answered
            self._start_deadline()
        elif not self.transport.is_closing():
            self._refuse(TOO_SLOW)
