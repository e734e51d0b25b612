"""The steps of a request in their order, as the plan table of `freshness` gives them.

    Request → Policy → lookup → Plan → Flight → (wait for return → token → IMDS → retry?)* → keep → Served

Whatever can be decided is decided in `answer`, in one synchronous step; what has to be waited for comes back
as a coroutine. `fetch` performs what stands in brackets.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any

from cachetools import TTLCache

from imdsproxy.budget.limiter import TurnedAway
from imdsproxy.cache.derived_entries import DerivedEntries
from imdsproxy.cache.freshness import Entry, Freshness, Plan, as_told, keep, lookup, plan
from imdsproxy.cache.rendered_hit import RenderedHit, from_cache, write
from imdsproxy.cache.store import Store
from imdsproxy.clock import Clock
from imdsproxy.policy import Cache, Decision, Forward, Policy, Refuse
from imdsproxy.protocol.messages import Failure, Key, Refusal, Request, Response
from imdsproxy.protocol.target import read_target, without_bypass
from imdsproxy.records import Outcome, RequestRecord, refused
from imdsproxy.upstream.collapsing import CollapsedFetch, CollapsedFetches
from imdsproxy.upstream.fetcher import Fetcher
from imdsproxy.upstream.task import FetchTask

_BYPASS_EVERY = 10.0
"""Seconds in which one key is renewed by a client's wish at most once."""
_REFRESH_PAUSE = 5.0
"""Seconds for which a key rests after its renewal brought nothing: serving it stale meanwhile asks no more of IMDS."""

Waiting = Coroutine[Any, Any, RequestRecord]


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """IMDS answered; `entry` is set if the answer was kept."""

    response: Response
    entry: Entry | None


FetchResult = StoredAnswer | TurnedAway
"""What a fetch ends with, beside a Failure."""


class Proxy:
    """One IMDS, one cache, one budget a class; as many clients as there are."""

    def __init__(  # noqa: PLR0913  # the parts it works with, all by name
        self,
        *,
        policy: Policy,
        store: Store,
        fetcher: Fetcher,
        clock: Clock,
        derives: bool = False,
        max_keys: int = 4096,
    ) -> None:
        """Join the parts. `max_keys` is how many keys each table of keys may hold."""
        self.policy = policy
        self.store = store
        self.fetcher = fetcher
        self.flights = CollapsedFetches[FetchResult]()
        self._clock = clock
        self._parts = DerivedEntries(store, clock, max_keys) if derives else None
        # Keys may be long, so their hashes are remembered; one taken for another would only ask IMDS later.
        self._bypassed: TTLCache[int, None] = TTLCache(max_keys, _BYPASS_EVERY, clock.monotonic)
        # The value says whether IMDS failed, or answered what is not kept (403, a token about to expire).
        self._resting: TTLCache[int, bool] = TTLCache(max_keys, _REFRESH_PAUSE, clock.monotonic)

    def answer(self, request: Request, client: str = "") -> RequestRecord | Waiting:
        """Answer at once, or give a coroutine to wait for; cancelling it ends the waiting, not the flight.

        Where requests have to wait, clients take turns; whose request it is, `client` says.
        """
        return self.perform(request, self.policy.decide(request), client)

    def perform(self, request: Request, decision: Decision, client: str = "") -> RequestRecord | Waiting:
        """Do what was decided about a request."""
        if isinstance(decision, Refuse):
            return refused(decision.refusal)
        task = FetchTask(request, decision, client)
        if isinstance(decision, Forward):
            return self._alone(task)
        wish = self._wish(request)
        if wish:
            return self._when_landed(task, self._flight(task, wish), wish)
        if request.target.bypass:  # granted a moment ago, so that now it is a question like any other
            task = FetchTask(request._replace(target=without_bypass(request.target)), decision, client)
        now = self._clock.monotonic()
        hit = self.hit(request.target.key, decision.endpoint, now)
        if hit is not None:
            return hit.served  # most requests; IMDS's health is nothing to them
        return self._not_fresh(task, decision, self.store.get(request.target.key), now)

    def at_once(self, request: Request, now: float) -> RenderedHit | None:
        """Give the hit that `answer` would give, where it would give one for want of any other wish of the client's."""
        if request.method != "GET" or request.no_cache or request.target.bypass:
            return None
        decision = self.policy.decide(request)
        return self.hit(request.target.key, decision.endpoint, now) if isinstance(decision, Cache) else None

    def hit(self, key: Key, endpoint: str, now: float) -> RenderedHit | None:
        """Give the hit of a key; None where nothing fresh is kept.

        It is written once a second, and that counts as the use of the entry.
        """
        kept = self.store.look(key)
        if kept is not None and kept.hit is not None and now < kept.hit.until:
            return kept.hit
        kept = self.store.find(key)
        entry = None if kept is None else kept.entry
        if kept is None or entry is None or lookup(entry, now) is not Freshness.FRESH:
            return None
        kept.hit = write(entry, endpoint, now, kept.hit)
        return kept.hit

    def _not_fresh(self, task: FetchTask, decision: Cache, entry: Entry | None, now: float) -> RequestRecord | Waiting:
        """Do what the plan table says about a request whose own entry is stale, or not there."""
        renewal = task
        if self._parts is not None:
            # With DERIVE it is looked for in the wholes that it is a part of; one renewal of a whole is the renewal of
            # all parts that were cut out of it.
            entry, whole = self._parts.find(task.request.target, entry, decision.lifetimes, now)
            renewal = task if whole is None else self._errand_of(whole) or task
            if self._rest(renewal) is not None:
                renewal = task
        failed_lately = self._rest(task)
        standing = lookup(entry, now)
        step = plan(standing, failing=self.fetcher.health.fails(now) or failed_lately is True)
        if entry is None or step is Plan.FETCH:
            return self._when_landed(task, self._flight(task))
        if step is Plan.FETCH_OR_STALE:
            return self._when_landed(task, self._flight(task), stale=entry)
        if step is Plan.SERVE_AND_REFRESH and (failed_lately is None or renewal is not task):
            self._flight(renewal, background=True)
        why = "stale-if-error" if standing is Freshness.ON_ERROR else None
        return from_cache(entry, task.decision.endpoint, now, why)

    def drop(self, path: str | None = None) -> int:
        """Drop every entry, or those of one path (lower case) and below; says how many.

        What is under way is not kept either: it may have been asked before the drop.
        """

        def concerns(key: Key) -> bool:
            written = key.partition("?")[0].lower()
            return path is None or written == path or written.startswith(path + "/")

        self.flights.forget(concerns)
        return self.store.drop(concerns)

    def _errand_of(self, key: Key) -> FetchTask | None:
        """Give the errand that fetches what is kept under this key."""
        target = read_target(key.encode("ascii"))
        if isinstance(target, Refusal):
            return None
        request = Request("GET", target, metadata=True)
        decision = self.policy.decide(request)
        return FetchTask(request, decision) if isinstance(decision, Cache) else None

    def _rest(self, task: FetchTask) -> bool | None:
        """Say whether its last try failed, if it rests after that; None if it may be renewed."""
        return self._resting.get(hash(task.request.target.key))

    def _wish(self, request: Request) -> str:
        """Say by which wish of the client's the entry is to be renewed now, or `""`."""
        wish = "bypass_cache" if request.target.bypass else "no-cache" if request.no_cache else ""
        if not wish:
            return ""
        key = request.target.key
        if self.flights.under_way((key, wish)) is None:
            if hash(key) in self._bypassed:
                return ""
            self._bypassed[hash(key)] = None
        return wish

    def _flight(
        self, task: FetchTask, wish: str = "", *, background: bool = False, max_wait: float = math.inf
    ) -> tuple[CollapsedFetch[FetchResult], bool]:
        """Join the flight for this key or start one; says whether it was started.

        Part of the decision, not of the waiting: by the time somebody waits, the flight may have landed.
        """
        key = (task.request.target.key, wish)
        flight = self.flights.under_way(key)
        if flight is None:
            ticket = task.ticket(background=background, max_wait=max_wait)
            return self.flights.start(key, partial(self._fly, task), ticket), True
        if not background:
            self.fetcher.limiter(task.decision).join(flight.ticket, task.client)
        return flight, False

    async def _when_landed(
        self,
        task: FetchTask,
        joined: tuple[CollapsedFetch[FetchResult], bool],
        wish: str = "",
        stale: Entry | None = None,
    ) -> RequestRecord:
        flight, led = joined
        began = self._clock.monotonic()
        if stale is not None:
            await asyncio.wait((flight.landed, flight.stumbled), return_when=asyncio.FIRST_COMPLETED)
            now = self._clock.monotonic()
            failed = not flight.landed.done() or _failed(flight.landed.result(), task)
            if failed and lookup(stale, now) is not Freshness.MISS:
                return from_cache(stale, task.decision.endpoint, now, "stale-if-error")
        landing = await asyncio.shield(flight.landed)
        while isinstance(landing, TurnedAway) and landing.in_vain and not led:
            # Whoever began it had waited longer; the rest of one's own time is left.
            left = self.fetcher.limiter(task.decision).max_wait - (self._clock.monotonic() - began)
            flight, led = self._flight(task, wish, max_wait=max(0.0, left))
            landing = await asyncio.shield(flight.landed)
        if wish and isinstance(landing, TurnedAway):  # it was not granted after all
            self._bypassed.pop(hash(task.request.target.key), None)
        outcome = Outcome.BYPASS if wish else Outcome.MISS
        forward = "request" if wish else "stale" if stale else "uri-miss"
        return self._served(task, landing, outcome if led else Outcome.COLLAPSED, forward)

    async def _alone(self, task: FetchTask) -> RequestRecord:
        flight = self.flights.start(None, partial(self._fly, task), task.ticket())
        try:
            landing = await asyncio.shield(flight.landed)
        except asyncio.CancelledError:
            self.flights.call_off(flight)
            raise
        return self._served(task, landing, Outcome.BYPASS, "method" if task.once else "bypass")

    async def _fly(self, task: FetchTask, flight: CollapsedFetch[FetchResult]) -> FetchResult | Failure:
        """Fetch, and keep what came as far as it deserves it."""
        fetched = await self.fetcher.fetch(task, flight)
        if isinstance(fetched, TurnedAway):
            return fetched
        result, decision, key = fetched.result, task.decision, task.request.target.key
        if isinstance(decision, Forward):
            if decision.drops is not None:
                self.drop(decision.drops)
            return result if isinstance(result, Failure) else StoredAnswer(result, None)
        failed = task.failed(result)
        if isinstance(result, Failure):
            self._resting[hash(key)] = True
            return result
        now = self._clock.monotonic()
        entry = keep(result, decision.lifetimes, fetched.sent_at, now)
        if not flight.keeps or (failed and self.store.get(key) is not None):
            entry = None  # a failure does not take the place of what can still be served
        if task.request.target.bypass and result.status != 200:
            entry = None  # IMDS may mean the `bypass_cache`, which is no part of the entry's name
        elif self._parts is not None and result.status != 200 and not failed:
            self._parts.deny(key, fetched.sent_at)
        kept = entry is not None and self.store.put(key, entry)
        if not kept:
            self._resting[hash(key)] = failed
        return StoredAnswer(as_told(result, decision.lifetimes, now - fetched.sent_at), entry if kept else None)

    def _served(self, task: FetchTask, landing: FetchResult | Failure, outcome: Outcome, forward: str) -> RequestRecord:
        endpoint = task.decision.endpoint
        if isinstance(landing, TurnedAway):
            return refused(_turned_away(landing), endpoint)
        if isinstance(landing, Failure):
            hint = max(1, round(self.fetcher.retry_rules.base))
            return refused(landing.refusal(hint), endpoint, Outcome.ERROR)
        entry = landing.entry
        return RequestRecord(
            landing.response,
            endpoint,
            Outcome.ERROR if _failed(landing, task) else outcome,
            ttl=None if entry is None else math.floor(entry.fresh_until - self._clock.monotonic()),
            forward=forward,
            forward_status=landing.response.status,
            stored=entry is not None,
        )


def _failed(landing: FetchResult | Failure, task: FetchTask) -> bool:
    return not isinstance(landing, StoredAnswer) or task.failed(landing.response)


def _turned_away(away: TurnedAway) -> Refusal:
    return Refusal(
        429,
        "budget",
        "too_many_requests",
        "This VM's allowance at IMDS is spent, and the wait would be longer than IMDSPROXY_MAX_WAIT. "
        f"Ask again in {away.retry_after} s, and ask less often for different things.",
        ((b"retry-after", b"%d" % away.retry_after),),
    )
