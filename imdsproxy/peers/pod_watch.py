"""Keep the table of a node's pods up to date: list once, then watch, and list again where the watch cannot go on.

The rules:

1. A watch that the API server ends, or that is cut off, goes on from the latest version.
2. Every other failure, an expired version (410 Gone) among them, is followed by a list.
3. After a failure there is a pause, which doubles with each further one and has a random part, so that the nodes of a
   cluster do not come back all at once. Where nothing failed, a watch begins at least `SHORTEST_TURN` after the one
   before it.
4. The watch itself is the sign that all is well: an event, a bookmark, or its end at the time that was agreed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import NamedTuple, Protocol

from imdsproxy.clock import Clock
from imdsproxy.peers.pods import ChangeKind, PodState, PodTable, TooManyPodsError
from imdsproxy.protocol.peer import Pod

logger = logging.getLogger(__name__)

WATCH_SECONDS = 60
"""The time after which the API server ends a watch. A connection that was lost unnoticed is found after it."""
LIST_TIMEOUT = 30.0
_GRACE = 15.0
LONGEST_START = 30.0
"""Seconds for which the proxy is not ready because the first list has not come."""
SHORTEST_TURN = 1.0
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0
_EXPECTED_GONE = 3


class ApiError(Exception):
    """The API server could not be asked; the text is the reason."""

    def __init__(self, reason: str, *, resumable: bool = False) -> None:
        super().__init__(reason)
        self.resumable = resumable
        """Whether the watch can go on from the latest version."""


class GoneError(ApiError):
    """The version is too old to watch from it (410 Gone)."""


class Change(NamedTuple):
    """An event of the watch."""

    kind: ChangeKind
    state: PodState | None
    version: str
    """The version from which a later watch goes on."""


class PodApi(Protocol):
    """The API server, asked about the pods of one node. Raises ApiError."""

    async def list(self) -> tuple[list[PodState], str]:
        """Return the pods and the version of this list."""
        ...

    def watch(self, version: str, seconds: int) -> AsyncGenerator[Change, None]:
        """Yield the changes since a version, until the API server ends the watch after these seconds."""
        ...

    async def close(self) -> None:
        """Close all connections."""
        ...


class Observer(Protocol):
    """Is notified of each failure of the watch, and of each success."""

    def trouble(self, reason: str) -> None:
        """Note a failure."""
        ...

    def good(self) -> None:
        """Note that the watch goes on."""
        ...


class PodWatch:
    """One task that follows the API server. `table` has what it knows."""

    def __init__(
        self,
        table: PodTable,
        api: PodApi,
        clock: Clock,
        observer: Observer,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        """Make the watch without connecting.

        Args:
            table: The table that it keeps.
            api: The API server.
            clock: The clock.
            observer: Is notified of failures and successes.
            sleep: Waits for some seconds.
        """
        self.table = table
        self._api = api
        self._clock = clock
        self._observer = observer
        self._sleep = sleep
        self._failures = 0
        self._listed = False
        self._began: float | None = None
        self._trouble = "the first list has just been requested"
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task, if it has not been started."""
        if self._task is None:
            self._began = self._clock.monotonic()
            self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def obstacle(self) -> str | None:
        """Why the proxy should not receive requests yet, or None.

        It is None once the pods are known, and after `LONGEST_START`, because an API server that cannot be reached must
        not keep all clients of a node from IMDS.
        """
        if self._listed or (self._began is not None and self._clock.monotonic() - self._began >= LONGEST_START):
            return None
        return f"The pods of node {self.table.node} are not known yet: {self._trouble}"

    def find(self, address: str) -> Pod | None:
        """Return the pod that has an address now, or None if that is unknown."""
        return self.table.find(address, self._clock.monotonic())

    async def close(self) -> None:
        """End the task and close the connections."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        await self._api.close()

    async def _run(self) -> None:
        version: str | None = None
        while True:
            began = self._clock.monotonic()
            reached = _Position(version)
            try:
                await self._follow(reached)
            except Exception as error:  # noqa: BLE001  # whatever it is, the watch has to go on
                pause = self._failed(error)
                version = reached.version if isinstance(error, ApiError) and error.resumable else None
            else:
                self._good()
                self.table.heard(self._clock.monotonic())
                pause = max(0.0, SHORTEST_TURN - (self._clock.monotonic() - began))
                version = reached.version
            await self._sleep(pause)

    async def _follow(self, reached: _Position) -> None:
        """List, unless there is a version to go on from, and then watch until the API server ends the watch."""
        if reached.version is None:
            async with _within(LIST_TIMEOUT, "the list of pods"):
                states, version = await self._api.list()
            self.table.replace(states, self._clock.monotonic())
            reached.version = version
            if not self._listed:
                self._listed = True
                fields: dict[str, object] = {"node": self.table.node, "pods": len(self.table)}
                logger.info("pods of the node known", extra={"fields": fields})
        async with (
            _within(WATCH_SECONDS + _GRACE, "the watch of pods"),
            contextlib.aclosing(self._api.watch(reached.version, WATCH_SECONDS)) as changes,
        ):
            async for change in changes:
                self.table.change(change.kind, change.state, self._clock.monotonic())
                reached.version = change.version
                self._good()

    def _good(self) -> None:
        self._failures = 0
        self._observer.good()

    def _failed(self, error: Exception) -> float:
        """Notify the observer of a failure, and return the pause after it, in seconds."""
        self._failures += 1
        if not isinstance(error, GoneError) or self._failures >= _EXPECTED_GONE:
            self._trouble = _words(error)
            self._observer.trouble(self._trouble)
        return pause_after(self._failures, random.random())  # noqa: S311  # it spreads load, and hides nothing


class _Position:
    """The version that a watch has reached."""

    def __init__(self, version: str | None) -> None:
        self.version = version


def pause_after(failures: int, chance: float) -> float:
    """Return the seconds before the next try.

    Args:
        failures: The failures in a row, from 1 on.
        chance: A random number from 0 to 1.
    """
    longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(failures - 1, 16))
    return longest * (1 + chance) / 2


@contextlib.asynccontextmanager
async def _within(seconds: float, what: str) -> AsyncGenerator[None, None]:
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError:
        raise ApiError(f"{what} took longer than {seconds:g} s", resumable=True) from None


def _words(error: Exception) -> str:
    if isinstance(error, ApiError | TooManyPodsError):
        return str(error)
    return f"{type(error).__name__}: {error}"
