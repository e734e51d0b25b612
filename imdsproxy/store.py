"""The cache itself: entries by key, bounded in bytes, the least recently used leaving first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cachetools import Cache, TLRUCache

from imdsproxy.clock import Clock
from imdsproxy.freshness import Entry
from imdsproxy.hits import Hit
from imdsproxy.messages import Key


@dataclass(slots=True, eq=False, weakref_slot=True)
class Kept:
    """An entry in the cache, for as long as it is there. Who remembers it must not be what keeps it in memory."""

    key: Key
    entry: Entry
    size: int
    hit: Hit | None = None
    """It as it was written last, for as long as that is true."""


class Store:
    """Keeps an entry until it is good for nothing any more; whether it is still fresh is the entry's to say."""

    def __init__(self, max_bytes: int, clock: Clock) -> None:
        self._clock = clock
        self.max_bytes = max_bytes
        self._entries: TLRUCache[Key, Kept] = TLRUCache(
            maxsize=max_bytes,
            ttu=lambda _key, kept, _now: kept.entry.gone_at,
            timer=clock.monotonic,
            getsizeof=lambda kept: kept.size,
        )
        self.changes = 0
        """How often an entry was put in or dropped: while it stands still, what was found is what would be found."""

    def find(self, key: Key) -> Kept | None:
        """Give what is kept under a key, fresh or stale, or None."""
        try:
            return self._entries[key]
        except KeyError:
            return None

    def look(self, key: Key) -> Kept | None:
        """Give what is kept under a key, good for something or not; that is no use of it."""
        try:
            return Cache.__getitem__(self._entries, key)  # by the base class, which knows neither use nor time
        except KeyError:
            return None

    def get(self, key: Key) -> Entry | None:
        """Give the entry of a key, fresh or stale, or None."""
        kept = self.find(key)
        return None if kept is None else kept.entry

    def put(self, key: Key, entry: Entry) -> bool:
        """Keep an entry; says whether it was. One that an answer to a later request has overtaken is not."""
        present = self.get(key)
        if present is not None and present.sent_at > entry.sent_at:
            return False
        size = entry.size + len(key)
        if size > self.max_bytes or self._clock.monotonic() >= entry.gone_at:
            return False
        self._entries[key] = Kept(key, entry, size)
        self.changes += 1
        return True

    def drop(self, concerns: Callable[[Key], bool]) -> int:
        """Drop the entries whose key `concerns`; says how many."""
        keys = [key for key in self._entries if concerns(key)]
        for key in keys:
            self._entries.pop(key, None)
        self.changes += 1
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
        looked = (self.look(key) for key in self._entries)
        kept = (each.entry for each in looked if each is not None)
        return min((entry.expires_at for entry in kept if entry.expires_at is not None), default=None)
