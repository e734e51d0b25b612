"""Dropping expired entries from memory at their end, and not only when they are next requested."""

from __future__ import annotations

import asyncio
import math

from imdsproxy.cache.store import Store
from imdsproxy.clock import Clock

_APART = 1.0
"""Seconds between two looks through the store, because each takes time for every entry."""


class Expiry:
    """Keeps one timer, for the first deadline among the stored entries.

    Without it, an access token would stay in the memory of an idle process after its end.
    """

    def __init__(self, store: Store, clock: Clock) -> None:
        """Watch a store: it calls `note` with the deadline of each entry that is stored."""
        self._store = store
        self._clock = clock
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._due = math.inf
        store.on_put = self.note

    def note(self, gone_at: float) -> None:
        """Note the deadline of a new entry, in monotonic seconds.

        Entries of an earlier process are stored before there is an event loop. They contain no token, and are dropped
        with the first entry that is stored later.
        """
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        if loop is not self._loop:
            self._loop, self._timer, self._due = loop, None, math.inf
        if gone_at < self._due:
            self._schedule(loop, gone_at)

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._due = None, math.inf

    def _schedule(self, loop: asyncio.AbstractEventLoop, due: float) -> None:
        self.close()
        self._due = due
        self._timer = loop.call_later(max(_APART, due - self._clock.monotonic()), self._drop_expired, loop)

    def _drop_expired(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer, self._due = None, math.inf
        soonest = self._store.soonest_deadline()  # drops what has expired
        if soonest is not None:
            self._schedule(loop, soonest)
