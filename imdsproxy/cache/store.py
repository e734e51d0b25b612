"""The cache: entries by key, bounded in bytes. The least recently used is evicted first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from cachetools import Cache, TLRUCache

from imdsproxy.cache.freshness import Entry
from imdsproxy.cache.rendered_hit import RenderedHit, Uses
from imdsproxy.clock import Clock
from imdsproxy.protocol.messages import Key, Target


@dataclass(slots=True, eq=False)
class Slot:
    """The place of one entry in the cache. It is empty after the entry's eviction, and is never used again."""

    key: Key
    entry: Entry | None
    size: int
    gone_at: float
    hit: RenderedHit | None = None
    """The entry as it was last rendered."""
    uses: Uses = field(default_factory=Uses)
    """How often the key was answered from the cache. A renewed entry continues the count."""

    def clear(self) -> None:
        """Drop the entry, so that a reference to the slot does not keep it in memory."""
        self.entry = self.hit = None
        self.key = Key("")


class _Entries(TLRUCache[Key, Slot, float]):
    """Clears slots on eviction and expiry."""

    evictions = 0
    on_eviction: Callable[[int], None] | None = None

    def popitem(self) -> tuple[Key, Slot]:
        key, slot = super().popitem()
        slot.clear()
        self.evictions += 1
        if self.on_eviction is not None:
            self.on_eviction(len(self))
        return key, slot

    def expire(self, time: float | None = None) -> list[tuple[Key, Slot]]:
        expired = super().expire(time)
        for _, slot in expired:
            slot.clear()
        return expired


class Store:
    """Keeps each entry until its last deadline. `freshness.lookup` says whether it is still fresh."""

    def __init__(self, max_bytes: int, clock: Clock) -> None:
        self._clock = clock
        self.max_bytes = max_bytes
        self.on_put: Callable[[float], None] | None = None
        """Is called with the deadline of each entry that is stored, in monotonic seconds."""
        self._entries = _Entries(
            maxsize=max_bytes,
            ttu=lambda _key, slot, _now: slot.gone_at,
            timer=clock.monotonic,
            getsizeof=lambda slot: slot.size,
        )

    def find(self, key: Key) -> Slot | None:
        """Return the slot of a key, fresh or stale, or None. This counts as a use of the entry."""
        try:
            return self._entries[key]
        except KeyError:
            return None

    def peek(self, key: Key) -> Slot | None:
        """Return the slot of a key or None, without updating recency or checking expiry."""
        try:
            return Cache.__getitem__(self._entries, key)  # the base class has neither recency nor expiry
        except KeyError:
            return None

    def get(self, key: Key) -> Entry | None:
        """Return the entry of a key, fresh or stale, or None."""
        slot = self.find(key)
        return None if slot is None else slot.entry

    def put(self, key: Key, entry: Entry) -> bool:
        """Store an entry, and return whether it was stored.

        It is not if it is too large or expired, or if the present entry answers a later request.
        """
        present = self.find(key)
        if present is not None and present.entry is not None and present.entry.sent_at > entry.sent_at:
            return False
        size = entry.size + len(key)
        if size > self.max_bytes or self._clock.monotonic() >= entry.gone_at:
            return False
        uses = Uses() if present is None else present.uses
        self._entries[key] = Slot(key, entry, size, entry.gone_at, uses=uses)
        if present is not None:
            present.clear()
        if self.on_put is not None:
            self.on_put(entry.gone_at)
        return True

    def count_use(self, key: Key) -> None:
        """Count an answer from this key's entry, if it is still stored."""
        slot = self.peek(key)
        if slot is not None:
            slot.uses.count += 1

    def slots(self) -> Iterator[tuple[Slot, Entry]]:
        """Yield each slot that has not expired, and its entry. The store must not change meanwhile."""
        self.sweep()
        # The base class iterates a tenth of the time, because it does not read the clock for each key.
        for key in Cache.__iter__(self._entries):
            slot: Slot = Cache.__getitem__(self._entries, key)
            if slot.entry is not None:
                yield slot, slot.entry

    def drop(self, matches: Callable[[Key], bool]) -> int:
        """Drop the entries whose key `matches`, and return how many."""
        keys = [key for key in self._entries if matches(key)]
        for key in keys:
            slot = self._entries.pop(key, None)
            if slot is not None:
                slot.clear()
        return len(keys)

    def sweep(self) -> None:
        """Drop expired entries, so that `bytes` and `len` do not count them."""
        self._entries.expire()

    @property
    def on_eviction(self) -> Callable[[int], None] | None:
        """Is called with the number of entries that are left when one was evicted to make room for others."""
        return self._entries.on_eviction

    @on_eviction.setter
    def on_eviction(self, call: Callable[[int], None] | None) -> None:
        self._entries.on_eviction = call

    @property
    def evictions(self) -> int:
        """How many entries were evicted to make room for others."""
        return self._entries.evictions

    @property
    def bytes(self) -> int:
        """The bytes of all entries and keys, as `Entry.size` counts them."""
        return int(self._entries.currsize)

    def __len__(self) -> int:
        return len(self._entries)

    def soonest_deadline(self) -> float | None:
        """Drop expired entries. Return when the first of the others expires, in monotonic seconds; None without any."""
        return min((slot.gone_at for slot, _ in self.slots()), default=None)

    def token_life(self, target: Target) -> float | None:
        """Return the remaining seconds of the token that is stored for a target; None if none is, or it has expired."""
        slot = self.peek(target.key)
        expires_at = None if slot is None or slot.entry is None else slot.entry.expires_at
        left = 0.0 if expires_at is None else expires_at - self._clock.monotonic()
        return left if left > 0 else None

    def soonest_token_expiry(self) -> float | None:
        """Return when the first of the stored tokens expires, in monotonic seconds; None if no token is stored."""
        return min((entry.expires_at for _, entry in self.slots() if entry.expires_at is not None), default=None)
