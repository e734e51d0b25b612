"""A few places for requests that may hold a token for minutes, so that the others keep some."""

from __future__ import annotations

import asyncio

from imdsproxy.budget.fair_queue import FairQueue

# One client may wait for so many of the few places at once: more different scheduled-events targets than there are.
_MOST_PLACES_WANTED = 8


class FairSemaphore:
    """So many places, taken before a token; clients take turns for them."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: FairQueue[asyncio.Future[None]] = FairQueue()

    async def take(self, client: str, max_wait: float) -> bool:
        """Wait for a place, at most so many seconds; says whether it was taken, and then `give_back` is due."""
        if self._free > 0:
            self._free -= 1
            return True
        if self._waiting.waiting(client) >= _MOST_PLACES_WANTED:
            return False
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(turn, client, "")
        try:
            async with asyncio.timeout(max_wait):
                await turn
        except (TimeoutError, asyncio.CancelledError) as error:
            if turn in self._waiting:
                self._waiting.remove(turn)
            elif not turn.cancelled():
                self.give_back()  # its turn came in the same moment
            if isinstance(error, TimeoutError):
                return False
            raise
        return True

    def give_back(self) -> None:
        """Leave the place to the next."""
        while self._waiting:
            turn = self._waiting.take()
            if not turn.done():  # else it was cancelled, and its task has not run since
                turn.set_result(None)
                return
        self._free += 1
