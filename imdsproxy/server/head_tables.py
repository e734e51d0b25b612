"""The tables of `known_heads`, bounded in bytes: parts of heads, heads that repeat, and marks of fields seen once."""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from imdsproxy.cache.store import Slot

_MOST_PARTS = 16384  # in each table
# Bits for each mark. Of the fields that are new, no more than one in so many finds its bit set by another.
_BITS_SEEN = 64
# The bytes of a repeated head's place in the table, and of the pair there.
_HEAD = 320
# A full table of repeated heads is emptied when heads of so many times its bytes have found no room.
_PATIENCE = 16

Value = TypeVar("Value")


class SeenOnce:
    """Marks of fields, as bits at the places of their hashes. A common place only makes fields known too early.

    A set of hashes would take a thousand times the memory, so with the default settings it would be full after 2,000.
    """

    def __init__(self, max_bytes: int) -> None:
        self._bits = bytearray(max_bytes)  # its pages take no memory before they are written
        self._left = self._most = max_bytes * 8 // _BITS_SEEN

    def add(self, fields: bytes) -> bool:
        """Mark fields, and return whether they were marked before. With too many marks, all others are removed."""
        if not self._most:
            return False
        place, bit = divmod(hash(fields) % (len(self._bits) * 8), 8)
        if self._bits[place] & 1 << bit:
            return True
        if not self._left:
            self.clear()
        self._left -= 1
        self._bits[place] |= 1 << bit
        return False

    def clear(self) -> None:
        """Remove all marks."""
        if self._left < self._most:
            self._bits, self._left = bytearray(len(self._bits)), self._most


class Parts(Generic[Value]):
    """Parts of heads, bounded in number and bytes. The oldest is evicted first."""

    def __init__(self, max_bytes: int, overhead: int) -> None:
        """Make an empty table; each part takes `overhead` bytes beside its own."""
        self.known: OrderedDict[bytes, Value] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes
        self._overhead = overhead

    def put(self, part: bytes, value: Value) -> None:
        """Remember a part."""
        if part not in self.known:
            self._bytes += len(part) + self._overhead
        self.known[part] = value
        while len(self.known) > _MOST_PARTS or self._bytes > self._max_bytes:
            oldest, _ = self.known.popitem(last=False)
            self._bytes -= len(oldest) + self._overhead

    def forget(self, part: bytes) -> None:
        """Forget a part that is known."""
        del self.known[part]
        self._bytes -= len(part) + self._overhead

    def clear(self) -> None:
        """Forget every part."""
        self.known.clear()
        self._bytes = 0


class RepeatedHeads:
    """Whole heads whose parts were found before: one lookup takes a third of the time.

    A full table is emptied, but only after many heads have found no room. If more heads repeat in turn than there is
    room for, a table that is emptied each time would cost more than it saves.
    """

    def __init__(self, max_bytes: int) -> None:
        self.heads: dict[bytes, tuple[Slot, bool]] = {}
        self._left = self._most = max_bytes
        self._patience = _PATIENCE * max_bytes

    def add(self, head: bytes, slot: Slot, *, last: bool) -> None:
        """Remember a head with the slot of its target, and whether the connection ends with its answer."""
        if head not in self.heads:
            size = len(head) + _HEAD
            if size > self._most:
                return
            if size > self._left:
                self._patience -= size
                if self._patience > 0:
                    return
                self.clear()
            self._left -= size
        self.heads[head] = slot, last

    def clear(self) -> None:
        """Forget every head."""
        self.heads.clear()
        self._left = self._most
        self._patience = _PATIENCE * self._most
