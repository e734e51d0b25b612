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

from imdsproxy.budget.limiter import TurnedAway
from imdsproxy.cache.derived_entries import DerivedEntries
from imdsproxy.cache.freshness import Entry, Freshness, Plan, aged_by_wait, lookup, make_entry, plan, replaces
from imdsproxy.cache.refresh_guard import RefreshGuard
from imdsproxy.cache.rendered_hit import RenderedHit, from_cache, write
from imdsproxy.cache.store import Store
from imdsproxy.clock import Clock
from imdsproxy.policy import Cache, Decision, Forward, Policy, Refuse
from imdsproxy.protocol.messages import Failure, Key, Refusal, Request, Response
from imdsproxy.protocol.peer import UNKNOWN, Peer
from imdsproxy.protocol.target import read_target, without_bypass
from imdsproxy.records import Outcome, RequestRecord, refused
from imdsproxy.upstream.collapsing import CollapsedFetch, CollapsedFetches
from imdsproxy.upstream.fetcher import Fetcher
from imdsproxy.upstream.headers import shareable
from imdsproxy.upstream.task import FetchTask

# Kinds of fetches whose answer is not kept; one that IMDS gets without `Metadata: true` is another question.
_SHARED = "shared"
_SHARED_WITHOUT_METADATA = "shared without Metadata"

# Bytes of target and fields of a request that is seen out although all its clients have gone.
_LONGEST_OUTLIVING = 4096

Waiting = Coroutine[Any, Any, RequestRecord]


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """IMDS answered; `entry` is set if the answer was kept, `failed` if it says that IMDS failed."""

    response: Response
    entry: Entry | None = None
    failed: bool = False


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
        self._guard = RefreshGuard(clock, max_keys)

    def answer(self, request: Request, client: Peer = UNKNOWN) -> RequestRecord | Waiting:
        """Answer at once, or give a coroutine to wait for; cancelling it ends the waiting, not the flight.

        Where requests have to wait, clients take turns; whose request it is, `client` says.
        """
        return self.perform(request, self.policy.decide(request), client)

    def perform(self, request: Request, decision: Decision, client: Peer = UNKNOWN) -> RequestRecord | Waiting:
        """Do what was decided about a request."""
        if isinstance(decision, Refuse):
            return refused(decision.refusal)
        if isinstance(decision, Forward):
            return self._forward(FetchTask(request, decision, client, shared=shareable(request)))
        task = FetchTask(request, decision, client)
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

    def fresh_hit(self, request: Request, now: float) -> RenderedHit | None:
        """Return the fresh hit for `request`, or None if it needs the full path (non-GET, no-cache, bypass, miss)."""
        if request.method != "GET" or request.no_cache or request.target.bypass:
            return None
        decision = self.policy.decide(request)
        return self.hit(request.target.key, decision.endpoint, now) if isinstance(decision, Cache) else None

    def hit(self, key: Key, endpoint: str, now: float) -> RenderedHit | None:
        """Give the hit of a key; None where nothing fresh is kept.

        It is written once a second, and that counts as the use of the entry.
        """
        kept = self.store.peek(key)
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
            if self._guard.paused(renewal.request.target.key) is not None:
                renewal = task
        failed_lately = self._guard.paused(task.request.target.key)
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

    def now(self) -> float:
        """Return the monotonic time that all deadlines in here refer to."""
        return self._clock.monotonic()

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

    def _wish(self, request: Request) -> str:
        """Say by which wish of the client's the entry is to be renewed now, or `""`."""
        wish = "bypass_cache" if request.target.bypass else "no-cache" if request.no_cache else ""
        if not wish:
            return ""
        key = request.target.key
        joins = self.flights.under_way((key, wish)) is not None
        return wish if joins or self._guard.grant_bypass(key) else ""

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
            flight = self.flights.start(key, partial(self._fly, task), ticket)
            flight.outlives_clients = isinstance(task.decision, Cache) and not _is_long(task.request)
            return flight, True
        if not background:
            self.fetcher.limiter(task.decision).join(flight.ticket, task.client)
            flight.clients += 1
            flight.wanted = True
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
            soon = await flight.result_or_stumble()
            now = self._clock.monotonic()
            failed = soon is None or _failed(soon)
            if failed and lookup(stale, now) is not Freshness.MISS:
                return from_cache(stale, task.decision.endpoint, now, "stale-if-error")
        landing = await self._landing(flight)
        while isinstance(landing, TurnedAway) and landing.in_vain and not led:
            # Whoever began it had waited longer; the rest of one's own time is left.
            left = self.fetcher.limiter(task.decision).max_wait - (self._clock.monotonic() - began)
            flight, led = self._flight(task, wish, max_wait=max(0.0, left))
            landing = await self._landing(flight)
        if wish and isinstance(landing, TurnedAway):  # it was not granted after all
            self._guard.withdraw_bypass(task.request.target.key)
        outcome = Outcome.BYPASS if wish else Outcome.MISS
        forward = "bypass" if task.shared else "request" if wish else "stale" if stale else "uri-miss"
        return self._served(task, landing, outcome if led else Outcome.COLLAPSED, forward)

    def _forward(self, task: FetchTask) -> Waiting:
        """Pass a request on whose answer is not kept: together with all that ask the same meanwhile, or alone."""
        if task.shared:
            wish = _SHARED if task.adds_metadata else _SHARED_WITHOUT_METADATA
            return self._when_landed(task, self._flight(task, wish), wish)
        return self._alone(task, self.flights.start(None, partial(self._fly, task), task.ticket()))

    async def _alone(self, task: FetchTask, flight: CollapsedFetch[FetchResult]) -> RequestRecord:
        landing = await self._landing(flight)
        return self._served(task, landing, Outcome.BYPASS, "method" if task.once else "bypass")

    async def _landing(self, flight: CollapsedFetch[FetchResult]) -> FetchResult | Failure:
        """Wait for a fetch. One that keeps nothing, or whose request is long, ends with the last of its clients."""
        try:
            return await flight.result()
        except asyncio.CancelledError:
            self.flights.leave(flight)
            raise

    async def _fly(self, task: FetchTask, flight: CollapsedFetch[FetchResult]) -> FetchResult | Failure:
        """Fetch, and keep what came as far as it deserves it."""
        fetched = await self.fetcher.fetch(task, flight)
        if isinstance(fetched, TurnedAway):
            return fetched
        result, failed = fetched.verdict.result, fetched.verdict.failed
        decision, key = task.decision, task.request.target.key
        if isinstance(decision, Forward):
            if decision.drops is not None:
                self.drop(decision.drops)
            return result if isinstance(result, Failure) else StoredAnswer(result, failed=failed)
        if failed or isinstance(result, Failure):  # never kept
            self._guard.pause(key, failed=True)
            return result if isinstance(result, Failure) else StoredAnswer(result, failed=True)
        now = self._clock.monotonic()
        entry = make_entry(result, decision.lifetimes, fetched.sent_at, now)
        if task.request.target.bypass and result.status != 200:
            entry = None  # IMDS may mean the `bypass_cache`, which is no part of the entry's name
        elif self._parts is not None and result.status != 200:
            self._parts.deny(key, fetched.sent_at)
        kept = (
            entry is not None
            and flight.keeps
            and replaces(entry, self.store.get(key), now)
            and self.store.put(key, entry)
        )
        if not kept:
            self._guard.pause(key, failed=False)
        return StoredAnswer(aged_by_wait(result, decision.lifetimes, now - fetched.sent_at), entry if kept else None)

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
            Outcome.ERROR if landing.failed else outcome,
            ttl=None if entry is None else math.floor(entry.fresh_until - self._clock.monotonic()),
            forward=forward,
            forward_status=landing.response.status,
            stored=entry is not None,
        )


def _is_long(request: Request) -> bool:
    """Whether a request takes so much memory that it is not kept without a client who answers for it."""
    fields = sum(len(name) + len(value) for name, value in request.headers)
    return len(request.target.raw) + fields > _LONGEST_OUTLIVING


def _failed(landing: FetchResult | Failure) -> bool:
    return not isinstance(landing, StoredAnswer) or landing.failed


def _turned_away(away: TurnedAway) -> Refusal:
    return Refusal(
        429,
        "budget",
        "too_many_requests",
        "This VM's allowance at IMDS is spent, and the wait would be longer than IMDSPROXY_MAX_WAIT. "
        f"Ask again in {away.retry_after} s, and ask less often for different things.",
        ((b"retry-after", b"%d" % away.retry_after),),
    )
