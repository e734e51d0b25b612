"""Who gets the next token: those whose client waits before background refreshes.

Clients are served in turn by what they ask for: a flood of questions about the instance delays a token by one turn,
not by the whole flood. Within one share, and in the background, the order is that of arrival.
"""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict, deque
from dataclasses import dataclass

from imdsproxy.budget import Budget
from imdsproxy.clock import Clock

# More different scheduled-events targets than there are api-versions several times over.
_MOST_WAITING = 50


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """No token within the longest wait; `retry_after` whole seconds on there should be one."""

    retry_after: int


class Ticket:
    """A place in the queue for a token; one flight holds one ticket for all of its tries."""

    __slots__ = ("background", "deadline", "share", "turn")

    def __init__(self, *, background: bool, share: str = "") -> None:
        self.background = background
        self.share = share
        self.turn: asyncio.Future[float | TurnedAway] | None = None
        self.deadline: asyncio.TimerHandle | None = None


class _Turns:
    """Tickets, taken in turn from each share that has any."""

    def __init__(self) -> None:
        self._shares: OrderedDict[str, deque[Ticket]] = OrderedDict()

    def append(self, ticket: Ticket) -> None:
        self._shares.setdefault(ticket.share, deque()).append(ticket)

    def popleft(self) -> Ticket:
        share, tickets = self._shares.popitem(last=False)
        ticket = tickets.popleft()
        if tickets:
            self._shares[share] = tickets  # at the end of the round
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Take a ticket out; ValueError if it is not there."""
        tickets = self._shares.get(ticket.share, deque())
        tickets.remove(ticket)
        if not tickets:
            del self._shares[ticket.share]

    def ahead_of_new(self, share: str) -> int:
        """Count those who would get their turn before a new ticket of this share."""
        place = len(self._shares.get(share, ()))
        others = (len(tickets) for name, tickets in self._shares.items() if name != share)
        return place + sum(min(waiting, place + 1) for waiting in others)

    def __contains__(self, ticket: Ticket) -> bool:
        return ticket in self._shares.get(ticket.share, ())

    def __len__(self) -> int:
        return sum(map(len, self._shares.values()))


class Places:
    """A few places, taken before a token by requests that may hold one for minutes, and a bounded queue for them."""

    def __init__(self, count: int) -> None:
        self._free = asyncio.Semaphore(count)
        self._waiting = 0

    async def take(self, max_wait: float) -> bool:
        """Wait for a place, at most so many seconds; says whether it was taken, and then `give_back` is due."""
        if self._waiting >= _MOST_WAITING and self._free.locked():
            return False
        self._waiting += 1
        try:
            async with asyncio.timeout(max_wait):
                await self._free.acquire()
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1
        return True

    def give_back(self) -> None:
        """Leave the place to the next."""
        self._free.release()


class Admission:
    """The queue before one budget. Deciding is synchronous; only waiting is not."""

    def __init__(self, budget: Budget, clock: Clock, max_wait: float) -> None:
        self.budget = budget
        self._clock = clock
        self.max_wait = max_wait
        self._waiting = _Turns()
        self._background: deque[Ticket] = deque()
        self._alarm: asyncio.TimerHandle | None = None

    async def enter(self, ticket: Ticket) -> float | TurnedAway:
        """Wait for a token; gives the moment it was taken. Every token is given back by `leave` or `forgo`."""
        now = self._clock.monotonic()
        if not ticket.background:
            wait = self.budget.expected_wait(self._waiting.ahead_of_new(ticket.share), now)
            if wait > self.max_wait:
                return TurnedAway(max(1, math.ceil(wait)))
        turn: asyncio.Future[float | TurnedAway] = asyncio.get_running_loop().create_future()
        ticket.turn = turn
        if ticket.background:
            self._background.append(ticket)
        else:
            self._queue(ticket)
        self._advance()
        try:
            return await turn
        except asyncio.CancelledError:
            self._withdraw(ticket)
            raise
        finally:
            ticket.turn = None
            if ticket.deadline is not None:
                ticket.deadline.cancel()
                ticket.deadline = None

    def leave(self, taken_at: float, *, counts: bool = True) -> None:
        """Give back a token whose request is over; `counts` as for `Budget.release`."""
        self.budget.release(taken_at, self._clock.monotonic(), counts=counts)
        self._advance()

    def forgo(self) -> None:
        """Give back a token that was not used."""
        self.budget.forgo()
        self._advance()

    def promote(self, ticket: Ticket) -> None:
        """From now on a client waits for this background refresh."""
        if not ticket.background:
            return
        ticket.background = False
        if ticket in self._background:
            self._background.remove(ticket)
            self._queue(ticket)
            self._advance()

    def _queue(self, ticket: Ticket) -> None:
        self._waiting.append(ticket)
        ticket.deadline = asyncio.get_running_loop().call_later(self.max_wait, self._too_late, ticket)

    def _too_late(self, ticket: Ticket) -> None:
        if ticket.turn is not None and not ticket.turn.done():
            self._waiting.remove(ticket)
            ahead = self._waiting.ahead_of_new(ticket.share)
            wait = self.budget.expected_wait(ahead, self._clock.monotonic())
            ticket.turn.set_result(TurnedAway(max(1, math.ceil(wait))))

    def _withdraw(self, ticket: Ticket) -> None:
        if ticket in self._waiting:
            self._waiting.remove(ticket)
        elif ticket in self._background:
            self._background.remove(ticket)
        turn = ticket.turn
        if turn is not None and turn.done() and not turn.cancelled() and isinstance(turn.result(), float):
            self.forgo()  # its turn came in the same moment in which it was cancelled

    def _advance(self) -> None:
        """Hand out the tokens that are there, and set the alarm for the next that comes back."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while self._waiting or self._background:
            now = self._clock.monotonic()
            wait = self.budget.reserve(now)
            if wait > 0:
                if wait < math.inf:
                    self._alarm = asyncio.get_running_loop().call_later(wait, self._advance)
                return
            ticket = (self._waiting or self._background).popleft()
            if ticket.turn is None or ticket.turn.done():  # cancelled, and its task has not run since
                self.budget.forgo()
                continue
            ticket.turn.set_result(now)
