"""Accept all waiting connections in each turn of the event loop, for as long as other work took since the last turn.

An event loop's own servers are unfair under load. uvloop accepts one connection a turn and then serves every other
connection. With a thousand busy connections, a new one may wait for seconds.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from imdsproxy.ops.episodes import Episode, seconds
from imdsproxy.server.accepting import MOST_UNSERVED, PAUSE, Failure, failure, turn_seconds

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

Address = Any
"""The peer's address from accept(2): a tuple over TCP, text at a Unix socket."""
Accept = Callable[[], tuple[socket.SocketType, Address]]
"""Accepts one connection, or raises OSError."""


def accept_at(listening: socket.socket) -> Accept:
    """Return a function that accepts connections at a listening socket.

    It returns them as `socket.SocketType`. The class on top of it, `socket.socket`, takes as long to make as accept(2).
    """
    accept = listening._accept  # type: ignore[attr-defined]  # noqa: SLF001  # `socket.accept` wraps it
    family, kind, protocol = int(listening.family), int(listening.type), listening.proto

    def accept_one() -> tuple[socket.SocketType, Address]:
        descriptor, address = accept()
        return socket.SocketType(family, kind, protocol, descriptor), address

    return accept_one


class Acceptor:
    """Accepts connections at one listening socket."""

    def __init__(
        self,
        listening: socket.socket,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[socket.SocketType, Address], bool],
        *,
        is_full: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        """Accept nothing until `start`.

        Args:
            listening: A non-blocking socket.
            loop: The event loop, which reports waiting connections.
            take: Takes a new connection, and returns whether it is served already.
            is_full: Returns whether the next connection has to wait until the loop has closed others.
            now: A monotonic clock, in seconds.
        """
        self._listening = listening
        self._loop = loop
        self._take = take
        self._accept = accept_at(listening)
        self._is_full = is_full
        self._now = now
        self._ended = now()
        self._trouble = Episode()
        self._resumption: asyncio.TimerHandle | None = None
        self._end_check: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to accept."""
        self._loop.add_reader(self._listening, self._turn)

    def close(self, *, accept_waiting: bool) -> None:
        """Stop accepting. The socket stays open.

        Args:
            accept_waiting: Whether to accept the waiting connections first. Closing the socket would reset them.
        """
        if self._resumption is None:
            self._loop.remove_reader(self._listening)
        else:
            self._resumption.cancel()
            self._resumption = None
        if accept_waiting:
            self._accept_until(self._now() + turn_seconds(math.inf), math.inf)
        if self._end_check is not None:
            self._end_check.cancel()

    def _turn(self) -> None:
        """Accept until no connection waits, or this turn is over. The loop calls this again for the rest."""
        began = self._now()
        try:
            found = self._accept_until(began + turn_seconds(began - self._ended), MOST_UNSERVED)
        finally:
            self._ended = self._now()
        if found is Failure.NO_ROOM:
            self._loop.remove_reader(self._listening)
            self._resumption = self._loop.call_later(PAUSE, self._resume)

    def _accept_until(self, end: float, most_unserved: float) -> Failure | None:
        """Accept until `end`, or until `most_unserved` are not yet served. Return the failure that ended it earlier."""
        unserved = 0
        while unserved < most_unserved and not self._is_full():
            try:
                connection, address = self._accept()
            except OSError as error:
                found = failure(error.errno)
                if found is Failure.NO_ROOM:
                    self._log_failing(error)
                if found is not Failure.GONE:
                    return found
            else:
                self._log_accepting()
                unserved += not self._take(connection, address)
            if self._now() >= end:
                break
        return None

    def _resume(self) -> None:
        self._resumption = None
        self.start()

    def _log_failing(self, error: OSError) -> None:
        if self._trouble.trouble(self._now()):
            fields = {"because": error.strerror or str(error), "raise": "LimitNOFILE= or ulimit -n"}
            logger.warning("no connection can be accepted; new ones wait", extra={"fields": fields})

    def _log_accepting(self) -> None:
        if self._trouble.under_way:
            self._trouble.good(self._now())
            if self._end_check is None:
                self._log_end()

    def _log_end(self) -> None:
        """Log the end of the trouble. If it has returned too often to be over yet, check again later."""
        self._end_check = None
        now = self._now()
        ended = self._trouble.end(now)
        if ended is not None:
            fields = {"seconds": seconds(ended.seconds)}
            logger.info("connections are accepted again", extra={"fields": fields})
        elif self._trouble.under_way:
            self._end_check = self._loop.call_later(max(PAUSE, self._trouble.due - now), self._log_end)
