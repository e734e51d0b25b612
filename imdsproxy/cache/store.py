"""The cache itself: entries by key, bounded in bytes, the least recently used leaving first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cachetools import Cache, TLRUCache

from imdsproxy.cache.freshness import Entry
from imdsproxy.cache.rendered_hit import RenderedHit
from imdsproxy.clock import Clock
from imdsproxy.protocol.messages import Key


@dataclass(slots=True, eq=False)
class Slot:
    """The place of an entry in the cache. When the entry leaves, the place is empty, and nothing comes there again."""

    key: Key
    entry: Entry | None
    size: int
    gone_at: float
    hit: RenderedHit | None = None
    """The entry as it was written last."""

    def leave(self) -> None:
        """Let go of the entry; whoever has remembered the place does not keep it in memory."""
        self.entry = self.hit = None
        self.key = Key("")


class _Entries(TLRUCache[Key, Slot, float]):
    """Tells what has to leave for want of room or time that it does."""

    def popitem(self) -> tuple[Key, Slot]:
        key, kept = super().popitem()
        kept.leave()
        return key, kept

    def expire(self, time: float | None = None) -> list[tuple[Key, Slot]]:
        expired = super().expire(time)
        for _, kept in expired:
            kept.leave()
        return expired


class Store:
    """Keeps an entry until it is good for nothing any more; whether it is still fresh is the entry's to say."""

    def __init__(self, max_bytes: int, clock: Clock) -> None:
        self._clock = clock
        self.max_bytes = max_bytes
        self._entries = _Entries(
            maxsize=max_bytes,
            ttu=lambda _key, kept, _now: kept.gone_at,
            timer=clock.monotonic,
            getsizeof=lambda kept: kept.size,
        )

    def find(self, key: Key) -> Slot | None:
        """Give what is kept under a key, fresh or stale, or None."""
        try:
            return self._entries[key]
        except KeyError:
            return None

    def look(self, key: Key) -> Slot | None:
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
        present = self.find(key)
        if present is not None and present.entry is not None and present.entry.sent_at > entry.sent_at:
            return False
        size = entry.size + len(key)
        if size > self.max_bytes or self._clock.monotonic() >= entry.gone_at:
            return False
        self._entries[key] = Slot(key, entry, size, entry.gone_at)
        if present is not None:
            present.leave()
        return True

    def drop(self, concerns: Callable[[Key], bool]) -> int:
        """Drop the entries whose key `concerns`; says how many."""
        keys = [key for key in self._entries if concerns(key)]
        for key in keys:
            kept = self._entries.pop(key, None)
            if kept is not None:
                kept.leave()
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
        kept = (each.entry for each in looked if each is not None and each.entry is not None)
        return min((entry.expires_at for entry in kept if entry.expires_at is not None), default=None)
