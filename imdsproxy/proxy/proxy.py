"""The steps of a request in their order, as the plan table of `freshness` has them.

    Request → Policy → lookup → Plan → collapsed fetch → (probe → permit → IMDS → retry)* → store → RequestRecord

`answer` makes all decisions in one synchronous step. A request that has to wait continues as a coroutine of `waiting`.
`stored_fetches` performs the collapsed fetch and the store, `upstream.fetcher` the steps in brackets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from imdsproxy.access.subject import UNKNOWN_SUBJECT, Subject, subject_of
from imdsproxy.cache.derived_entries import DerivedEntries
from imdsproxy.cache.freshness import Entry, Freshness, Plan, lookup, plan
from imdsproxy.cache.refresh_guard import RefreshGuard
from imdsproxy.cache.rendered_hit import RenderedHit, from_cache, write
from imdsproxy.cache.store import Store
from imdsproxy.clock import Clock
from imdsproxy.policy.decisions import Cache, Decision, Forward, Refuse
from imdsproxy.policy.policy import Policy
from imdsproxy.protocol.messages import Key, Refusal, Request
from imdsproxy.protocol.peer import Client, no_client
from imdsproxy.protocol.target import read_target, without_bypass
from imdsproxy.proxy.stored_fetches import StoredFetches
from imdsproxy.proxy.waiting import Waiting, WaitingAnswers
from imdsproxy.records import RequestRecord, refused
from imdsproxy.upstream.fetcher import Fetcher
from imdsproxy.upstream.headers import shareable
from imdsproxy.upstream.task import FetchTask

if TYPE_CHECKING:
    from imdsproxy.access.guard import Guard

# Kinds of fetches whose answer is not stored. A request without `Metadata: true` is another request to IMDS.
_SHARED = "shared"
_SHARED_WITHOUT_METADATA = "shared without Metadata"


class Proxy:
    """One IMDS, one cache, one budget for each class of requests, any number of clients."""

    def __init__(  # noqa: PLR0913  # the parts it works with, all by name
        self,
        *,
        policy: Policy,
        store: Store,
        fetcher: Fetcher,
        clock: Clock,
        access: Guard | None = None,
        derives: bool = False,
        max_keys: int = 4096,
        seed: bytes = b"",
        on_rendering: Callable[[float], None] = lambda _now: None,
    ) -> None:
        """Join the parts.

        Args:
            policy: Decides about each request.
            store: Keeps the entries.
            fetcher: Sends to IMDS.
            clock: The clock.
            access: The access rules; None for no rules.
            derives: Whether parts are answered from stored wholes.
            max_keys: How many keys each table of keys may hold.
            seed: Spreads this process's refreshes (`cache.refresh_spread`); without one, nothing is refreshed early.
            on_rendering: Called with the monotonic time when a hit is rendered, once a second for each entry in use.
        """
        self.policy = policy
        self.store = store
        self.fetcher = fetcher
        self.access = access
        self._clock = clock
        self._derived = DerivedEntries(store, clock, max_keys) if derives else None
        self._guard = RefreshGuard(clock, max_keys)
        self.fetches = StoredFetches(store, fetcher, self._guard, self._derived, clock, seed)
        self._waiting = WaitingAnswers(self.fetches, fetcher, store, self._guard, clock)
        self._on_rendering = on_rendering

    def answer(self, request: Request, client: Client = no_client) -> RequestRecord | Waiting:
        """Return the answer, or a coroutine that waits for it. Cancelling the coroutine does not cancel the fetch.

        Args:
            request: The request.
            client: Returns its client. It is called only if the request is not a hit. Clients take turns when
                requests wait for permits.
        """
        decision = self.policy.decide(request)
        if self.access is not None and not isinstance(decision, Refuse):
            refusal = self.access.refusal(subject_of(client()), request)
            if refusal is not None:
                return refused(refusal, decision.endpoint)
        return self.perform(request, decision, client)

    def perform(self, request: Request, decision: Decision, client: Client = no_client) -> RequestRecord | Waiting:
        """Perform the policy's decision about a request, whatever the access rules say; see `answer`."""
        if isinstance(decision, Refuse):
            return refused(decision.refusal)
        if isinstance(decision, Forward):
            return self._forward(FetchTask(request, decision, client(), shared=shareable(request)))
        kind = self._renewal_kind(request)
        if kind:
            task = FetchTask(request, decision, client())
            return self._waiting.answer_from(task, self.fetches.join_or_start(task, kind), kind)
        if request.target.bypass:  # the key was renewed a moment ago, so this is now a plain request
            request = request._replace(target=without_bypass(request.target))
        now = self._clock.monotonic()
        hit = self.hit(request.target.key, decision.endpoint, now)
        if hit is not None:
            hit.uses.count += 1
            return hit.served  # the common case, which does not depend on IMDS's health
        return self._not_fresh(
            FetchTask(request, decision, client()), decision, self.store.get(request.target.key), now
        )

    def fresh_hit(self, request: Request, now: float, subject: Subject = UNKNOWN_SUBJECT) -> RenderedHit | None:
        """Return the fresh hit for `request`, or None if it needs the full path.

        The full path answers non-GET, no-cache, bypass, a miss, and what the access rules refuse.

        Args:
            request: The request.
            now: The current time, in monotonic seconds.
            subject: The client, where there are access rules.
        """
        if request.method != "GET" or request.no_cache or request.target.bypass:
            return None
        if self.access is not None and not self.access.allows(subject, request):
            return None
        decision = self.policy.decide(request)
        return self.hit(request.target.key, decision.endpoint, now) if isinstance(decision, Cache) else None

    def hit(self, key: Key, endpoint: str, now: float) -> RenderedHit | None:
        """Return the hit of a key, or None if there is no fresh entry, or if its refresh is due."""
        slot = self.store.peek(key)
        if slot is not None and slot.hit is not None and now < slot.hit.until:
            return slot.hit
        return self.render(key, endpoint, now)

    def render(self, key: Key, endpoint: str, now: float) -> RenderedHit | None:
        """Return the same as `hit`, rendered again. That is done once a second, and only that is a use of the entry."""
        slot = self.store.find(key)
        if slot is None or slot.entry is None:
            return None
        freshness = lookup(slot.entry, now)
        if freshness is Freshness.EXPIRING and not self._refresh_is_due(key, now):
            freshness = Freshness.FRESH
        if freshness is not Freshness.FRESH:
            return None
        slot.hit = write(slot.entry, endpoint, now, slot.hit, slot.uses)
        self._on_rendering(now)
        return slot.hit

    def _refresh_is_due(self, key: Key, now: float) -> bool:
        """Return whether a request for this key, whose entry is about to expire, starts its refresh."""
        under_way = self.fetches.under_way((key, "")) is not None
        return not under_way and self._guard.paused(key) is None and not self.fetcher.health.fails(now)

    def _not_fresh(self, task: FetchTask, decision: Cache, entry: Entry | None, now: float) -> RequestRecord | Waiting:
        """Perform the plan for a request without a fresh entry of its own."""
        renewal = task
        if self._derived is not None:
            # With DERIVE, the target may be a part of a stored whole. Renewing the whole renews all its parts.
            entry, whole = self._derived.find(task.request.target, entry, decision.lifetimes, now)
            renewal = task if whole is None else self._task_of(whole) or task
            if self._guard.paused(renewal.request.target.key) is not None:
                renewal = task
        failed_lately = self._guard.paused(task.request.target.key)
        freshness = lookup(entry, now)
        step = plan(freshness, failing=self.fetcher.health.fails(now) or failed_lately is True)
        if entry is None or step is Plan.FETCH:
            return self._waiting.answer_from(task, self.fetches.join_or_start(task))
        if step is Plan.FETCH_OR_STALE:
            return self._waiting.answer_from(task, self.fetches.join_or_start(task), stale=entry)
        if step is Plan.SERVE_AND_REFRESH and (failed_lately is None or renewal is not task):
            self.fetches.join_or_start(renewal, background=True)
        why = "stale-if-error" if freshness is Freshness.ON_ERROR else None
        self.store.count_use(task.request.target.key)
        return from_cache(entry, task.decision.endpoint, now, why)

    def now(self) -> float:
        """Return the current time of the clock that all deadlines use, in monotonic seconds."""
        return self._clock.monotonic()

    def drop(self, path: str | None = None) -> int:
        """Drop every entry, or those of `path` (lower case) and below, and return how many.

        Results of fetches under way are not stored either, because their requests may be older than the drop.
        """
        return self.fetches.drop(path)

    def cacheable(self, key: Key) -> tuple[Request, Cache] | None:
        """Return the request for this key, and the policy's decision; None if the policy does not cache it."""
        target = read_target(key.encode("ascii"))
        if isinstance(target, Refusal):
            return None
        request = Request("GET", target, metadata=True)
        decision = self.policy.decide(request)
        return (request, decision) if isinstance(decision, Cache) else None

    def _task_of(self, key: Key) -> FetchTask | None:
        """Return the task that fetches the entry of this key, or None if the policy does not cache it."""
        cacheable = self.cacheable(key)
        return None if cacheable is None else FetchTask(*cacheable)

    def _renewal_kind(self, request: Request) -> str:
        """Return how the client renews the entry now (`bypass_cache` or `no-cache`), or `""` if it does not."""
        kind = "bypass_cache" if request.target.bypass else "no-cache" if request.no_cache else ""
        if not kind:
            return ""
        key = request.target.key
        joins = self.fetches.under_way((key, kind)) is not None
        return kind if joins or self._guard.grant_bypass(key) else ""

    def _forward(self, task: FetchTask) -> Waiting:
        """Forward a request whose answer is not stored, together with the same requests of other clients, or alone."""
        if task.shared:
            kind = _SHARED if task.adds_metadata else _SHARED_WITHOUT_METADATA
            return self._waiting.answer_from(task, self.fetches.join_or_start(task, kind), kind)
        return self._waiting.answer_alone(task, self.fetches.start_alone(task))
