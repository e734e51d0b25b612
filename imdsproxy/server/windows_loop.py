"""An event loop for Windows that continues to accept when one accept fails.

An accept fails if its client connects and resets at once (ERROR_NETNAME_DELETED). asyncio's proactor then closes the
listening socket, so the process continues to run but serves no new client.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
import threading
from typing import Any

assert sys.platform == "win32"  # noqa: S101  # for the type checker, because the loop exists on Windows only

logger = logging.getLogger(__name__)

# The task that asyncio starts with every accept. It fails as well, and is awaited nowhere.
_ACCEPT_TASK = "IocpProactor.accept.<locals>.accept_coro"
# Seconds from one failed accept to the next, and from one line about it to the next.
_PAUSE = 0.01
_REMINDER = 60.0


class _Proactor(asyncio.IocpProactor):
    _reminded_at = float("-inf")

    def accept(self, listener: socket.socket) -> asyncio.Future[Any]:
        """Accept the next client. This fails only after the listener is closed."""
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
    """asyncio's loop for Windows, with this module's proactor."""

    def __init__(self) -> None:
        super().__init__(_Proactor())
        if threading.current_thread() is threading.main_thread():
            # If another byte is being written, a signal's byte does not fit. The loop wakes all the same, so CPython
            # must not print a traceback.
            signal.set_wakeup_fd(signal.set_wakeup_fd(-1), warn_on_full_buffer=False)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Report an unretrieved exception, unless it is that of an accept that is retried."""
        task = context.get("future")
        accepts = isinstance(task, asyncio.Task) and getattr(task.get_coro(), "__qualname__", "") == _ACCEPT_TASK
        if not (accepts and isinstance(context.get("exception"), OSError)):
            super().call_exception_handler(context)
