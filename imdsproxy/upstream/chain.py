"""Another imdsproxy behind the upstream, and a way to IMDS that leads back to this proxy.

Another imdsproxy spends the permits, so none is spent here. Whether there is one can change with each answer: behind
IMDS's own address it is there only as long as a redirect is loaded.
"""

from __future__ import annotations

import logging
import math

from imdsproxy.budget.bucket import Budget
from imdsproxy.budget.limiter import Limiter
from imdsproxy.clock import Clock

logger = logging.getLogger(__name__)

_LOOP_REMINDER = 60.0
# Another imdsproxy keeps the budget, so only the number of concurrent requests to it is bounded. The bound is lower if
# no setting says that it is one.
_MOST_AT_A_PROXY = 256
_MOST_AT_A_STRANGER = 5


class Chain:
    """Whether the upstream is another imdsproxy, and the queue before it."""

    def __init__(self, assumed: bool | None, clock: Clock, max_wait: float) -> None:
        """Begin with an assumption.

        Args:
            assumed: Whether the upstream is assumed to be another imdsproxy until an answer shows it; None if it can
                never be one.
            clock: The clock.
            max_wait: The longest wait in the queue, in seconds.
        """
        self._can_be_proxied = assumed is not None
        self.proxied = bool(assumed)
        """Whether the last answer came through another imdsproxy."""
        most = _MOST_AT_A_PROXY if assumed else _MOST_AT_A_STRANGER
        self.limiter = Limiter(Budget(most, 0.0), clock, max_wait)
        """The queue before another imdsproxy."""
        self._clock = clock
        self._loop_logged_at = -math.inf

    def learn(self, *, by_proxy: bool) -> bool:
        """Learn whether an answer came through another imdsproxy. Return whether the one there was has gone."""
        if not self._can_be_proxied:
            return False
        gone = self.proxied and not by_proxy
        self.proxied = by_proxy
        return gone

    def log_loop(self, because: str) -> None:
        """Log a loop once a minute, because clients may cause it many times a second."""
        now = self._clock.monotonic()
        if now - self._loop_logged_at >= _LOOP_REMINDER:
            self._loop_logged_at = now
            logger.error("the way to IMDS leads back to this proxy", extra={"fields": {"because": because}})
