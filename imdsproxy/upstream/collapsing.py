"""Collapsed forwarding: one fetch for all clients that ask for the same thing at the same time (RFC 9111 section 4).

A fetch is a task of its own. It continues when its clients hang up, and its result is a value: a client that waits for
it gets a result, never an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Generic, TypeVar

from imdsproxy.budget.limiter import Ticket
from imdsproxy.protocol.messages import Failure, FailureKind, Key

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Fly = Callable[["CollapsedFetch[Result]"], Awaitable[Result | Failure]]
"""Performs one fetch."""

_ENDED = Failure(FailureKind.INTERNAL, "The proxy ended before IMDS answered; ask again.")
_BROKEN = Failure(FailureKind.INTERNAL, "The proxy itself failed over this request; its log says how.")

FetchKey = tuple[Key, str]
"""What is fetched, and by which kind of wish: one that forces a renewal does not join one that does not."""


class CollapsedFetch(Generic[Result]):
    """One way to IMDS and back, all its tries included."""

    def __init__(self, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        self.ticket = ticket
        self.landed: asyncio.Future[Result | Failure] = loop.create_future()
        self.stumbled: asyncio.Future[None] = loop.create_future()
        """Done once a first try has failed: whoever can be served stale need not wait on."""
        self.keeps = True
        """What it brings may be kept. Not any more once its key was dropped: it may be older than the drop."""
        self.sending = False
        """A request of it is at IMDS at this moment."""
        self.wanted = True
        """Somebody may still make use of what it brings; if not, a failed try is not tried again."""
        self.outlives_clients = False
        """It goes on when the last client has gone."""
        self.clients = 1
        """How many wait for it."""

    def stumble(self) -> None:
        """Tell those who wait that a try has failed."""
        if not self.stumbled.done():
            self.stumbled.set_result(None)


class CollapsedFetches(Generic[Result]):
    """The flights under way, by what they fetch."""

    def __init__(self) -> None:
        self._listed: dict[FetchKey, CollapsedFetch[Result]] = {}
        self._tasks: dict[asyncio.Task[Result | Failure], CollapsedFetch[Result]] = {}

    def under_way(self, key: FetchKey) -> CollapsedFetch[Result] | None:
        """Give the flight that fetches this key, if one does."""
        return self._listed.get(key)

    def start(
        self,
        key: FetchKey | None,
        fly: Fly[Result],
        ticket: Ticket | None = None,
    ) -> CollapsedFetch[Result]:
        """Start a flight; without a key nobody can join it."""
        flight = CollapsedFetch[Result](ticket or Ticket())
        if key is not None:
            self._listed[key] = flight
        task = asyncio.get_running_loop().create_task(self._run(flight, fly))
        self._tasks[task] = flight
        # A task that is cancelled before its first step never runs at all; this is called even then.
        task.add_done_callback(partial(self._land, key))
        return flight

    def leave(self, flight: CollapsedFetch[Result]) -> None:
        """Note that a client waits no more; the last one ends the fetch, unless its request is at IMDS.

        Such a request is seen out, and can be joined meanwhile.
        """
        flight.clients -= 1
        if flight.clients > 0 or flight.outlives_clients:
            return
        flight.wanted = False
        if flight.sending:
            return
        for key in [key for key, listed in self._listed.items() if listed is flight]:
            del self._listed[key]
        for task in [task for task, flown in self._tasks.items() if flown is flight]:
            task.cancel()

    def forget(self, concerns: Callable[[Key], bool]) -> None:
        """Let nobody join the flights of these keys any more, nor what they bring be kept."""
        for key in [key for key in self._listed if concerns(key[0])]:
            self._listed.pop(key).keeps = False

    async def close(self) -> None:
        """End every flight; those who wait are told so."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._tasks)

    def _land(self, key: FetchKey | None, task: asyncio.Task[Result | Failure]) -> None:
        flight = self._tasks.pop(task)
        # Only if it is still the one: after `forget` another may fly under this key.
        if key is not None and self._listed.get(key) is flight:
            del self._listed[key]
        flight.stumble()
        flight.landed.set_result(_ENDED if task.cancelled() else task.result())

    @staticmethod
    async def _run(flight: CollapsedFetch[Result], fly: Fly[Result]) -> Result | Failure:
        try:
            return await fly(flight)
        except Exception:
            logger.exception("a flight failed")
            return _BROKEN
