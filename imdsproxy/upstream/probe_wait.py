"""The wait for the probe: while IMDS answers 410, one fetch sends, and the others wait for what it learns."""

from __future__ import annotations

import asyncio
from typing import Any

from imdsproxy.clock import Clock
from imdsproxy.protocol.failures import Verdict
from imdsproxy.upstream.collapsing import CollapsedFetch
from imdsproxy.upstream.health import Health

# Fetches that wait. They outlive their clients; beyond this number the 410 is passed on at once.
_MOST_WAITING = 256


class ProbeWait:
    """The fetches that wait for the probe."""

    def __init__(self, health: Health, clock: Clock, limit: float) -> None:
        """Wait at most `limit` seconds after a fetch has begun."""
        self._health = health
        self._clock = clock
        self._limit = limit
        self._changed = asyncio.Event()
        self._waiting = 0

    async def wait(self, fetch: CollapsedFetch[Any], began: float) -> Verdict | None:
        """Wait until a fetch may send. Return None, or the 410 to pass on if IMDS does not come back in time.

        Args:
            fetch: The fetch. It may become the probe itself.
            began: When it began, in monotonic seconds.
        """
        while not self._health.may_ask(fetch):
            fetch.note_failure()
            if self._waiting >= _MOST_WAITING:
                return self._health.gone
            left = began + self._limit - self._clock.monotonic()
            self._waiting += 1
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self._changed.wait()
            except TimeoutError:
                return self._health.gone
            finally:
                self._waiting -= 1
        return None

    def wake(self) -> None:
        """Wake all that wait, because the health has changed or the probe has left."""
        self._changed.set()
        self._changed = asyncio.Event()
