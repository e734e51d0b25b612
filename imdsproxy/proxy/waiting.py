"""The answers that have to wait: for a fetch, or for the time after which a stale entry is served instead.

`proxy` has decided about a request, and has joined or started its fetch, before a coroutine of this module begins.
"""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from imdsproxy.budget.limiter import NoPermit
from imdsproxy.cache.freshness import Entry, Freshness, lookup
from imdsproxy.cache.refresh_guard import RefreshGuard
from imdsproxy.cache.rendered_hit import from_cache
from imdsproxy.cache.store import Store
from imdsproxy.clock import Clock
from imdsproxy.protocol.messages import Failure
from imdsproxy.proxy.results import FetchResult, has_failed, record_of
from imdsproxy.proxy.stored_fetches import StoredFetch, StoredFetches
from imdsproxy.records import Outcome, RequestRecord
from imdsproxy.upstream.fetcher import Fetcher
from imdsproxy.upstream.task import FetchTask

Waiting = Coroutine[Any, Any, RequestRecord]
"""A request that waits for its answer."""


class WaitingAnswers:
    """Waits for fetches, and makes the records of their answers."""

    def __init__(
        self, fetches: StoredFetches, fetcher: Fetcher, store: Store, guard: RefreshGuard, clock: Clock
    ) -> None:
        """Join the parts.

        Args:
            fetches: The fetches under way.
            fetcher: Has the limiters and the pauses between attempts.
            store: Counts the uses of the entries.
            guard: Limits the renewals of a key.
            clock: The clock.
        """
        self._fetches = fetches
        self._fetcher = fetcher
        self._store = store
        self._guard = guard
        self._clock = clock

    async def answer_from(
        self,
        task: FetchTask,
        joined: tuple[StoredFetch, bool],
        kind: str = "",
        stale: Entry | None = None,
    ) -> RequestRecord:
        """Wait for a fetch that other clients may share, and return the record of its answer.

        Args:
            task: The task of this client.
            joined: The fetch, and whether this client started it.
            kind: The kind of fetch (`StoredFetches.join_or_start`).
            stale: The entry that is served if the first attempt fails or takes long; None if there is none.
        """
        fetch, led = joined
        began = self._clock.monotonic()
        if stale is not None:
            soon = await fetch.result_or_failed_attempt()
            now = self._clock.monotonic()
            failed = soon is None or has_failed(soon)
            if failed and lookup(stale, now) is not Freshness.MISS:
                self._store.count_use(task.request.target.key)
                return _with_fetch(from_cache(stale, task.decision.endpoint, now, "stale-if-error"), fetch)
        result = await self._fetches.result_of(fetch)
        while isinstance(result, NoPermit) and result.timed_out and not led:
            # The client that started it had waited longer, so this one has time left.
            left = self._fetcher.limiter(task.decision).max_wait - (self._clock.monotonic() - began)
            fetch, led = self._fetches.join_or_start(task, kind, max_wait=max(0.0, left))
            result = await self._fetches.result_of(fetch)
        if kind and isinstance(result, NoPermit):  # the renewal did not take place
            self._guard.withdraw_bypass(task.request.target.key)
        outcome = Outcome.BYPASS if kind else Outcome.MISS
        forward = "bypass" if task.shared else "request" if kind else "stale" if stale else "uri-miss"
        return _with_fetch(self._record(task, result, outcome if led else Outcome.COLLAPSED, forward), fetch)

    async def answer_alone(self, task: FetchTask, fetch: StoredFetch) -> RequestRecord:
        """Wait for a fetch that no other client shares, and return the record of its answer."""
        result = await self._fetches.result_of(fetch)
        return _with_fetch(self._record(task, result, Outcome.BYPASS, "method" if task.once else "bypass"), fetch)

    def _record(self, task: FetchTask, result: FetchResult | Failure, outcome: Outcome, forward: str) -> RequestRecord:
        return record_of(
            result,
            task.decision.endpoint,
            outcome,
            forward,
            now=self._clock.monotonic(),
            retry_base=self._fetcher.retry_rules.base,
        )


def _with_fetch(record: RequestRecord, fetch: StoredFetch) -> RequestRecord:
    """Return the record of an answer that waited for a fetch."""
    return record._replace(fetch=fetch.number, upstream=fetch.latest, waited=fetch.waited)
