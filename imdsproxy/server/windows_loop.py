"""Windows' own event loop, which goes on accepting when a client is gone before it was accepted.

asyncio's proactor closes the listening socket when one accept fails, as it does for a client that connects and resets
at once (ERROR_NETNAME_DELETED): from then on nobody is served, while the process lives on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from typing import Any

assert sys.platform == "win32"  # noqa: S101  # there is no such loop elsewhere; this tells the type checker

logger = logging.getLogger(__name__)

# The task that asyncio starts beside every accept; it fails as well, and nobody waits for it.
_BESIDE = "IocpProactor.accept.<locals>.accept_coro"
# Seconds from one failed accept to the next, and from one line about it to the next.
_PAUSE = 0.01
_REMINDER = 60.0


class _Proactor(asyncio.IocpProactor):
    _reminded_at = float("-inf")

    def accept(self, listener: socket.socket) -> asyncio.Future[Any]:
        """Accept the next client; fails only once the listener is closed."""
        return asyncio.get_running_loop().create_task(self._accept_one(listener))

    async def _accept_one(self, listener: socket.socket) -> Any:
        while True:
            try:
                return await super().accept(listener)
            except OSError as error:
                if listener.fileno() == -1:
                    raise
                self._remind(error)
            await asyncio.sleep(_PAUSE)

    def _remind(self, error: OSError) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._reminded_at >= _REMINDER:
            self._reminded_at = now
            logger.warning("a client was not accepted", extra={"fields": {"because": error.strerror or str(error)}})


class WindowsLoop(asyncio.ProactorEventLoop):
    """asyncio's loop for Windows, over the accepting of this module."""

    def __init__(self) -> None:
        super().__init__(_Proactor())

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an exception that was not retrieved, unless it is that of an accept that is tried again."""
        task = context.get("future")
        beside = isinstance(task, asyncio.Task) and getattr(task.get_coro(), "__qualname__", "") == _BESIDE
        if not (beside and isinstance(context.get("exception"), OSError)):
            super().call_exception_handler(context)
