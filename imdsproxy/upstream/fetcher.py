"""Fetch from IMDS: wait for the probe, take a permit, send, judge, learn, retry."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from typing import Any

from imdsproxy.budget.limiter import Limiter, NoPermit
from imdsproxy.clock import Clock
from imdsproxy.policy.decisions import Cache, Forward
from imdsproxy.protocol.cache_status import proxy_detail
from imdsproxy.protocol.failures import FailureRules, Verdict
from imdsproxy.protocol.messages import BudgetClass, Failure, FailureKind, Response
from imdsproxy.records import AttemptObserver, UpstreamAttempt
from imdsproxy.upstream.chain import Chain
from imdsproxy.upstream.collapsing import CollapsedFetch
from imdsproxy.upstream.headers import dated, to_upstream
from imdsproxy.upstream.health import Health
from imdsproxy.upstream.probe_wait import ProbeWait
from imdsproxy.upstream.recalling import unless_recalled
from imdsproxy.upstream.retry import RetryRules, next_delay, retry_after
from imdsproxy.upstream.slow_places import SlowPlaces
from imdsproxy.upstream.task import Fetched, FetchTask, Sender

_NEVER_REACHED_IMDS = frozenset({FailureKind.LOOP, FailureKind.DESCRIPTORS})

AnyFetch = CollapsedFetch[Any]
"""A fetch with a result of any type."""

# Seconds for which no permit is spent after another imdsproxy has gone: two windows of IMDS's.
_AFTER_A_PROXY = 2.0
_RECALLED = "recalled"
_SILENT = Failure(
    FailureKind.TIMEOUT, "IMDS did not answer this request, and others waited for its permit; ask again later."
)


class Fetcher:
    """Sends requests to IMDS within the budget, and tracks IMDS's health."""

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
        observers: Sequence[AttemptObserver] = (),
    ) -> None:
        """Join the parts.

        Args:
            limiters: The limiter of each class of requests.
            upstream: Sends single requests.
            failure_rules: What counts as a failure of IMDS.
            retry_rules: The user's settings for retries.
            clock: The clock.
            instance: The name of this proxy, by which it recognises its own requests.
            proxied: Whether the upstream is assumed to be another imdsproxy until an answer shows it; None if it can
                never be one. Another imdsproxy spends the permits, so none is spent here.
            stale_after: Seconds without a result after which clients get a stale answer; the fetch continues.
            observers: Called in their order with the record of each attempt.
        """
        self.limiters = limiters
        self.health = Health()
        self.failure_rules = failure_rules
        self.retry_rules = retry_rules
        self._upstream = upstream
        self._clock = clock
        self._instance = instance
        self.chain = Chain(proxied, clock, limiters[BudgetClass.GENERAL].max_wait)
        self._stale_after = stale_after
        self._observers = tuple(observers)
        self.trouble: str | None = None
        """The last failure of IMDS, in a sentence for people; None if there was none."""
        self._probe_wait = ProbeWait(self.health, clock, retry_rules.limit)
        self._slow_places = SlowPlaces(limiters[BudgetClass.GENERAL], clock)

    def limiter(self, decision: Forward | Cache) -> Limiter:
        """Return the queue in which a request with this decision waits."""
        return self.chain.limiter if self.chain.proxied else self.limiters[decision.budget]

    async def fetch(self, task: FetchTask, fetch: AnyFetch) -> Fetched | NoPermit:
        """Send the request until IMDS answers, or the time for retries is over. Each attempt takes a permit."""
        silence = None
        if self._stale_after < math.inf:
            silence = asyncio.get_running_loop().call_later(self._stale_after, fetch.note_failure)
        try:
            return await self._ask(task, fetch)
        finally:
            if silence is not None:
                silence.cancel()
            if self.health.leave(fetch):
                self._probe_wait.wake()

    async def _ask(self, task: FetchTask, fetch: AnyFetch) -> Fetched | NoPermit:
        began = self._clock.monotonic()
        decision = task.decision
        fetched: Fetched | None = None
        attempt = 0
        while True:
            gone = await self._probe_wait.wait(fetch, began)  # before it holds a permit
            if gone is not None:
                return Fetched(gone, began)
            few = decision.slow and not self.chain.proxied
            tried = await (self._try_slow if few else self._try)(task, fetch, fetched)
            if tried is None:
                continue  # IMDS answered 410 while this waited for its permit, or the request was recalled
            if isinstance(tried, NoPermit):
                return tried if fetched is None else fetched
            fetched = tried
            attempt += 1
            if fetched.verdict.failed:
                fetch.note_failure()
            elapsed = self._clock.monotonic() - began
            known, proxied = self.health.answered, self.chain.proxied
            delay = next_delay(
                fetched.verdict, attempt, elapsed, self.retry_rules, decision.budget, known=known, proxied=proxied
            )
            if delay is None or task.once or not fetch.wanted:
                return fetched
            await asyncio.sleep(delay)

    async def _try_slow(self, task: FetchTask, fetch: AnyFetch, before: Fetched | None) -> Fetched | NoPermit | None:
        """Send as one of the few slow requests. The wait for that place is bounded like the wait for a permit."""
        max_wait = self.limiters[task.decision.budget].max_wait
        places = self._slow_places.of(task)
        wanted_at = self._clock.monotonic()
        place = task.place(fetch.ticket)
        if not await places.acquire(place, max_wait):
            return self._report_no_permit(task, fetch, wanted_at, NoPermit(max(1, math.ceil(max_wait))))
        try:
            return await self._try(task, fetch, before)
        finally:
            places.release(place)

    async def _try(self, task: FetchTask, fetch: AnyFetch, before: Fetched | None) -> Fetched | NoPermit | None:
        """Send once, with a permit. Return None if the attempt must be repeated.

        It must if IMDS answers 410 by then, or if the request was recalled because others wait.
        """
        request, decision = task.request, task.decision
        limiter = self.limiter(decision)
        wanted_at = self._clock.monotonic()
        permit = await limiter.acquire(fetch.ticket)
        if isinstance(permit, NoPermit):
            return self._report_no_permit(task, fetch, wanted_at, permit)
        fetch.waited += permit.taken_at - wanted_at
        if not self.health.may_ask(fetch) or limiter.too_late(permit):
            limiter.release_unused(permit)
            return None
        headers = to_upstream(request, decision, self._instance, shared=task.shared, proxied=self.chain.proxied)
        fetch.sending = True
        verdict: Verdict | None = None
        answered = False
        try:
            slow = decision.slow or self.chain.proxied
            sending = self._upstream.send(request.method, request.target.raw, headers, request.body, slow=slow)
            result = await unless_recalled(sending, fetch.ticket.recall)
            if isinstance(result, Response):
                answered = True
                result = dated(result, self._clock.wall())
            if result is not None:
                verdict = self.failure_rules.judge(request, result)
                self._learn(fetch, decision, verdict, permit.taken_at)  # before the permit can go to the next
        finally:
            fetch.sending = False
            if verdict is not None and _came_back(verdict):  # it never reached IMDS, so it needs no permit
                limiter.release_unused(permit)
            else:
                limiter.release(permit, counts=answered and not decision.slow, answered=answered)
        fetch.latest = _RECALLED if verdict is None else verdict.word
        self._report(
            UpstreamAttempt(
                decision.endpoint,
                decision.budget,
                permit.taken_at - wanted_at,
                fetch.latest,
                self._clock.monotonic() - permit.taken_at,
                retried_after=None if before is None else before.verdict.word,
                client=task.client,
                target=request.target,
                failure=verdict.description if verdict is not None and verdict.failed else None,
                fetch=fetch.number,
                response=result if isinstance(result, Response) else None,
            )
        )
        if verdict is not None:
            return Fetched(verdict, permit.taken_at)
        if fetch.recalled or not fetch.wanted:
            return Fetched(self.failure_rules.judge(request, _SILENT), permit.taken_at)
        fetch.recalled = True
        fetch.note_failure()
        return None

    def _report_no_permit(self, task: FetchTask, fetch: AnyFetch, wanted_at: float, refusal: NoPermit) -> NoPermit:
        decision = task.decision
        waited = self._clock.monotonic() - wanted_at
        fetch.waited += waited
        self._report(
            UpstreamAttempt(
                decision.endpoint, decision.budget, waited, None, client=task.client, target=task.request.target
            )
        )
        return refusal

    def _report(self, attempt: UpstreamAttempt) -> None:
        for observe in self._observers:
            observe(attempt)

    def _learn(self, fetch: AnyFetch, decision: Forward | Cache, verdict: Verdict, taken_at: float) -> None:
        if _came_back(verdict):  # this says nothing about IMDS
            self.trouble = verdict.description
            if verdict.word == FailureKind.LOOP.value:
                self.chain.log_loop(self.trouble)
            return
        now = self._clock.monotonic()
        result = verdict.result
        budget = self.limiters[decision.budget].budget
        by_proxy = isinstance(result, Response) and proxy_detail(result) is not None
        if isinstance(result, Response) and self.chain.learn(by_proxy=by_proxy):
            # Requests under way without permits reach IMDS as well, so the first requests with permits wait.
            budget.throttled(taken_at, now, _AFTER_A_PROXY)
        self.health.learn(fetch, verdict, now)
        if self.health.failing:
            self.trouble = verdict.description
        if isinstance(result, Response) and result.status == 429 and not by_proxy:
            budget.throttled(taken_at, now, retry_after(result))
        if self.health.gone is None:
            self._probe_wait.wake()


def _came_back(verdict: Verdict) -> bool:
    return isinstance(verdict.result, Failure) and verdict.result.kind in _NEVER_REACHED_IMDS
