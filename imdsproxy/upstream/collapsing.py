"""Collapsed forwarding: one fetch for all clients that ask for the same thing at the same time (RFC 9111 section 4).

A fetch is a task of its own. It continues when its clients hang up, and its result is a value: a client that waits for
it gets a result, never an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
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

    def __init__(self, key: FetchKey | None, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        self.key = key
        self.ticket = ticket
        self.landed: asyncio.Future[Result | Failure] = loop.create_future()
        self.stumbled = False
        """An attempt has failed, or all is over: a client that can be served stale need not wait on."""
        self._patient: set[asyncio.Future[None]] = set()
        self._impatient: set[asyncio.Future[None]] = set()
        self.keeps = True
        """What it brings may be kept. Not any more once its key was dropped: it may be older than the drop."""
        self.sending = False
        """A request of it is at IMDS at this moment."""
        self.recalled = False
        """A request of it was ended once because others waited."""
        self.task: asyncio.Task[Result | Failure] | None = None
        """What performs it."""
        self.wanted = True
        """Somebody may still make use of what it brings; if not, a failed try is not tried again."""
        self.outlives_clients = False
        """It goes on when the last client has gone."""
        self.clients = 1
        """How many wait for it."""

    def stumble(self) -> None:
        """Wake those who can be served stale: an attempt has failed."""
        self.stumbled = True
        self._wake(self._impatient)

    def land(self, result: Result | Failure) -> None:
        """Hand the result to all who wait for it."""
        self.landed.set_result(result)
        self.stumble()
        self._wake(self._patient)

    async def result(self) -> Result | Failure:
        """Wait for the result."""
        if not self.landed.done():
            await self._wait_in(self._patient)
        return self.landed.result()

    async def result_or_stumble(self) -> Result | Failure | None:
        """Wait for the result, or until an attempt has failed; then return None."""
        if not self.stumbled:
            await self._wait_in(self._impatient)
        return self.landed.result() if self.landed.done() else None

    # Thousands may wait for one fetch and hang up together. Each of them costs the same to forget; a callback of a
    # future would be searched for among those of all others.

    @staticmethod
    async def _wait_in(waiting: set[asyncio.Future[None]]) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        waiting.add(woken)
        try:
            await woken
        finally:
            waiting.discard(woken)

    @staticmethod
    def _wake(waiting: set[asyncio.Future[None]]) -> None:
        for woken in waiting:
            if not woken.done():
                woken.set_result(None)


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
        flight = CollapsedFetch[Result](key, ticket or Ticket())
        if key is not None:
            self._listed[key] = flight
        task = asyncio.get_running_loop().create_task(self._run(flight, fly))
        flight.task = task
        self._tasks[task] = flight
        # A task that is cancelled before its first step never runs at all; this is called even then.
        task.add_done_callback(self._land)
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
        self._unlist(flight)
        if flight.task is not None:
            flight.task.cancel()

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

    def _unlist(self, flight: CollapsedFetch[Result]) -> None:
        # Only if it is still the one: after `forget` another may fly under this key.
        if flight.key is not None and self._listed.get(flight.key) is flight:
            del self._listed[flight.key]

    def _land(self, task: asyncio.Task[Result | Failure]) -> None:
        flight = self._tasks.pop(task)
        self._unlist(flight)
        flight.land(_ENDED if task.cancelled() else task.result())

    @staticmethod
    async def _run(flight: CollapsedFetch[Result], fly: Fly[Result]) -> Result | Failure:
        try:
            return await fly(flight)
        except Exception:
            logger.exception("a flight failed")
            return _BROKEN
