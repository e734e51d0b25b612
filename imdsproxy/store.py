"""The cache itself: entries by key, bounded in bytes, the least recently used leaving first."""

from __future__ import annotations

from collections.abc import Callable

from cachetools import Cache, TLRUCache

from imdsproxy.clock import Clock
from imdsproxy.freshness import Entry
from imdsproxy.messages import Key


class Store:
    """Keeps an entry until it is good for nothing any more; whether it is still fresh is the entry's to say."""

    def __init__(self, max_bytes: int, clock: Clock) -> None:
        self._clock = clock
        self._max_bytes = max_bytes
        self._entries: TLRUCache[Key, tuple[Entry, int]] = TLRUCache(
            maxsize=max_bytes,
            ttu=lambda _key, kept, _now: kept[0].gone_at,
            timer=clock.monotonic,
            getsizeof=lambda kept: kept[1],
        )

    def get(self, key: Key) -> Entry | None:
        """Give the entry of a key, fresh or stale, or None."""
        try:
            return self._entries[key][0]
        except KeyError:
            return None

    def put(self, key: Key, entry: Entry) -> bool:
        """Keep an entry; says whether it was. One that an answer to a later request has overtaken is not."""
        present = self.get(key)
        if present is not None and present.sent_at > entry.sent_at:
            return False
        size = entry.size + len(key)
        if size > self._max_bytes or self._clock.monotonic() >= entry.gone_at:
            return False
        self._entries[key] = (entry, size)
        return True

    def drop(self, concerns: Callable[[Key], bool]) -> int:
        """Drop the entries whose key `concerns`; says how many."""
        keys = [key for key in self._entries if concerns(key)]
        for key in keys:
            self._entries.pop(key, None)
        return len(keys)

    def sweep(self) -> None:
        """Let go of what is good for nothing any more, so that the figures below do not count it."""
        self._entries.expire()

    @property
    def bytes(self) -> int:
        """What the entries and their keys take, as `Entry.size` counts it."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def soonest_token_expiry(self) -> float | None:
        """The monotonic moment at which the first of the kept tokens expires, if any is kept."""
        # By the base class's look-up, which is no use of an entry: looking on must not keep it in the cache.
        kept = (Cache.__getitem__(self._entries, key)[0] for key in self._entries)
        return min((entry.expires_at for entry in kept if entry.expires_at is not None), default=None)
