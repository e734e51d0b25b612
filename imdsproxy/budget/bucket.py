"""The token bucket: never more than `requests` arrivals at IMDS in any `window` seconds.

A token comes back one whole window after its response arrived, not after it was taken. The proof: let one
token serve two requests after another, which reach IMDS at a₁ and a₂. The response to the first arrives here
at r₁ ≥ a₁, the token is back at r₁ + window, and the second request is sent no earlier, so
a₂ ≥ r₁ + window ≥ a₁ + window. Any one token thus accounts for at most one arrival in any window, and there
are `requests` tokens. Nothing that the network does in between enters into it. (A plain bucket of five that
refills at five a second lets ten through in one second.) The price is the latency: the best possible rate is
requests ÷ (window + latency).

A token is lent for a lease at the most. In one process that is without end, since whoever takes one gives it back.
Where several processes share the tokens, one of them may be killed, and then the lease takes the place of the response:
it is longer than any request lasts, so a₁ lies before its end, and the proof stands.

A 429 from IMDS means that others on the VM spend too. `Retry-After` is obeyed; without one the rate is halved
and won back slowly, additively (as TCP does with its window: RFC 5681 section 3.1). At a lower rate a token rests
for window ÷ rate, at the rate of the moment at which it comes back: what was released while the rate was lowest
does not rest on when it is won back. Since no rate is above 1, no rest is shorter than a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import count

LOWEST_RATE = 1 / 32
NOBODY = 0
"""Holds the tokens that are not lent."""

_WON_BACK = 0.05
"""The share of the full rate that is won back per window without a 429."""
# How much the newest request counts in the running mean of how long a token is held.
_NEWEST = 0.2
# Seconds from which on a loan is taken for one that only its lease will end: its holder was killed, or is very slow.
_OVERDUE = 5.0
# Where tokens are shared: for how many seconds after one has come back others may take it first. They all wake up in
# that moment, so a few milliseconds make an order: who took none lately, then who did, then background refreshes.
_TOOK_ONE_JUST_NOW = 0.02
_NOBODY_WAITS = 0.05


@dataclass(frozen=True, slots=True)
class Permit:
    """A token that is lent."""

    taken_at: float
    holder: int
    """Which loan it is; no two have the same number."""


@dataclass(slots=True)
class State:
    """All that a budget knows. Times are monotonic seconds."""

    requests: int
    window: float
    rests_from: list[float] = field(default_factory=list)
    """Of each token: when it was given back, or, while it is lent, when its lease ends."""
    holders: list[int] = field(default_factory=list)
    """Of each token: which loan it is, or NOBODY."""
    lent_at: list[float] = field(default_factory=list)
    """Of each token: when it was lent last."""
    held: float = 0.0
    """Running mean of how long a request held its token."""
    blocked_until: float = -math.inf
    rate: float = 1.0
    """The share of the full rate at the time of the last 429 ..."""
    rate_at: float = -math.inf
    """... and that time."""

    def __post_init__(self) -> None:
        if not self.rests_from:
            self.rests_from = [-math.inf] * self.requests
            self.holders = [NOBODY] * self.requests
            self.lent_at = [-math.inf] * self.requests


def resized(state: State, requests: int, window: float, now: float) -> State:
    """Give the state with another size: of too many tokens those that come back first go, new ones rest from now."""
    kept = sorted(zip(state.rests_from, state.holders, state.lent_at, strict=True), reverse=True)[:requests]
    kept += [(now, NOBODY, -math.inf)] * (requests - len(kept))
    return replace(
        state,
        requests=requests,
        window=window,
        rests_from=[rests_from for rests_from, _, _ in kept],
        holders=[holder for _, holder, _ in kept],
        lent_at=[lent_at for _, _, lent_at in kept],
    )


class Budget:
    """Tokens, and when each comes back. All times are monotonic seconds, given by the caller.

    `concurrent` bounds how many may be in flight at once, where that is fewer than `requests`. `loans` are numbers for
    them, given where others draw on the same state.
    """

    def __init__(
        self, requests: int, window: float, concurrent: int | None = None, loans: Iterator[int] | None = None
    ) -> None:
        self.state = State(requests, window)
        self._concurrent = concurrent
        self._loans = loans or count(1)
        self._shared = loans is not None
        self._took_one_at = -math.inf

    @property
    def requests(self) -> int:
        """How many tokens there are."""
        return self.state.requests

    @property
    def concurrent(self) -> int:
        """How many of them may be lent at once."""
        return min(self.requests, self._concurrent or self.requests)

    def reserve(self, now: float, lease: float = math.inf, *, background: bool = False) -> Permit | float:
        """Take a token, lent for `lease` seconds at most; or give the seconds until asking again can succeed.

        Infinity means that only `release` can bring a token back. A token that others share is left to them for a
        moment first; the queue of one's own process sees to its own.
        """
        state = self.state
        earliest = min(state.rests_from)
        wait = max(self._back_at(earliest), state.blocked_until) + self._behind(now, background=background) - now
        if self.concurrent < self.requests and self._in_flight(now) >= self.concurrent:
            wait = math.inf
        if wait > 0:
            return wait
        place = state.rests_from.index(earliest)
        token = Permit(now, next(self._loans))
        state.rests_from[place] = now + lease
        state.holders[place] = token.holder
        state.lent_at[place] = now
        self._took_one_at = now
        return token

    def release(self, token: Permit, now: float, *, counts: bool = True) -> None:
        """Give back a token whose request has been answered, or has failed: it rests for one window.

        `counts` is false where the time it was held says nothing about others. One whose lease has ended may have
        another holder; then there is nothing to give back.
        """
        if counts:
            self.state.held += _NEWEST * (now - token.taken_at - self.state.held)
        self._give_back(token, now)

    def release_unused(self, token: Permit) -> None:
        """Give back a token that was taken and not used: nothing was sent, so nothing has to rest."""
        self._give_back(token, -math.inf)

    def throttled(self, taken_at: float, now: float, retry_after: float | None) -> None:
        """Learn that IMDS answered 429 to the request whose token was taken at `taken_at`.

        Several 429s to requests that were under way together halve the rate once.
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
        """How many tokens could be taken at this moment."""
        if now < self.state.blocked_until:
            return 0
        back = sum(1 for rests_from in self.state.rests_from if self._back_at(rests_from) <= now)
        return max(0, min(back, self.concurrent - self._in_flight(now)))

    def expected_wait(self, ahead: int, now: float) -> float:
        """Estimate the seconds until a request with `ahead` others before it gets its token.

        Each token comes round once in a window plus the time a request holds it; those in flight are taken to
        have just been sent, which errs on the long side by less than one request's latency. A loan that is overdue is
        taken to last as long as its lease.
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

    def _give_back(self, token: Permit, rests_from: float) -> None:
        state = self.state
        if token.holder in state.holders:
            place = state.holders.index(token.holder)
            state.holders[place] = NOBODY
            state.rests_from[place] = rests_from

    def _behind(self, now: float, *, background: bool) -> float:
        """Give the seconds for which others may take a token that has come back first."""
        if not self._shared:
            return 0.0
        if background:
            return _NOBODY_WAITS
        windows = (now - self._took_one_at) / self.state.window
        return _TOOK_ONE_JUST_NOW / max(1.0, windows)

    def _in_flight(self, now: float) -> int:
        return sum(1 for rests_from in self.state.rests_from if rests_from > now)

    def _back_at(self, rests_from: float) -> float:
        """Give the moment at which a token that rests from then on may be taken, if no other 429 comes.

        The later a token begins to rest, the later it is back, so the one that began first is the first back.
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
