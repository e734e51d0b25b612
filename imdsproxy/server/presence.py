"""Whether the client of a request is still connected while it waits for the answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Presence:
    """The presence of one request's client.

    It also replaces the event by which uvicorn's cycle waits for a body or a disconnect. An `asyncio.Event` would take
    several times the memory for each waiting client.
    """

    __slots__ = ("_gone", "_is_set", "_on_gone", "_waiter")

    def __init__(self) -> None:
        self._gone = False
        self._is_set = False
        self._waiter: asyncio.Future[None] | None = None
        self._on_gone: Callable[[], object] | None = None

    def has_left(self) -> bool:
        """Return whether the client has disconnected."""
        return self._gone

    def leave(self) -> None:
        """Note that the client has disconnected, and cancel the wait for its answer."""
        self._gone = True
        self.set()
        if self._on_gone is not None:
            on_gone, self._on_gone = self._on_gone, None
            on_gone()

    async def wait_for(self, answer: Coroutine[Any, Any, Result]) -> Result | None:
        """Return the answer, or None as soon as the client has disconnected.

        This waits in the current task. A task for the answer and one for the client would take 5 kB more for each
        waiting client. If the client has disconnected already, the answer never begins. So what it would leave at its
        end must not have begun either; the caller checks `has_left` before it makes the answer.
        """
        task = asyncio.current_task()
        if task is None or self.has_left():
            answer.close()
            return None
        self._on_gone = task.cancel
        try:
            return await answer
        except asyncio.CancelledError:
            if self.has_left() and not task.uncancel():  # only the disconnect has cancelled the task
                return None
            raise
        finally:
            self._on_gone = None

    # The methods of asyncio.Event that uvicorn's cycle uses. Only one coroutine waits at a time.

    def set(self) -> None:
        """Wake the coroutine that waits."""
        self._is_set = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Reset the event, so that the next `wait` waits."""
        self._is_set = False

    async def wait(self) -> None:
        """Wait for `set`."""
        while not self._is_set:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
