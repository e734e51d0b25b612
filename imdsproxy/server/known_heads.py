"""Known heads: request heads that were fresh hits, recognised by their exact bytes.

The bytes of a head determine its request, so the same bytes are the same request. A repeated head is answered without
parsing, as long as the entry that answered it is stored and fresh. Tracing fields are left out, because they differ in
every request and change no answer. A head is remembered when it is seen for the second time, because a head with any
other value of its own never repeats and would only evict one that does.
"""

from __future__ import annotations

from collections import OrderedDict

from imdsproxy.access.guard import Guard
from imdsproxy.access.subject import Subject
from imdsproxy.cache.rendered_hit import RenderedHit
from imdsproxy.cache.store import Slot
from imdsproxy.protocol.messages import Key
from imdsproxy.protocol.tracing import without_tracing
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.server.parse_errors import MOST_FIELDS

LONGEST_KNOWN = 4096
"""The maximum length in bytes of a known head."""

_MOST_HEADS = 16384
# The marks of heads seen once may take one sixth of all bytes.
_SHARE_SEEN = 6
# Bits for each of them. Of the heads that are new, no more than one in so many finds its bit set by another.
_BITS_SEEN = 64
# The bytes of a head's place in the table, of the pair there, and of an empty slot that only this head refers to.
_OVERHEAD = 320


class _SeenOnce:
    """Marks of heads, as bits at the places of their hashes. A common place only makes a head known too early.

    A set of hashes would take a thousand times the memory: with the default settings it would be full after 2,000
    heads, and clients that request more targets than that in turn would never have a known head.
    """

    def __init__(self, max_bytes: int) -> None:
        self._bits = bytearray(max_bytes)  # its pages take no memory before they are written
        self._left = self._most = max_bytes * 8 // _BITS_SEEN

    def add(self, head: bytes) -> bool:
        """Mark a head, and return whether it was marked before. If there are too many marks, all others are removed."""
        if not self._most:
            return False
        place, bit = divmod(hash(head) % (len(self._bits) * 8), 8)
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


class KnownHeads:
    """The known heads of one proxy, bounded in number and bytes. The oldest is evicted first.

    Beside each head is whether the connection ends with its answer, because the head alone decides that, too.
    """

    def __init__(self, proxy: Proxy, max_bytes: int) -> None:
        self._proxy = proxy
        self._store = proxy.store
        # By whether it came by a Unix socket: a name that is accepted there is not thereby accepted over TCP.
        self._known: dict[bool, OrderedDict[bytes, tuple[Slot, bool]]] = {False: OrderedDict(), True: OrderedDict()}
        self._bytes = 0
        self._max_bytes = max_bytes - max_bytes // _SHARE_SEEN
        self._most = min(_MOST_HEADS, self._max_bytes // _OVERHEAD)
        self._seen_once = _SeenOnce(max_bytes // _SHARE_SEEN)

    def find(
        self,
        head: bytes,
        now: float,
        unix: bool,
        /,  # passed by position, because a name takes a fiftieth of a hit's time
    ) -> tuple[RenderedHit, bool] | None:
        """Return the fresh hit for a known head, and whether the connection ends with it, or None.

        Forget the head if its entry is no longer fresh.

        Args:
            head: The head.
            now: The current time, in monotonic seconds.
            unix: Whether it came by a Unix socket.
        """
        table = self._known[unix]
        known = table.get(head)
        if known is None:
            head = _without_tracing(head)
            known = table.get(head)
            if known is None:
                return None
        slot, last = known
        hit = slot.hit
        if hit is not None and now < hit.until:
            return hit, last
        if hit is not None:  # it must be rendered again, if the entry is still fresh
            hit = self._proxy.hit(slot.key, hit.served.endpoint, now)
        if hit is None:
            del table[head]
            self._bytes -= len(head) + _OVERHEAD
            return None
        return hit, last

    def key_of(self, head: bytes, unix: bool, /) -> Key | None:
        """Return the key of the entry that answers a known head, or None if the head is not known."""
        table = self._known[unix]
        known = table.get(head) or table.get(_without_tracing(head))
        return None if known is None else known[0].key

    def remember(self, head: bytes, key: Key, *, last: bool, unix: bool) -> None:
        """Remember a head that has just been answered from the entry of `key`, if it was seen before.

        Args:
            head: The head.
            key: The key of the entry that answered it.
            last: Whether the connection ends with the answer.
            unix: Whether it came by a Unix socket.
        """
        if len(head) > LONGEST_KNOWN:
            return
        head = _without_tracing(head)
        if not self._seen_once.add(head):
            return
        slot = self._store.peek(key)
        table = self._known[unix]
        if slot is None or head in table:
            return
        table[head] = slot, last
        self._bytes += len(head) + _OVERHEAD
        while len(self) > self._most or self._bytes > self._max_bytes:
            oldest, _ = max(self._known.values(), key=len).popitem(last=False)
            self._bytes -= len(oldest) + _OVERHEAD

    def clear(self) -> None:
        """Forget every head."""
        for table in self._known.values():
            table.clear()
        self._seen_once.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return sum(map(len, self._known.values()))


class HeadsOfClient:
    """The known heads that the access rules allow one client. Any client may have made them known."""

    def __init__(self, heads: KnownHeads, access: Guard, subject: Subject) -> None:
        self.remember = heads.remember
        self._heads = heads
        self._access = access
        self._subject = subject

    def find(self, head: bytes, now: float, unix: bool, /) -> tuple[RenderedHit, bool] | None:
        """Return the same as `KnownHeads.find`, if the rules have allowed this client what the head asks for."""
        key = self._heads.key_of(head, unix)
        if key is None or not self._access.remembers(self._subject, key):
            return None
        return self._heads.find(head, now, unix)


def _without_tracing(head: bytes) -> bytes:
    """Return a head without tracing fields, or the same head if the number of its fields or bytes matters."""
    within = len(head) <= LONGEST_KNOWN and head.count(b"\r\n") <= MOST_FIELDS
    return without_tracing(head) if within else head
