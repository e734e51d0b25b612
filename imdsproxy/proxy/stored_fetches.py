"""Fetching and storing: one fetch for all clients that want the same target."""

from __future__ import annotations

import asyncio
import math
from functools import partial

from imdsproxy.budget.limiter import NoPermit
from imdsproxy.cache.derived_entries import DerivedEntries
from imdsproxy.cache.freshness import Entry, aged_by_wait, make_entry, replaces
from imdsproxy.cache.refresh_guard import RefreshGuard
from imdsproxy.cache.refresh_spread import spread
from imdsproxy.cache.store import Store
from imdsproxy.clock import Clock
from imdsproxy.policy.decisions import Cache, Forward
from imdsproxy.protocol.messages import Failure, Key, Request
from imdsproxy.proxy.results import FetchResult, StoredAnswer
from imdsproxy.upstream.collapsing import CollapsedFetch, CollapsedFetches
from imdsproxy.upstream.fetcher import Fetcher
from imdsproxy.upstream.task import FetchTask

# The maximum bytes of target and fields of a request that continues after its last client has disconnected.
_LONGEST_OUTLIVING = 4096

StoredFetch = CollapsedFetch[FetchResult]


class StoredFetches(CollapsedFetches[FetchResult]):
    """The fetches of one proxy that are under way."""

    def __init__(  # noqa: PLR0913, PLR0917  # the parts it works with
        self,
        store: Store,
        fetcher: Fetcher,
        guard: RefreshGuard,
        derived: DerivedEntries | None,
        clock: Clock,
        seed: bytes = b"",
    ) -> None:
        """Join the parts.

        Args:
            store: Keeps the entries.
            fetcher: Sends to IMDS.
            guard: Limits the refreshes of a key.
            derived: None unless entries are derived from others.
            clock: The clock.
            seed: Spreads the refreshes (`cache.refresh_spread`); without one, nothing is refreshed early.
        """
        super().__init__()
        self._store = store
        self._fetcher = fetcher
        self._guard = guard
        self._derived = derived
        self._clock = clock
        self._seed = seed

    def join_or_start(
        self, task: FetchTask, kind: str = "", *, background: bool = False, max_wait: float = math.inf
    ) -> tuple[StoredFetch, bool]:
        """Join the fetch for this key, or start one.

        This belongs to the synchronous decision. When a client begins to wait, the fetch may be done already.

        Args:
            task: The task of the fetch, if it is started.
            kind: The kind of fetch. Fetches of different kinds do not join.
            background: Whether no client waits.
            max_wait: The longest wait for a permit, in seconds, if that is shorter than the limiter's.

        Returns:
            The fetch, and whether it was started.
        """
        key = (task.request.target.key, kind)
        fetch = self.under_way(key)
        if fetch is None:
            ticket = task.ticket(background=background, max_wait=max_wait)
            fetch = self.start(key, partial(self._fetch_and_store, task), ticket)
            fetch.outlives_clients = isinstance(task.decision, Cache) and not _is_long(task.request)
            return fetch, True
        if not background:
            self._fetcher.limiter(task.decision).join(fetch.ticket, task.client)
            fetch.clients += 1
            fetch.wanted = True
        return fetch, False

    def start_alone(self, task: FetchTask) -> StoredFetch:
        """Start a fetch that no other client can join."""
        return self.start(None, partial(self._fetch_and_store, task), task.ticket())

    async def result_of(self, fetch: StoredFetch) -> FetchResult | Failure:
        """Wait for a fetch. One that stores nothing, or whose request is long, ends with its last client."""
        try:
            return await fetch.result()
        except asyncio.CancelledError:
            self.leave(fetch)
            raise

    def drop(self, path: str | None = None) -> int:
        """Drop every entry, or those of `path` (lower case) and below, and return how many.

        Results of fetches under way are not stored either, because their requests may be older than the drop.
        """

        def matches(key: Key) -> bool:
            written = key.partition("?")[0].lower()
            return path is None or written == path or written.startswith(path + "/")

        self.forget(matches)
        return self._store.drop(matches)

    def store_older(self, key: Key, entry: Entry) -> bool:
        """Store an entry of an earlier process, and return whether it was stored."""
        if self._derived is not None:
            self._derived.cut_from = self._clock.monotonic()
        return self._store.put(key, spread(entry, key, self._seed))

    async def _fetch_and_store(self, task: FetchTask, fetch: StoredFetch) -> FetchResult | Failure:
        """Fetch, and store the answer if it may be stored."""
        fetched = await self._fetcher.fetch(task, fetch)
        if isinstance(fetched, NoPermit):
            return fetched
        result, failed = fetched.verdict.result, fetched.verdict.failed
        decision, key = task.decision, task.request.target.key
        if isinstance(decision, Forward):
            if decision.drops is not None:
                self.drop(decision.drops)
            return result if isinstance(result, Failure) else StoredAnswer(result, failed=failed)
        if failed or isinstance(result, Failure):  # never stored
            self._guard.pause(key, failed=True)
            return result if isinstance(result, Failure) else StoredAnswer(result, failed=True)
        now = self._clock.monotonic()
        entry = make_entry(result, decision.lifetimes, fetched.sent_at, now)
        if task.request.target.bypass and result.status != 200:
            entry = None  # the error may be about `bypass_cache`, which is not part of the key
        elif self._derived is not None and result.status != 200:
            self._derived.deny(key, fetched.sent_at)
        if entry is not None:
            entry = spread(entry, key, self._seed)
        stored = (
            entry is not None
            and fetch.keeps
            and replaces(entry, self._store.get(key), now)
            and self._store.put(key, entry)
        )
        if not stored:
            self._guard.pause(key, failed=False)
        return StoredAnswer(aged_by_wait(result, decision.lifetimes, now - fetched.sent_at), entry if stored else None)


def _is_long(request: Request) -> bool:
    """Return whether a request takes too much memory to continue without a client."""
    fields = sum(len(name) + len(value) for name, value in request.headers)
    return len(request.target.raw) + fields > _LONGEST_OUTLIVING
