"""The queue before a budget: clients take turns, and requests of clients come before background refreshes."""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass

from imdsproxy.budget.bucket import Permit
from imdsproxy.budget.fair_queue import FairQueue
from imdsproxy.budget.permits import Permits
from imdsproxy.budget.promises import Promises
from imdsproxy.budget.shares import Recall, Shares
from imdsproxy.budget.turns import turn_of
from imdsproxy.clock import Clock
from imdsproxy.protocol.peer import UNKNOWN, Peer

LATEST_START = 5.0
"""Seconds after which an unused permit may not be used any more. Its process may have been stopped for a while, and
other processes assume that its request has ended."""

_MOST_TURNS = 16


@dataclass(frozen=True, slots=True)
class NoPermit:
    """There was no permit within the longest wait. One should be available in `retry_after` whole seconds."""

    retry_after: int
    timed_out: bool = False
    """Whether the request waited in the queue until its time was over. Clients that joined it later may wait longer."""


class Ticket:
    """A place in the queue for a permit; one fetch holds one ticket for all of its attempts."""

    __slots__ = ("background", "deadline", "kind", "max_wait", "recall", "slow", "turn", "turns")

    def __init__(  # noqa: PLR0913  # all but the first two by name
        self,
        client: Peer = UNKNOWN,
        kind: str = "",
        *,
        background: bool = False,
        slow: bool = False,
        max_wait: float = math.inf,
        recall: Recall | None = None,
    ) -> None:
        """Make a ticket.

        Args:
            client: The client that waits for it.
            kind: The endpoint of its request, or `""` for none.
            background: Whether no client waits for it.
            slow: Whether its request may take minutes.
            max_wait: The seconds that its client may still wait, if they are fewer than usual.
            recall: Cancels its request; None if the request must not be cancelled.
        """
        self.turns = [turn_of(client)]
        """The turns of all clients that wait for it; each can bring it forward."""
        self.kind = kind
        self.background = background
        self.slow = slow
        self.max_wait = max_wait
        self.recall = recall
        self.turn: asyncio.Future[Permit | NoPermit] | None = None
        self.deadline: asyncio.TimerHandle | None = None


class Limiter:
    """The queue before one budget. Decisions are synchronous; only `acquire` waits."""

    def __init__(
        self, budget: Permits, clock: Clock, max_wait: float, leases: tuple[float, float] = (math.inf, math.inf)
    ) -> None:
        """Make an empty queue.

        Args:
            budget: The budget.
            clock: The clock.
            max_wait: The longest wait of a client's request, in seconds.
            leases: The seconds for which a permit is lent, for ordinary and for slow requests. Only a budget that
                outlives its process needs them.
        """
        self.budget = budget
        self._clock = clock
        self.max_wait = max_wait
        self._leases = leases
        self._waiting: FairQueue[Ticket] = FairQueue()
        self._background: FairQueue[Ticket] = FairQueue()
        self._alarm: asyncio.TimerHandle | None = None
        self._shares = Shares()
        self._promises = Promises(clock)

    async def acquire(self, ticket: Ticket) -> Permit | NoPermit:
        """Wait for a permit. The caller returns it by `release` or `release_unused`."""
        permit = self._permit_now(ticket)
        if permit is not None:
            return permit
        if not ticket.background:
            wait = self._expected_wait(ticket)
            if wait > min(self.max_wait, ticket.max_wait):
                return self._no_permit(ticket, wait)
        turn: asyncio.Future[Permit | NoPermit] = asyncio.get_running_loop().create_future()
        ticket.turn = turn
        if ticket.background:
            self._background.add(ticket, turn_of(UNKNOWN), ticket.kind)
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

    def release(self, permit: Permit, *, counts: bool = True, answered: bool = True) -> None:
        """Return a permit whose request is over.

        Args:
            permit: The permit.
            counts: Whether the time it was held is typical for other requests.
            answered: Whether its endpoint answered, with any status.
        """
        now = self._clock.monotonic()
        self._shares.end(permit.holder, now, answered=answered)
        self.budget.release(permit, now, counts=counts)
        self._advance()

    def release_unused(self, permit: Permit) -> None:
        """Return a permit that was not used."""
        self._shares.forget(permit.holder)
        self.budget.release_unused(permit)
        self._advance()

    def recall(self, recall: Recall) -> bool:
        """Recall a request that has a permit, if it may be recalled now. Return whether it was."""
        return self._shares.recall_one(recall)

    @property
    def waiting(self) -> int:
        """How many requests of clients wait for a permit."""
        return len(self._waiting)

    def estimated_wait(self) -> float:
        """Return the estimated seconds that a request of another client would wait now."""
        return self.budget.expected_wait(len(self._waiting), self._clock.monotonic())

    def too_late(self, permit: Permit) -> bool:
        """Return whether an unused permit is too old to be used."""
        return self._clock.monotonic() - permit.taken_at > LATEST_START

    def join(self, ticket: Ticket, client: Peer) -> None:
        """Add a client that waits for this ticket."""
        turn = turn_of(client)
        if ticket.background:
            ticket.background = False
            ticket.turns = [turn]
            if ticket in self._background:
                self._background.remove(ticket)
                self._queue(ticket)
                self._advance()
        elif turn not in ticket.turns:
            # Keep the clients with the shortest queues.
            ticket.turns = [*sorted(ticket.turns, key=self._waiting.waiting)[: _MOST_TURNS - 1], turn]
            if ticket in self._waiting:
                self._waiting.add(ticket, turn, ticket.kind)

    def _permit_now(self, ticket: Ticket) -> Permit | None:
        """Return a permit if nothing waits and one is available. This is the common case, without queue and timer."""
        now = self._clock.monotonic()
        if self._waiting or self._background or ticket.kind in self._shares.full(self._share, (ticket.kind,), now):
            return None
        permit = self.budget.reserve(now, self._leases[ticket.slow], background=ticket.background)
        if not isinstance(permit, Permit):
            return None
        self._shares.lend(permit.holder, ticket.kind, now, ticket.recall)
        return permit

    def _expected_wait(self, ticket: Ticket) -> float:
        now = self._clock.monotonic()
        ahead = min(self._waiting.ahead_of_new(turn, ticket.kind) for turn in ticket.turns)
        full = self._full(self._waiting, now)
        if full and ticket.kind not in full:  # requests to endpoints that hold their share are not ahead of it
            ahead = min(ahead, sum(count for kind, count in self._waiting.kinds.items() if kind not in full))
        return self.budget.expected_wait(ahead, now)

    def _no_permit(self, ticket: Ticket, wait: float, *, timed_out: bool = False) -> NoPermit:
        now = self._clock.monotonic()
        moment = self._promises.make(ticket.turns[0], self.budget, wait, now)
        return NoPermit(max(1, math.ceil(moment - now)), timed_out=timed_out)

    def _queue(self, ticket: Ticket) -> None:
        for turn in ticket.turns:
            self._waiting.add(ticket, turn, ticket.kind)
        max_wait = min(self.max_wait, ticket.max_wait)
        ticket.deadline = asyncio.get_running_loop().call_later(max_wait, self._out_of_time, ticket)

    def _out_of_time(self, ticket: Ticket) -> None:
        self._advance()  # a permit may return at this very moment
        if ticket.turn is not None and not ticket.turn.done():
            self._waiting.remove(ticket)
            ticket.turn.set_result(self._no_permit(ticket, self._expected_wait(ticket), timed_out=True))

    def _withdraw(self, ticket: Ticket) -> None:
        for queue in (self._waiting, self._background):
            if ticket in queue:
                queue.remove(ticket)
        turn = ticket.turn
        if turn is not None and turn.done() and not turn.cancelled() and isinstance(permit := turn.result(), Permit):
            self.release_unused(permit)  # its turn came in the same moment in which it was cancelled

    def _full(self, queue: FairQueue[Ticket], now: float) -> frozenset[str]:
        """Return the endpoints whose requests in this queue get no permit now."""
        waiting = self._waiting.kinds if queue is self._waiting else (*self._waiting.kinds, *queue.kinds)
        return self._shares.full(self._share, waiting, now)

    @property
    def _share(self) -> int:
        return max(1, self.budget.concurrent // 2)

    def _advance(self) -> None:
        """Hand out the available permits, and set the alarm for the next one."""
        if self._alarm is not None:
            self._alarm.cancel()
            self._alarm = None
        now = self._clock.monotonic()
        look_again = math.inf
        while (found := self._next(now)) is not None:
            queue, ticket, skipped = found
            if ticket.turn is None or ticket.turn.done():  # cancelled, and its task has not run since
                queue.remove(ticket)
                continue
            permit = self.budget.reserve(now, self._leases[ticket.slow], background=ticket.background)
            if not isinstance(permit, Permit):
                look_again = now + permit
                if not ticket.background:
                    look_again = min(look_again, self._shares.recall(self._share, now))
                break
            queue.take(skipped)
            self._shares.lend(permit.holder, ticket.kind, now, ticket.recall)
            ticket.turn.set_result(permit)
        if look_again < math.inf:
            self._alarm = asyncio.get_running_loop().call_later(look_again - now, self._advance)

    def _next(self, now: float) -> tuple[FairQueue[Ticket], Ticket, frozenset[str]] | None:
        """Return the ticket whose turn it is, its queue, and the endpoints that were passed over."""
        for queue in (self._waiting, self._background):
            if queue:
                skipped = self._full(queue, now)
                ticket = queue.first(skipped)
                if ticket is not None:
                    return queue, ticket, skipped
        return None
