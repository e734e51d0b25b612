"""Requests that come again: heads that were fresh hits, known by their exact bytes.

What a head asks for follows from its bytes alone, so the same bytes ask for the same again. Chatty clients send
nothing else, and a repeated head is answered without being read once more, for as long as the very entry that answered
it is kept and fresh. A head that bears an id of its own comes once; it would only take the place of one that comes
again, so a head is taken in when it is seen for the second time.
"""

from __future__ import annotations

from collections import OrderedDict

from imdsproxy.cache.rendered_hit import RenderedHit
from imdsproxy.cache.store import Slot
from imdsproxy.protocol.messages import Key
from imdsproxy.proxy import Proxy

LONGEST_KNOWN = 4096
"""Bytes of a head that is remembered, at the most."""

UNIX_MARK = b"unix"
"""Behind each head that came by a Unix socket; a head itself ends with an empty line."""

_MOST_HEADS = 16384
# What the hashes of heads seen once may take, as a share of all; the bytes that a hash takes in a set (measured: 140).
_SHARE_SEEN = 6
_BYTES_SEEN = 150
# What a head costs beside its bytes: its place in the table, and an entry's empty place that only it remembers.
_OVERHEAD = 250


class KnownHeads:
    """The heads of one proxy, bounded in number and bytes, the oldest leaving first."""

    def __init__(self, proxy: Proxy, max_bytes: int) -> None:
        self._proxy = proxy
        self._store = proxy.store
        self._known: OrderedDict[bytes, Slot] = OrderedDict()
        self._bytes = 0
        self._max_bytes = max_bytes - max_bytes // _SHARE_SEEN
        self._most = min(_MOST_HEADS, self._max_bytes // _OVERHEAD)
        self._most_seen = max_bytes // _SHARE_SEEN // _BYTES_SEEN
        # By their hashes; one taken for another is only taken in too early.
        self._seen_once: set[int] = set()

    def find(self, head: bytes, now: float) -> RenderedHit | None:
        """Give the fresh hit that a head is, if it was one before; forget it where its entry answers no more."""
        kept = self._known.get(head)
        if kept is None:
            return None
        hit = kept.hit
        if hit is not None and now < hit.until:
            return hit
        if hit is not None:  # it is to be written anew, if it is still fresh
            hit = self._proxy.hit(kept.key, hit.served.endpoint, now)
        if hit is None:
            del self._known[head]
            self._bytes -= len(head) + _OVERHEAD
        return hit

    def remember(self, head: bytes, key: Key) -> None:
        """Take in a head that has just been answered by what is kept under this key, if it was before."""
        if len(head) > LONGEST_KNOWN:
            return
        if hash(head) not in self._seen_once:
            if len(self._seen_once) >= self._most_seen:
                self._seen_once = set()  # a set that is only cleared keeps its room
            if self._most_seen:
                self._seen_once.add(hash(head))
            return
        kept = self._store.peek(key)
        if kept is None or head in self._known:
            return
        self._known[head] = kept
        self._bytes += len(head) + _OVERHEAD
        while len(self._known) > self._most or self._bytes > self._max_bytes:
            oldest, _ = self._known.popitem(last=False)
            self._bytes -= len(oldest) + _OVERHEAD

    def clear(self) -> None:
        """Forget every head."""
        self._known.clear()
        self._seen_once.clear()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._known)
