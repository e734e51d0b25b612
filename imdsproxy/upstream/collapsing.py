"""Collapsed forwarding: one fetch for all clients that ask for the same thing at the same time (RFC 9111 section 4).

A fetch is a task of its own. It continues when its clients hang up, and its result is a value: a client that waits for
it gets a result, never an exception.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from imdsproxy.budget.limiter import Ticket
from imdsproxy.protocol.messages import Failure, FailureKind, Key

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Perform = Callable[["CollapsedFetch[Result]"], Awaitable[Result | Failure]]
"""Performs one fetch, and returns its result."""

_numbers = itertools.count(1)
_ENDED = Failure(FailureKind.INTERNAL, "The proxy stopped before IMDS answered; ask again.")
_BROKEN = Failure(FailureKind.INTERNAL, "An error in the proxy ended this request; see the proxy's log.")

FetchKey = tuple[Key, str]
"""The key, and the kind of fetch: a forced renewal does not join a plain fetch."""


class CollapsedFetch(Generic[Result]):
    """One fetch with all its attempts, and the clients that wait for it."""

    def __init__(self, key: FetchKey | None, ticket: Ticket) -> None:
        loop = asyncio.get_running_loop()
        self.number = next(_numbers)
        """Distinguishes it from every other fetch of this process, in the records."""
        self.key = key
        self.ticket = ticket
        self.future: asyncio.Future[Result | Failure] = loop.create_future()
        self.attempt_failed = False
        """Whether an attempt has failed, or the fetch is done: clients with a stale entry need not wait longer."""
        self._patient: set[asyncio.Future[None]] = set()
        """Clients that wait for the result."""
        self._impatient: set[asyncio.Future[None]] = set()
        """Clients with a stale entry, which wait only until an attempt has failed."""
        self.keeps = True
        """Whether its result may be stored. It may not after its key was dropped, because it may be older than that."""
        self.sending = False
        """Whether a request of it is at IMDS now."""
        self.recalled = False
        """Whether a request of it was cancelled because others waited."""
        self.task: asyncio.Task[Result | Failure] | None = None
        """The task that performs it."""
        self.wanted = True
        """Whether its result is still of use. If not, a failed attempt is not retried."""
        self.outlives_clients = False
        """Whether it continues after its last client has disconnected."""
        self.clients = 1
        """How many clients wait for it."""
        self.waited = 0.0
        """Seconds that it has waited for permits."""
        self.latest: str | None = None
        """The status of its latest upstream attempt, or the word for its failure; None before the first."""

    def note_failure(self) -> None:
        """Wake the clients that can be served stale, because an attempt has failed."""
        self.attempt_failed = True
        self._wake(self._impatient)

    def finish(self, result: Result | Failure) -> None:
        """Set the result, and wake all clients."""
        self.future.set_result(result)
        self.note_failure()
        self._wake(self._patient)

    async def result(self) -> Result | Failure:
        """Wait for the result."""
        if not self.future.done():
            await self._wait_in(self._patient)
        return self.future.result()

    async def result_or_failed_attempt(self) -> Result | Failure | None:
        """Wait for the result, or until an attempt has failed; then return None."""
        if not self.attempt_failed:
            await self._wait_in(self._impatient)
        return self.future.result() if self.future.done() else None

    # Thousands of clients may wait for one fetch and hang up together. Removing one from a set takes constant time;
    # removing a callback from a future would search all others.

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
    """The fetches under way, by key and kind."""

    def __init__(self) -> None:
        self._listed: dict[FetchKey, CollapsedFetch[Result]] = {}
        self._tasks: dict[asyncio.Task[Result | Failure], CollapsedFetch[Result]] = {}

    def under_way(self, key: FetchKey) -> CollapsedFetch[Result] | None:
        """Return the fetch under way for this key, or None."""
        return self._listed.get(key)

    def start(
        self,
        key: FetchKey | None,
        perform: Perform[Result],
        ticket: Ticket | None = None,
    ) -> CollapsedFetch[Result]:
        """Start a fetch. Without a key no other client can join it."""
        fetch = CollapsedFetch[Result](key, ticket or Ticket())
        if key is not None:
            self._listed[key] = fetch
        task = asyncio.get_running_loop().create_task(self._run(fetch, perform))
        fetch.task = task
        self._tasks[task] = fetch
        # A task that is cancelled before its first step never runs, but its callback is called.
        task.add_done_callback(self._finish)
        return fetch

    def leave(self, fetch: CollapsedFetch[Result]) -> None:
        """Note that a client no longer waits. The last client cancels the fetch, unless its request is at IMDS.

        Such a request continues, and other clients can join it.
        """
        fetch.clients -= 1
        if fetch.clients > 0 or fetch.outlives_clients:
            return
        fetch.wanted = False
        if fetch.sending:
            return
        self._unlist(fetch)
        if fetch.task is not None:
            fetch.task.cancel()

    def forget(self, matches: Callable[[Key], bool]) -> None:
        """Prevent clients from joining the fetches of these keys, and their results from being stored."""
        for key in [key for key in self._listed if matches(key[0])]:
            self._listed.pop(key).keeps = False

    async def close(self) -> None:
        """Cancel every fetch. Their clients get a Failure."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)

    def __len__(self) -> int:
        return len(self._tasks)

    def _unlist(self, fetch: CollapsedFetch[Result]) -> None:
        # Only if it is still listed: after `forget` another fetch may have this key.
        if fetch.key is not None and self._listed.get(fetch.key) is fetch:
            del self._listed[fetch.key]

    def _finish(self, task: asyncio.Task[Result | Failure]) -> None:
        fetch = self._tasks.pop(task)
        fetch.task = None  # a cancelled task refers to the fetch by its traceback; the cycle would stay in memory
        self._unlist(fetch)
        fetch.finish(_ENDED if task.cancelled() else task.result())

    @staticmethod
    async def _run(fetch: CollapsedFetch[Result], perform: Perform[Result]) -> Result | Failure:
        try:
            return await perform(fetch)
        except Exception:
            logger.exception("a fetch failed")
            return _BROKEN
