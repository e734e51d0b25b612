"""The Retry-After of refused clients: one moment for each, so that they do not all return at the same time."""

from __future__ import annotations

import math

from cachetools import TTLCache

from imdsproxy.budget.permits import Permits
from imdsproxy.budget.turns import Turn
from imdsproxy.clock import Clock

# The longest Retry-After, in seconds. Clients may not return at all after a longer one.
_LONGEST_PROMISE = 120.0
_REMEMBERED_CLIENTS = 4096


class Promises:
    """The moments at which refused clients were asked to return, so that one returns after another.

    The first promise to a user, or to an address, comes after those to all others. Further promises to the same user
    or address, for its processes and the proxies that it names, come only after each other. Forged names therefore
    delay no other client.
    """

    def __init__(self, clock: Clock) -> None:
        self._moments: TTLCache[Turn, float] = TTLCache(_REMEMBERED_CLIENTS, _LONGEST_PROMISE, clock.monotonic)
        self._last_to: TTLCache[str, float] = TTLCache(_REMEMBERED_CLIENTS, _LONGEST_PROMISE, clock.monotonic)
        self._last = -math.inf

    def make(self, turn: Turn, budget: Permits, wait: float, now: float) -> float:
        """Return the monotonic moment at which a permit should be available for this client.

        Args:
            turn: The client's turn.
            budget: The budget, whose rate spaces the promises.
            wait: The seconds that the client would have to wait now. The moment is not before they are over.
            now: The current monotonic time, in seconds.
        """
        moment = max(now + wait, self._moments.get(turn, -math.inf))
        if turn not in self._moments:
            requests = budget.requests
            between = (budget.expected_wait(requests, now) - budget.expected_wait(0, now)) / requests
            first = turn[0] not in self._last_to
            last = self._last if first else self._last_to[turn[0]]
            moment = min(max(moment, last + between), now + max(wait, _LONGEST_PROMISE))
            self._moments[turn] = self._last_to[turn[0]] = moment
            if first:
                self._last = moment
        return moment
