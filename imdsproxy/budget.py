"""The token bucket: never more than `requests` arrivals at IMDS in any `window` seconds.

A token comes back one whole window after its response arrived, not after it was taken. The proof: let one
token serve two requests after another, which reach IMDS at a₁ and a₂. The response to the first arrives here
at r₁ ≥ a₁, the token is back at r₁ + window, and the second request is sent no earlier, so
a₂ ≥ r₁ + window ≥ a₁ + window. Any one token thus accounts for at most one arrival in any window, and there
are `requests` tokens. Nothing that the network does in between enters into it. (A plain bucket of five that
refills at five a second lets ten through in one second.) The price is the latency: the best possible rate is
requests ÷ (window + latency).

A 429 from IMDS means that others on the VM spend too. `Retry-After` is obeyed; without one the rate is halved
and won back slowly, additively (as TCP does with its window: RFC 5681 section 3.1). At a lower rate a token rests
for window ÷ rate, at the rate of the moment at which it comes back: what was released while the rate was lowest
does not rest on when it is won back. Since no rate is above 1, no rest is shorter than a window.
"""

from __future__ import annotations

import heapq
import math

_WON_BACK = 0.05
"""The share of the full rate that is won back per window without a 429."""
_LOWEST_RATE = 1 / 32
# How much the newest request counts in the running mean of how long a token is held.
_NEWEST = 0.2


class Budget:
    """Tokens, and when each comes back. All times are monotonic seconds, given by the caller.

    `concurrent` bounds how many may be in flight at once, where that is fewer than `requests`.
    """

    def __init__(self, requests: int, window: float, concurrent: int | None = None) -> None:
        self.requests = requests
        self.window = window
        self.concurrent = min(requests, concurrent or requests)
        self._released = [-math.inf] * requests  # a heap: when each token that is not in flight was given back
        self._in_flight = 0
        self._held = 0.0  # running mean of how long a request held its token
        self._blocked_until = -math.inf
        self._rate = 1.0  # the share of the full rate at the time of the last 429
        self._rate_at = -math.inf

    def reserve(self, now: float) -> float:
        """Take a token: 0.0 means it was taken; otherwise the seconds until asking again can succeed.

        Infinity means that only `release` can bring a token back.
        """
        if self._in_flight >= self.concurrent:
            return math.inf
        wait = max(self._back_at(self._released[0]), self._blocked_until) - now
        if wait > 0:
            return wait
        heapq.heappop(self._released)
        self._in_flight += 1
        return 0.0

    def release(self, taken_at: float, now: float, *, counts: bool = True) -> None:
        """Give back a token whose request has been answered, or has failed: it rests for one window.

        `counts` is false where the time it was held says nothing about others.
        """
        self._in_flight -= 1
        if counts:
            self._held += _NEWEST * (now - taken_at - self._held)
        heapq.heappush(self._released, now)

    def forgo(self) -> None:
        """Give back a token that was taken and not used: nothing was sent, so nothing has to rest."""
        self._in_flight -= 1
        heapq.heappush(self._released, -math.inf)

    def throttled(self, taken_at: float, now: float, retry_after: float | None) -> None:
        """Learn that IMDS answered 429 to the request whose token was taken at `taken_at`.

        Several 429s to requests that were under way together halve the rate once.
        """
        if retry_after is not None:
            self._blocked_until = max(self._blocked_until, now + retry_after)
            return
        if taken_at < self._rate_at:
            return
        self._rate = max(_LOWEST_RATE, self.rate(now) / 2)
        self._rate_at = now
        self._blocked_until = max(self._blocked_until, now + self.window)

    def rate(self, now: float) -> float:
        """The share of the full rate that is used at this moment, above 0, at most 1."""
        return min(1.0, self._rate + _WON_BACK * (now - self._rate_at) / self.window)

    def available(self, now: float) -> int:
        """How many tokens could be taken at this moment."""
        if now < self._blocked_until:
            return 0
        back = sum(1 for released in self._released if self._back_at(released) <= now)
        return min(back, self.concurrent - self._in_flight)

    def expected_wait(self, ahead: int, now: float) -> float:
        """Estimate the seconds until a request with `ahead` others before it gets its token.

        Each token comes round once in a window plus the time a request holds it; those in flight are taken to
        have just been sent, which errs on the long side by less than one request's latency.
        """
        if ahead == 0 and self._released and max(self._back_at(self._released[0]), self._blocked_until) <= now:
            return 0.0  # the common case, without the sorting below
        rest = self.window / self.rate(now)
        in_flight = [now + self._held + rest] * self._in_flight
        resting = map(self._back_at, self._released)
        back_at = sorted(max(moment, self._blocked_until, now) for moment in [*resting, *in_flight])
        rounds, place = divmod(ahead, self.requests)
        return back_at[place] + rounds * (rest + self._held) - now

    def _back_at(self, released: float) -> float:
        """Give the moment at which a token that was given back then may be taken, if no other 429 comes.

        The later a token was given back, the later it is back, so the heap's first is the first back.
        """
        rested = released + self.window
        if self._rate >= 1.0 or released == -math.inf:
            return rested
        # x seconds after the last 429 its rest is over: (since + x) · (rate + won·x) = window.
        won = _WON_BACK / self.window
        since = self._rate_at - released
        slope = self._rate + won * since
        x = (math.sqrt(slope * slope + 4 * won * (self.window - since * self._rate)) - slope) / (2 * won)
        return max(rested, self._rate_at + x)
