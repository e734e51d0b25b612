"""Asking IMDS until it answers or patience ends: wait for its return, take a permit, send, judge, learn, retry."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Mapping
from typing import Any

from imdsproxy.budget.bucket import Budget
from imdsproxy.budget.fair_semaphore import FairSemaphore
from imdsproxy.budget.limiter import Limiter, TurnedAway
from imdsproxy.clock import Clock
from imdsproxy.policy import Cache, Forward
from imdsproxy.protocol.cache_status import proxy_detail
from imdsproxy.protocol.failures import FailureRules, Verdict
from imdsproxy.protocol.messages import BudgetClass, Failure, FailureKind, Response
from imdsproxy.records import UpstreamAttempt
from imdsproxy.upstream.collapsing import CollapsedFetch
from imdsproxy.upstream.headers import dated, to_upstream
from imdsproxy.upstream.health import Change, Health
from imdsproxy.upstream.recalling import unless_recalled
from imdsproxy.upstream.retry import RetryRules, next_delay, retry_after
from imdsproxy.upstream.task import Fetched, FetchTask, Sender

logger = logging.getLogger(__name__)

_NEVER_REACHED_IMDS = frozenset({FailureKind.LOOP, FailureKind.DESCRIPTORS})

AnyFetch = CollapsedFetch[Any]
"""A fetch, whatever it results in."""

# Fewer tokens than these cannot be spared for a question and an approval at once.
_ENOUGH_FOR_A_PLACE_OF_ITS_OWN = 3
# Flights that wait for IMDS's return; they outlive their clients, and beyond these the 410 is passed on at once.
_MOST_AWAY_WAITING = 256
_LOOP_REMINDER = 60.0
# Seconds: two windows of IMDS's.
_AFTER_A_PROXY = 2.0
# Another imdsproxy keeps the budget, so all that is bounded is how many requests it gets from here at once; few, where
# no setting says that it is one.
_MOST_AT_A_PROXY = 256
_MOST_AT_A_STRANGER = 5
_RECALLED = "recalled"
_SILENT = Failure(
    FailureKind.TIMEOUT, "IMDS did not answer this request, and others waited for its permit; ask again later."
)


class Fetcher:
    """Sends errands to IMDS within the budget, and knows IMDS's health.

    `proxied` says whether another imdsproxy is taken to be asked until its answers tell; with None that cannot be.
    While it is so, no permit is spent here, since that one spends them. After `stale_after` seconds without a result
    clients are served what is stale within its bound; the fetch goes on behind it.
    """

    def __init__(  # noqa: PLR0913  # the parts it works with, all by name
        self,
        *,
        limiters: Mapping[BudgetClass, Limiter],
        upstream: Sender,
        failure_rules: FailureRules,
        retry_rules: RetryRules,
        clock: Clock,
        instance: str,
        proxied: bool | None = None,
        stale_after: float = math.inf,
        notify: Callable[[UpstreamAttempt], None] = lambda _asked: None,
    ) -> None:
        self.limiters = limiters
        self.health = Health()
        self.failure_rules = failure_rules
        self.retry_rules = retry_rules
        self._upstream = upstream
        self._clock = clock
        self._instance = instance
        self._may_be_proxied = proxied is not None
        self.proxied = bool(proxied)
        self._stale_after = stale_after
        most = _MOST_AT_A_PROXY if proxied else _MOST_AT_A_STRANGER
        self._unmetered = Limiter(Budget(most, 0.0), clock, limiters[BudgetClass.GENERAL].max_wait)
        self._notify = notify
        self.trouble: str | None = None
        """How IMDS failed last, in a sentence for people."""
        self._loop_told_at = -math.inf
        self._health_changed = asyncio.Event()
        # IMDS may take two minutes over a scheduled-events request, and a token is held for as long; half of the
        # tokens stay with the others (of a budget of one there is no half). An approval waits for no question: an
        # eviction leaves 30 seconds.
        requests = limiters[BudgetClass.GENERAL].budget.requests
        self._slow = FairSemaphore(max(1, requests // 2), clock)
        self._slow_once = FairSemaphore(1, clock) if requests >= _ENOUGH_FOR_A_PLACE_OF_ITS_OWN else self._slow
        self._away_waiting = 0

    def limiter(self, decision: Forward | Cache) -> Limiter:
        """Give the queue in which what was decided so has to wait."""
        return self._unmetered if self.proxied else self.limiters[decision.budget]

    async def fetch(self, task: FetchTask, flight: AnyFetch) -> Fetched | TurnedAway:
        """Ask IMDS until it answers or patience ends. Every attempt pays for its own permit."""
        silence = None
        if self._stale_after < math.inf:
            silence = asyncio.get_running_loop().call_later(self._stale_after, flight.stumble)
        try:
            return await self._ask(task, flight)
        finally:
            if silence is not None:
                silence.cancel()
            if self.health.leave(flight):
                self._wake()

    async def _ask(self, task: FetchTask, flight: AnyFetch) -> Fetched | TurnedAway:
        began = self._clock.monotonic()
        decision = task.decision
        fetched: Fetched | None = None
        attempt = 0
        while True:
            gone = await self._away(flight, began)  # before anything scarce is held
            if gone is not None:
                return Fetched(gone, began)
            few = decision.slow and not self.proxied
            tried = await (self._try_slow if few else self._try)(task, flight, fetched)
            if tried is None:
                continue  # IMDS went away while this one waited for its permit, or others waited for this one
            if isinstance(tried, TurnedAway):
                return tried if fetched is None else fetched
            fetched = tried
            attempt += 1
            if fetched.verdict.failed:
                flight.stumble()
            elapsed = self._clock.monotonic() - began
            known, proxied = self.health.answered, self.proxied
            delay = next_delay(
                fetched.verdict, attempt, elapsed, self.retry_rules, decision.budget, known=known, proxied=proxied
            )
            if delay is None or task.once or not flight.wanted:
                return fetched
            await asyncio.sleep(delay)

    async def _try_slow(self, task: FetchTask, flight: AnyFetch, before: Fetched | None) -> Fetched | TurnedAway | None:
        """Try as one of the few slow ones; the time to wait for that is bounded as the wait for a token is."""
        max_wait = self.limiters[task.decision.budget].max_wait
        places = self._slow_once if task.once else self._slow
        wanted_at = self._clock.monotonic()
        place = task.place(flight.ticket)
        if not await places.acquire(place, max_wait):
            return self._turn_away(task, wanted_at, TurnedAway(max(1, math.ceil(max_wait))))
        try:
            return await self._try(task, flight, before)
        finally:
            places.release(place)

    async def _try(self, task: FetchTask, flight: AnyFetch, before: Fetched | None) -> Fetched | TurnedAway | None:
        """Send once, when a permit is there; None if that has to be done again.

        It has if IMDS may not be asked any more by then, or if the request was recalled because others wait.
        """
        request, decision = task.request, task.decision
        limiter = self.limiter(decision)
        wanted_at = self._clock.monotonic()
        token = await limiter.acquire(flight.ticket)
        if isinstance(token, TurnedAway):
            return self._turn_away(task, wanted_at, token)
        if not self.health.may_ask(flight) or limiter.too_late(token):
            limiter.release_unused(token)
            return None
        headers = to_upstream(request, decision, self._instance, shared=task.shared, proxied=self.proxied)
        flight.sending = True
        verdict: Verdict | None = None
        answered = False
        try:
            slow = decision.slow or self.proxied
            sending = self._upstream.send(request.method, request.target.raw, headers, request.body, slow=slow)
            result = await unless_recalled(sending, flight.ticket.recall)
            if isinstance(result, Response):
                answered = True
                result = dated(result, self._clock.wall())
            if result is not None:
                verdict = self.failure_rules.judge(request, result)
                self._learn(flight, decision, verdict, token.taken_at)  # before the permit can go to the next
        finally:
            flight.sending = False
            if verdict is not None and _came_back(verdict):  # it never reached IMDS, so it costs nothing there
                limiter.release_unused(token)
            else:
                limiter.release(token, counts=answered and not decision.slow, answered=answered)
        self._notify(
            UpstreamAttempt(
                decision.endpoint,
                decision.budget,
                token.taken_at - wanted_at,
                _RECALLED if verdict is None else verdict.word,
                self._clock.monotonic() - token.taken_at,
                retried_after=None if before is None else before.verdict.word,
            )
        )
        if verdict is not None:
            return Fetched(verdict, token.taken_at)
        if flight.recalled or not flight.wanted:
            return Fetched(self.failure_rules.judge(request, _SILENT), token.taken_at)
        flight.recalled = True
        flight.stumble()
        return None

    def _turn_away(self, task: FetchTask, wanted_at: float, away: TurnedAway) -> TurnedAway:
        decision = task.decision
        self._notify(UpstreamAttempt(decision.endpoint, decision.budget, self._clock.monotonic() - wanted_at, None))
        return away

    async def _away(self, flight: AnyFetch, began: float) -> Verdict | None:
        """Wait while another fetch probes; return the 410 to pass on if IMDS does not come back in time."""
        while not self.health.may_ask(flight):
            flight.stumble()
            if self._away_waiting >= _MOST_AWAY_WAITING:
                return self.health.gone
            left = began + self.retry_rules.limit - self._clock.monotonic()
            self._away_waiting += 1
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self._health_changed.wait()
            except TimeoutError:
                return self.health.gone
            finally:
                self._away_waiting -= 1
        return None

    def _learn(self, flight: AnyFetch, decision: Forward | Cache, verdict: Verdict, taken_at: float) -> None:
        if _came_back(verdict):  # IMDS has not been heard, so this is no news of it
            self.trouble = verdict.description
            if verdict.word == FailureKind.LOOP.value:
                self._tell_of_loop(self.trouble)
            return
        now = self._clock.monotonic()
        result = verdict.result
        budget = self.limiters[decision.budget].budget
        by_proxy = isinstance(result, Response) and proxy_detail(result) is not None
        if isinstance(result, Response) and self._may_be_proxied:
            if self.proxied and not by_proxy:
                # What is under way without permits reaches IMDS as well, so the first of them have to wait.
                budget.throttled(taken_at, now, _AFTER_A_PROXY)
            self.proxied = by_proxy
        change = self.health.learn(flight, verdict, now)
        if self.health.failing:
            self.trouble = verdict.description
        if isinstance(result, Response) and result.status == 429 and not by_proxy:
            budget.throttled(taken_at, now, retry_after(result))
        if change is Change.FAILED:
            logger.warning(
                "IMDS fails; what is cached is served within its stale bound",
                extra={"fields": {"because": verdict.description}},
            )
        elif change is Change.RECOVERED:
            logger.info("IMDS answers again")
        if self.health.gone is None:
            self._wake()

    def _tell_of_loop(self, because: str) -> None:
        """Log it once a minute: clients may meet it many times a second."""
        now = self._clock.monotonic()
        if now - self._loop_told_at >= _LOOP_REMINDER:
            self._loop_told_at = now
            logger.error("the way to IMDS leads back to this proxy", extra={"fields": {"because": because}})

    def _wake(self) -> None:
        """Let the fetches that wait for IMDS's return look again."""
        self._health_changed.set()
        self._health_changed = asyncio.Event()


def _came_back(verdict: Verdict) -> bool:
    return isinstance(verdict.result, Failure) and verdict.result.kind in _NEVER_REACHED_IMDS
