"""The beginning and the end of an application, by lifespan events or without them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from imdsproxy.clock import Clock
from imdsproxy.ops.history import History
from imdsproxy.ops.readiness import Readiness
from imdsproxy.peers.lookup import PeerLookup


class Lifetime:
    """Gets the proxy ready once, and ends what that has begun."""

    def __init__(  # noqa: PLR0913  # what begins and ends, all by name
        self,
        *,
        readiness: Readiness,
        history: History,
        clock: Clock,
        peers: PeerLookup,
        start: Callable[[], None],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        """Begin nothing yet.

        Args:
            readiness: Whether the proxy is ready.
            history: Counts from the beginning on.
            clock: The clock.
            peers: Is closed at the end.
            start: Called once within the event loop, at the beginning.
            close: Awaited at the end.
        """
        self._readiness = readiness
        self._history = history
        self._clock = clock
        self._peers = peers
        self._start = start
        self._close = close
        self.getting_ready: asyncio.Task[None] | None = None
        """The task that ends when the proxy is ready; None before the beginning."""

    def begin(self) -> asyncio.Task[None]:
        """Begin, unless that has been done, and return the task that ends when the proxy is ready."""
        if self.getting_ready is None:
            self._history.start(self._clock.monotonic())
            self._start()
            self.getting_ready = asyncio.get_running_loop().create_task(self._readiness.become())
        return self.getting_ready

    def begin_shutdown(self) -> None:
        """Report that the proxy is not ready any more."""
        self._readiness.stopping = True

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: object) -> AsyncIterator[None]:
        """Begin, and end when the context does: Starlette's form of the lifespan."""
        getting_ready = self.begin()
        try:
            yield
        finally:
            self.begin_shutdown()
            getting_ready.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await getting_ready
            await self._close()
            self._peers.close()
