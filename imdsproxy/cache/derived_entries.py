"""Find the stored wholes from which a target can be cut, and the whole whose refresh refreshes the part."""

from __future__ import annotations

import math

from cachetools import TTLCache

from imdsproxy.cache.derive import derive, wholes
from imdsproxy.cache.freshness import Entry, Freshness, lookup
from imdsproxy.cache.store import Store
from imdsproxy.clock import Clock
from imdsproxy.policy.decisions import Lifetimes
from imdsproxy.protocol.messages import Key, Target

_A_DAY = 86400.0
_RENEWABLE = frozenset({Freshness.FRESH, Freshness.EXPIRING, Freshness.REVALIDATE})


class DerivedEntries:
    """Searches the cache for entries that contain a target."""

    def __init__(self, store: Store, clock: Clock, max_keys: int = 4096) -> None:
        """Remember at most `max_keys` keys for which IMDS had no document."""
        self._store = store
        self.cut_from = -math.inf
        """Wholes that are older than this are not cut, because an earlier process may have learned of a denial."""
        # When a request was sent that IMDS answered without a document. An older whole must not contradict that.
        self._denied_at: TTLCache[int, float] = TTLCache(max_keys, _A_DAY, clock.monotonic)

    def find(
        self, target: Target, own: Entry | None, lifetimes: Lifetimes, now: float
    ) -> tuple[Entry | None, Key | None]:
        """Return the newest entry for a target, its own or one cut now, and the key of the whole that renews it.

        That key is None unless the entry was cut from a whole that is fresh or may be revalidated. A part must be
        fetched by itself if its whole is no longer requested, or if IMDS fails for the whole.
        """
        entry, renewal = own, None
        denied_at = max(self.cut_from, self._denied_at.get(hash(target.key), -math.inf))
        for key, way in wholes(target):
            whole = self._store.get(key)
            if whole is None or whole.sent_at <= denied_at:
                continue
            if entry is None or whole.written_at > entry.written_at:
                part = derive(whole, way, target, lifetimes, now)
                if part is None:
                    continue
                self._store.put(target.key, part)
                entry = part
            if entry.derived and not whole.derived and renewal is None and lookup(whole, now) in _RENEWABLE:
                renewal = key
        return entry, renewal

    def deny(self, key: Key, sent_at: float) -> None:
        """Note that IMDS had no document for this key when the request was sent, in monotonic seconds."""
        self._denied_at[hash(key)] = sent_at
