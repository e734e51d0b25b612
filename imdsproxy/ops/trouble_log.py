"""Write the beginning and the end of each trouble to the log."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterable

from imdsproxy.clock import Clock
from imdsproxy.ops.episodes import Event
from imdsproxy.ops.troubles import Troubles
from imdsproxy.protocol.messages import Target
from imdsproxy.records import UpstreamAttempt

logger = logging.getLogger("imdsproxy.troubles")

# Seconds. A timer of the event loop may fire a little before the clock of the deadline is there.
_SHORTEST_PAUSE = 0.05


class TroubleLog:
    """Observes the proxy within its event loop, and sets a timer for the ends that only time brings."""

    def __init__(self, troubles: Troubles, clock: Clock, token_life: Callable[[Target], float | None]) -> None:
        """Begin without trouble.

        Args:
            troubles: The decisions.
            clock: The clock.
            token_life: Returns the remaining seconds of the token that is cached for a target, or None.
        """
        self._troubles = troubles
        self._clock = clock
        self._token_life = token_life
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf

    def observe_attempt(self, attempt: UpstreamAttempt) -> None:
        """Log what begins or ends with an upstream attempt."""
        life = None if attempt.target is None or attempt.endpoint != "token" else self._token_life(attempt.target)
        self._log(self._troubles.observe_attempt(attempt, life, self._clock.monotonic()))

    def observe_eviction(self, entries: int) -> None:
        """Log the beginning of evictions; `entries` are left in the cache."""
        self._log(self._troubles.observe_eviction(entries, self._clock.monotonic()))

    def observe_refusal(self, detail: str, client: str) -> None:
        """Log the beginning of refusals of a client's bytes, for the reason that `detail` names."""
        self._log(self._troubles.observe_refusal(detail, client, self._clock.monotonic()))

    def close(self) -> None:
        """Cancel the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._due = math.inf

    def _log(self, events: Iterable[Event]) -> None:
        for event in events:
            level = logging.INFO if event.over else logging.WARNING
            logger.log(level, event.message, extra={"fields": dict(event.fields)})
        due = self._troubles.due
        # A due moment that has moved on is looked at when its timer fires, because most attempts during a trouble
        # move it.
        if due < self._due:
            self.close()
            try:
                loop = asyncio.get_running_loop()
            except RuntimeError:  # without a loop, the next observation brings the end
                return
            self._due = due
            self._timer = loop.call_later(max(_SHORTEST_PAUSE, due - self._clock.monotonic()), self._settle)

    def _settle(self) -> None:
        self._timer, self._due = None, math.inf
        self._log(self._troubles.settle(self._clock.monotonic()))
