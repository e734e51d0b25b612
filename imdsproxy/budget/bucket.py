"""The permit bucket: never more than `requests` arrivals at IMDS in any `window` seconds.

A permit returns one whole window after its response arrived, not after it was taken. The proof: let one permit serve
two successive requests, which reach IMDS at a₁ and a₂. The response to the first arrives here at r₁ ≥ a₁, the permit
returns at r₁ + window, and the second request is sent no earlier, so a₂ ≥ r₁ + window ≥ a₁ + window. One permit
therefore accounts for at most one arrival in any window, and there are `requests` permits. The delays of the network do
not matter. (A plain bucket of five that refills at five a second lets ten through in one second.) The price is the
latency: the best possible rate is requests ÷ (window + latency).

A permit is lent for a lease. In one process the lease has no end, because every permit is released. If several
processes share the permits, one of them may be killed, and then the end of the lease replaces the response. The lease
is longer than any request, so a₁ is before its end, and the proof holds.

A 429 from IMDS means that other programs on the VM send requests too. `Retry-After` is obeyed. Without one, the rate is
halved, and recovers slowly and additively (as TCP does with its window: RFC 5681 section 3.1). At a lower rate a permit
rests for window ÷ rate, with the rate of the moment at which it returns. A permit that was released at the lowest rate
therefore returns earlier as the rate recovers. No rate is above 1, so no rest is shorter than a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

from imdsproxy.budget.bucket_state import NO_LOAN, State

LOWEST_RATE = 1 / 32
_WON_BACK = 0.05
"""The share of the full rate that is recovered in each window without a 429."""
# The weight of the newest request in the running mean of how long a permit is held.
_NEWEST = 0.2
# Seconds after which a loan probably ends with its lease only: its holder was killed, or is very slow.
_OVERDUE = 5.0
# The head start in seconds that other processes get for a shared permit that has returned. All processes wake at that
# moment, so a few milliseconds make an order: those that took none lately, those that did, then background refreshes.
_TOOK_ONE_JUST_NOW = 0.02
_BACKGROUND = 0.05


@dataclass(frozen=True, slots=True)
class Permit:
    """A permit that is lent."""

    taken_at: float
    holder: int
    """The number of the loan, which is unique."""


class Budget:
    """Permits, and when each returns. All times are monotonic seconds, passed by the caller."""

    def __init__(
        self, requests: int, window: float, concurrent: int | None = None, loans: Iterator[int] | None = None
    ) -> None:
        """Make a budget whose permits are all available.

        Args:
            requests: The number of permits.
            window: The window in seconds.
            concurrent: How many may be lent at once; None for all.
            loans: The numbers of loans, if other processes use the same state; None for a budget that is not shared.
        """
        self.state = State(requests, window)
        self._concurrent = concurrent
        self._loans = loans or count(1)
        self._shared = loans is not None
        self._took_one_at = -math.inf

    @property
    def requests(self) -> int:
        """The number of permits."""
        return self.state.requests

    @property
    def concurrent(self) -> int:
        """How many of them may be lent at once."""
        return min(self.requests, self._concurrent or self.requests)

    def reserve(self, now: float, lease: float = math.inf, *, background: bool = False) -> Permit | float:
        """Return a permit, or the seconds until another call can succeed.

        Infinity means that no permit returns before a `release`. Other processes get a head start for a shared permit;
        the queue of this process decides about its own clients.

        Args:
            now: The current time.
            lease: Seconds for which the permit is lent.
            background: Whether no client waits for the request.
        """
        state = self.state
        earliest = min(state.rests_from)
        wait = max(self._back_at(earliest), state.blocked_until) + self._behind(now, background=background) - now
        if self.concurrent < self.requests and self._in_flight(now) >= self.concurrent:
            wait = math.inf
        if wait > 0:
            return wait
        place = state.rests_from.index(earliest)
        permit = Permit(now, next(self._loans))
        state.rests_from[place] = now + lease
        state.holders[place] = permit.holder
        state.lent_at[place] = now
        self._took_one_at = now
        return permit

    def release(self, permit: Permit, now: float, *, counts: bool = True) -> None:
        """Release a permit whose request was answered or has failed. It rests for one window.

        If its lease has ended, it may have another holder, and then nothing is released.

        Args:
            permit: The permit.
            now: The current time.
            counts: Whether the time it was held is typical for other requests.
        """
        if counts:
            self.state.held += _NEWEST * (now - permit.taken_at - self.state.held)
        self._free(permit, now)

    def release_unused(self, permit: Permit) -> None:
        """Release a permit that was not used. Nothing was sent, so it does not rest."""
        self._free(permit, -math.inf)

    def throttled(self, taken_at: float, now: float, retry_after: float | None) -> None:
        """Slow down after a 429 from IMDS. Several 429s to concurrent requests halve the rate once.

        Args:
            taken_at: When the permit of the refused request was taken.
            now: The current time.
            retry_after: The seconds of `Retry-After`, or None.
        """
        state = self.state
        if retry_after is not None:
            state.blocked_until = max(state.blocked_until, now + retry_after)
            return
        if taken_at < state.rate_at:
            return
        state.rate = max(LOWEST_RATE, self.rate(now) / 2)
        state.rate_at = now
        state.blocked_until = max(state.blocked_until, now + state.window)

    def rate(self, now: float) -> float:
        """Return the share of the full rate that is used now: above 0, at most 1."""
        state = self.state
        if state.rate >= 1.0:
            return 1.0
        return min(1.0, state.rate + _WON_BACK * (now - state.rate_at) / state.window)

    def available(self, now: float) -> int:
        """Return how many permits are available."""
        if now < self.state.blocked_until:
            return 0
        back = sum(1 for rests_from in self.state.rests_from if self._back_at(rests_from) <= now)
        return max(0, min(back, self.concurrent - self._in_flight(now)))

    def expected_wait(self, ahead: int, now: float) -> float:
        """Return the estimated seconds until a request with `ahead` others before it gets its permit.

        Each permit returns once in a window plus the time that a request holds it. Requests in flight are assumed to
        have just been sent, which makes the estimate too long by less than one request's latency. An overdue loan is
        assumed to last until its lease ends.
        """
        state = self.state
        if ahead == 0 and max(self._back_at(min(state.rests_from)), state.blocked_until) <= now:
            return 0.0  # the common case, without the sorting below
        rest = state.window / self.rate(now)
        sent_just_now = now + state.held + rest
        moments = (
            sent_just_now
            if rests_from > now and (math.isinf(rests_from) or now - lent_at < _OVERDUE)
            else self._back_at(rests_from)
            for rests_from, lent_at in zip(state.rests_from, state.lent_at, strict=True)
        )
        back_at = sorted(max(moment, state.blocked_until, now) for moment in moments)
        rounds, place = divmod(ahead, self.requests)
        return back_at[place] + rounds * (rest + state.held) - now

    def _free(self, permit: Permit, rests_from: float) -> None:
        state = self.state
        if permit.holder in state.holders:
            place = state.holders.index(permit.holder)
            state.holders[place] = NO_LOAN
            state.rests_from[place] = rests_from

    def _behind(self, now: float, *, background: bool) -> float:
        """Return the head start, in seconds, that other processes get."""
        if not self._shared:
            return 0.0
        if background:
            return _BACKGROUND
        windows = (now - self._took_one_at) / self.state.window
        return _TOOK_ONE_JUST_NOW / max(1.0, windows)

    def _in_flight(self, now: float) -> int:
        return sum(1 for rests_from in self.state.rests_from if rests_from > now)

    def _back_at(self, rests_from: float) -> float:
        """Return when a permit that rests from that moment on is available, unless another 429 comes.

        The later a permit begins to rest, the later it returns, so the first to rest is the first to return.
        """
        state = self.state
        rested = rests_from + state.window
        if state.rate >= 1.0 or math.isinf(rests_from):
            return rested
        # x seconds after the last 429 its rest is over: (since + x) · (rate + won·x) = window.
        won = _WON_BACK / state.window
        since = state.rate_at - rests_from
        slope = state.rate + won * since
        x = (math.sqrt(slope * slope + 4 * won * (state.window - since * state.rate)) - slope) / (2 * won)
        return max(rested, state.rate_at + x)
