"""Accepting: in each turn of the event loop all connections that wait, for as long as the others had since the last.

An event loop's own servers are not fair in a crowd. uvloop accepts one connection a turn and then serves every other
connection, so that with a thousand busy ones some are not accepted for seconds.
"""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from imdsproxy.server.accepting import MOST_UNSERVED, PAUSE, Failure, failure, turn_seconds

if TYPE_CHECKING:
    import asyncio

logger = logging.getLogger(__name__)

Address = Any
"""What accept(2) says of the other end: a tuple over TCP, text at a Unix socket."""


class Acceptor:
    """Accepts connections at one listening socket."""

    def __init__(
        self,
        listening: socket.socket,
        loop: asyncio.AbstractEventLoop,
        take: Callable[[socket.socket, Address], bool],
        *,
        is_full: Callable[[], bool],
        now: Callable[[], float],
    ) -> None:
        """Accept nothing until `start`.

        Args:
            listening: does not block.
            loop: tells when connections wait.
            take: takes a new connection, and returns whether it is served already.
            is_full: whether the next connection has to wait until the loop has closed others.
            now: a monotonic clock, in seconds.
        """
        self._listening = listening
        self._loop = loop
        self._take = take
        self._is_full = is_full
        self._now = now
        self._ended = now()
        self._failing = False
        self._resumption: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Accept from now on."""
        self._loop.add_reader(self._listening, self._turn)

    def close(self, *, accept_waiting: bool) -> None:
        """Accept no more. The socket stays open.

        Args:
            accept_waiting: take those that wait first, because they are reset if the socket is closed.
        """
        if self._resumption is None:
            self._loop.remove_reader(self._listening)
        else:
            self._resumption.cancel()
            self._resumption = None
        if accept_waiting:
            self._accept_until(self._now() + turn_seconds(math.inf), math.inf)

    def _turn(self) -> None:
        """Accept until no connection waits, or the time of this turn is over. The loop calls again for the rest."""
        began = self._now()
        try:
            found = self._accept_until(began + turn_seconds(began - self._ended), MOST_UNSERVED)
        finally:
            self._ended = self._now()
        if found is Failure.NO_ROOM:
            self._loop.remove_reader(self._listening)
            self._resumption = self._loop.call_later(PAUSE, self._resume)

    def _accept_until(self, end: float, most_unserved: float) -> Failure | None:
        """Accept until this moment, or until so many are not yet served; return the failure that ended it before."""
        unserved = 0
        while unserved < most_unserved and not self._is_full():
            try:
                connection, address = self._listening.accept()
            except OSError as error:
                found = failure(error.errno)
                if found is Failure.NO_ROOM:
                    self._say_failing(error)
                if found is not Failure.GONE:
                    return found
            else:
                self._say_accepting()
                unserved += not self._take(connection, address)
            if self._now() >= end:
                break
        return None

    def _resume(self) -> None:
        self._resumption = None
        self.start()

    def _say_failing(self, error: OSError) -> None:
        if not self._failing:
            self._failing = True
            fields = {"because": error.strerror or str(error), "raise": "LimitNOFILE= or ulimit -n"}
            logger.warning("connections have to wait: none can be accepted", extra={"fields": fields})

    def _say_accepting(self) -> None:
        if self._failing:
            self._failing = False
            logger.info("connections are accepted again")
