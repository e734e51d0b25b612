"""A semaphore for slow requests, which may hold a permit for minutes, so that some permits are left for the others."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from cachetools import LRUCache

from imdsproxy.budget.shares import SILENCE, Recall
from imdsproxy.budget.turns import Turn
from imdsproxy.clock import Clock

# The most places that one client may wait for at once. There are fewer scheduled-events targets than that.
_MOST_PLACES_WANTED = 8
# The most that may wait in all. Each wait may outlive its client, so the limit of connections does not bound them.
_MOST_WAITING = 256
_REMEMBERED_CLIENTS = 4096
_PRESSED_EVERY = 0.1


@dataclass(eq=False, slots=True)
class Place:
    """A place, taken or wanted."""

    turn: Turn
    usual: bool
    """Whether known clients request this target. All unusual targets of a client are counted together."""
    recall: Recall
    """How to end the request that has the place."""
    free: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    """True once the place is taken, False if the wait ended in favour of another client."""
    taken_at: float = 0.0
    recalled: bool = False

    @property
    def client(self) -> str:
        """The outermost level of the turn. Clients take turns for places by this level alone."""
        return self.turn[0]


class FairSemaphore:
    """A number of places. A slow request takes one before its permit, and clients take turns for them.

    One client may have all places while no other waits. Once another waits, one request that has been under way for
    `SILENCE` seconds is recalled. That is a request of a client with at least two places more than the waiting one, or
    a request for an unusual target if the waiting one is for a usual target.

    If too many wait, the newest of the client with the most waiting gives way.
    """

    def __init__(self, count: int, clock: Clock, recall: Callable[[Recall], bool] = Recall.take_effect) -> None:
        """Make the places.

        Args:
            count: How many there are.
            clock: The clock.
            recall: Ends a request, and returns whether it did. It may refuse for the moment.
        """
        self._free = count
        self._clock = clock
        self._recall = recall
        self._waiting: dict[Place, None] = {}
        self._wanted: Counter[tuple[str, bool]] = Counter()
        self._held: list[Place] = []
        self._places: Counter[str] = Counter()  # how many places each client has
        self._handed_out = 0
        self._served: LRUCache[str, int] = LRUCache(_REMEMBERED_CLIENTS)  # when each client got a place last
        self._alarm: asyncio.TimerHandle | None = None

    async def acquire(self, place: Place, max_wait: float) -> bool:
        """Wait for a place, at most `max_wait` seconds. Return whether it was taken; if so, it must be released."""
        if self._free > 0:
            self._free -= 1
            self._hand_out(place)
            return True
        if self._wanted[place.client, place.usual] >= _MOST_PLACES_WANTED or not self._make_room(place):
            return False
        self._waiting[place] = None
        self._wanted[place.client, place.usual] += 1
        if self._alarm is None and any(self._goes_before(place, held) for held in self._held):
            self._press()
        try:
            async with asyncio.timeout(max_wait):
                return await place.free
        except (TimeoutError, asyncio.CancelledError) as error:
            if place in self._waiting:
                self._withdraw(place)
            elif not place.free.cancelled() and place.free.result():
                self.release(place)  # its turn came in the same moment
            if isinstance(error, TimeoutError):
                return False
            raise

    def release(self, place: Place) -> None:
        """Release a place, and hand it to the next request that waits."""
        self._held.remove(place)
        self._places -= Counter([place.client])  # drops a client without places
        while (following := self._next()) is not None:
            self._withdraw(following)
            if not following.free.done():  # else it was cancelled, and its task has not run since
                following.free.set_result(True)
                self._hand_out(following)
                self._press()
                return
        self._free += 1

    def _make_room(self, place: Place) -> bool:
        """Return whether one more may wait. If too many do, the newest of the client with the most gives way."""
        if len(self._waiting) < _MOST_WAITING:
            return True
        waiting = Counter([each.client for each in (*self._waiting, place)])

        def excess(each: Place) -> tuple[int, bool]:
            return waiting[each.client], not each.usual

        most = max(reversed(self._waiting), key=excess)
        if excess(most) <= excess(place):
            return False
        self._withdraw(most)
        if not most.free.done():
            most.free.set_result(False)
        return True

    def _next(self) -> Place | None:
        """Return the waiting place whose turn it is, or None.

        The order is: clients with fewer places first, then usual targets, then the client whose last place is longest
        ago.
        """
        return min(
            self._waiting,
            key=lambda place: (self._places[place.client], not place.usual, self._served.get(place.client, 0)),
            default=None,
        )

    def _withdraw(self, place: Place) -> None:
        del self._waiting[place]
        self._wanted[place.client, place.usual] -= 1
        if not self._wanted[place.client, place.usual]:
            del self._wanted[place.client, place.usual]

    def _hand_out(self, place: Place) -> None:
        self._handed_out += 1
        self._served[place.client] = self._handed_out
        place.taken_at = self._clock.monotonic()
        self._held.append(place)
        self._places[place.client] += 1

    def _press(self) -> None:
        """Recall a request in favour of the next that waits, or set the alarm for the moment when one may be."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        following = self._next()
        if following is None or any(place.recalled for place in self._held):
            return
        unfair = [place for place in self._held if self._goes_before(following, place)]
        if not unfair:
            return
        now = self._clock.monotonic()
        look_again = now + SILENCE
        for place in sorted(unfair, key=lambda place: (not place.usual, place.taken_at), reverse=True):
            if place.taken_at + SILENCE > now:
                look_again = min(look_again, place.taken_at + SILENCE)
            elif self._recall(place.recall):
                place.recalled = True
                return
            else:  # it still waits for its permit, or may not be recalled yet
                look_again = now
        wait = max(look_again - now, _PRESSED_EVERY)
        self._alarm = asyncio.get_running_loop().call_later(wait, self._press)

    def _goes_before(self, waiting: Place, held: Place) -> bool:
        more = self._places[held.client] > self._places[waiting.client] + 1
        return more or (waiting.usual and not held.usual)
