"""Who gets the next token: those whose client waits before background refreshes, and clients in turn."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Protocol

from cachetools import TTLCache

from imdsproxy.budget.bucket import Permit
from imdsproxy.budget.fair_queue import FairQueue
from imdsproxy.clock import Clock

LATEST_START = 5.0
"""Seconds after which a token that was taken is not used any more: a process that was stopped meanwhile may be too
late, since others count on its request having ended."""

# Those who are told of a time so many seconds away may not come back at all.
_LONGEST_PROMISE = 120.0
_REMEMBERED_CLIENTS = 4096
_MOST_CLIENTS = 16


@dataclass(frozen=True, slots=True)
class TurnedAway:
    """No token within the longest wait; `retry_after` whole seconds on there should be one."""

    retry_after: int
    in_vain: bool = False
    """It was waited for, and others who came later may wait on."""


class Permits(Protocol):
    """A budget: this process's own, or one that it shares."""

    @property
    def requests(self) -> int:
        """How many tokens there are."""
        ...

    def reserve(self, now: float, lease: float, *, background: bool) -> Permit | float:
        """Give a token, or the seconds until asking again may succeed; infinity waits for `release`."""
        ...

    def release(self, token: Permit, now: float, *, counts: bool = True) -> None:
        """Give back a token whose request is over."""
        ...

    def release_unused(self, token: Permit) -> None:
        """Give back a token that was not used."""
        ...

    def throttled(self, taken_at: float, now: float, retry_after: float | None) -> None:
        """Learn of a 429."""
        ...

    def available(self, now: float) -> int:
        """Count the tokens that could be taken at this moment."""
        ...

    def expected_wait(self, ahead: int, now: float) -> float:
        """Estimate the wait of one who has so many before it."""
        ...


class Ticket:
    """A place in the queue for a token; one flight holds one ticket for all of its tries."""

    __slots__ = ("background", "clients", "deadline", "kind", "max_wait", "slow", "turn")

    def __init__(
        self,
        client: str = "",
        kind: str = "",
        *,
        background: bool = False,
        slow: bool = False,
        max_wait: float = math.inf,
    ) -> None:
        self.clients = [client]
        """Who waits for it; each of them brings it a turn."""
        self.kind = kind
        self.background = background
        self.slow = slow
        self.max_wait = max_wait
        """What its client may still wait, where that is less than others may."""
        self.turn: asyncio.Future[Permit | TurnedAway] | None = None
        self.deadline: asyncio.TimerHandle | None = None


class Limiter:
    """The queue before one budget. Deciding is synchronous; only waiting is not.

    `leases` are the seconds after which a token whose request nobody ended comes back, of ordinary requests and of
    slow ones; only a budget that outlives its process needs them.
    """

    def __init__(
        self, budget: Permits, clock: Clock, max_wait: float, leases: tuple[float, float] = (math.inf, math.inf)
    ) -> None:
        self.budget = budget
        self._clock = clock
        self.max_wait = max_wait
        self._leases = leases
        self._waiting: FairQueue[Ticket] = FairQueue()
        self._background: FairQueue[Ticket] = FairQueue()
        self._alarm: asyncio.TimerHandle | None = None
        # When there should be a token for a client that was turned away.
        self._promises: TTLCache[str, float] = TTLCache(_REMEMBERED_CLIENTS, _LONGEST_PROMISE, clock.monotonic)
        self._last_promise = -math.inf

    async def enter(self, ticket: Ticket) -> Permit | TurnedAway:
        """Wait for a token. Every token is given back by `leave` or `forgo`."""
        if not ticket.background:
            wait = self._expected_wait(ticket)
            if wait > min(self.max_wait, ticket.max_wait):
                return self._turned_away(ticket, wait)
        turn: asyncio.Future[Permit | TurnedAway] = asyncio.get_running_loop().create_future()
        ticket.turn = turn
        if ticket.background:
            self._background.add(ticket, "", ticket.kind)
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

    def leave(self, token: Permit, *, counts: bool = True) -> None:
        """Give back a token whose request is over; `counts` as for `Budget.release`."""
        self.budget.release(token, self._clock.monotonic(), counts=counts)
        self._advance()

    def release_unused(self, token: Permit) -> None:
        """Give back a token that was not used."""
        self.budget.release_unused(token)
        self._advance()

    def too_late(self, token: Permit) -> bool:
        """Whether a token that was not used yet may not be used any more."""
        return self._clock.monotonic() - token.taken_at > LATEST_START

    def join(self, ticket: Ticket, client: str) -> None:
        """From now on this client waits for it, too."""
        if ticket.background:
            ticket.background = False
            ticket.clients = [client]
            if ticket in self._background:
                self._background.remove(ticket)
                self._queue(ticket)
                self._advance()
        elif client not in ticket.clients:
            # Of very many, those bring it the soonest turn that have the least waiting.
            ticket.clients = [*sorted(ticket.clients, key=self._waiting.waiting)[: _MOST_CLIENTS - 1], client]
            if ticket in self._waiting:
                self._waiting.add(ticket, client, ticket.kind)

    def _expected_wait(self, ticket: Ticket) -> float:
        ahead = min(self._waiting.ahead_of_new(client, ticket.kind) for client in ticket.clients)
        return self.budget.expected_wait(ahead, self._clock.monotonic())

    def _turned_away(self, ticket: Ticket, wait: float, *, in_vain: bool = False) -> TurnedAway:
        """Tell when there should be a token: after this wait, and after the other clients that were told before.

        Were all clients told the same, they would all come back at once, and most of them in vain.
        """
        now = self._clock.monotonic()
        client = ticket.clients[0]
        moment = max(now + wait, self._promises.get(client, -math.inf))
        if client not in self._promises:
            requests = self.budget.requests
            between = (self.budget.expected_wait(requests, now) - self.budget.expected_wait(0, now)) / requests
            moment = min(max(moment, self._last_promise + between), now + max(wait, _LONGEST_PROMISE))
            self._last_promise = self._promises[client] = moment
        return TurnedAway(max(1, math.ceil(moment - now)), in_vain=in_vain)

    def _queue(self, ticket: Ticket) -> None:
        for client in ticket.clients:
            self._waiting.add(ticket, client, ticket.kind)
        max_wait = min(self.max_wait, ticket.max_wait)
        ticket.deadline = asyncio.get_running_loop().call_later(max_wait, self._out_of_time, ticket)

    def _out_of_time(self, ticket: Ticket) -> None:
        if ticket.turn is not None and not ticket.turn.done():
            self._waiting.remove(ticket)
            ticket.turn.set_result(self._turned_away(ticket, self._expected_wait(ticket), in_vain=True))

    def _withdraw(self, ticket: Ticket) -> None:
        for queue in (self._waiting, self._background):
            if ticket in queue:
                queue.remove(ticket)
        turn = ticket.turn
        if turn is not None and turn.done() and not turn.cancelled() and isinstance(token := turn.result(), Permit):
            self.release_unused(token)  # its turn came in the same moment in which it was cancelled

    def _advance(self) -> None:
        """Hand out the tokens that are there, and set the alarm for the next that comes back."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        while queue := self._waiting or self._background:
            ticket = queue.first()
            if ticket.turn is None or ticket.turn.done():  # cancelled, and its task has not run since
                queue.remove(ticket)
                continue
            lease = self._leases[ticket.slow]
            token = self.budget.reserve(self._clock.monotonic(), lease, background=ticket.background)
            if not isinstance(token, Permit):
                if token < math.inf:
                    self._alarm = asyncio.get_running_loop().call_later(token, self._advance)
                return
            queue.take()
            ticket.turn.set_result(token)
