"""Turns of the event loop that become too long because thousands of connections send at once.

libuv takes up to 1,024 events from the kernel at a time. If it gets as many, it asks for more, up to 48 times, before
it does anything else (`uv__io_poll` in libuv's `src/unix/linux.c`). While more than 1,024 connections keep sending, one
turn of the loop therefore serves up to 49,000 reads, and takes more than half a second. New connections, timers and
answers of IMDS wait for its end. If connections are read no more until the next turn, the turn ends, because the kernel
then has fewer events than that.
"""

from __future__ import annotations

import asyncio

MOST_EVENTS = 1024
"""The events that libuv takes at a time."""
_HALF = MOST_EVENTS // 2


class ReadTurns:
    """Counts the reads of a listener's connections, and finds out that the event loop stays in one turn."""

    __slots__ = ("_left", "_loop_is_due")

    def __init__(self) -> None:
        self._left = _HALF
        self._loop_is_due = False

    def take_long(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Count a read, and return whether there were more in this turn than in one without asking for more.

        The loop is asked for a sign of life once in so many reads. If it has given none after as many again, the turn
        is long.
        """
        self._left -= 1
        if self._left > 0:
            return False
        if self._loop_is_due:
            return True
        self._loop_is_due = True
        self._left = _HALF
        loop.call_soon(self._begin)
        return False

    def _begin(self) -> None:
        self._loop_is_due = False
        self._left = _HALF
