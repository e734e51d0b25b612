"""Known heads: request heads that need no parsing, recognised by their exact bytes.

A head is known by its two parts: the method and target, and the fields behind them. A target is known if its answer was
stored, or if it was answered by a fresh hit. Fields are known if a target of the same endpoint was answered by a fresh
hit to them. A head of which both parts are known is a fresh hit, because each part decides for itself: the target which
entry answers, the fields whether the request is valid. The only rule that concerns both is who has to send `Metadata`,
and it is the same for all targets of an endpoint (`policy`).

So ten thousand targets that one client requests in turn are known after the first. Tracing fields are left out, because
they differ in every request and change no answer. Fields are remembered when they are seen for the second time, because
fields with any other value of their own never repeat and would only evict some that do.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Generic, TypeVar

from imdsproxy.access.guard import Guard
from imdsproxy.access.subject import Subject
from imdsproxy.cache.rendered_hit import RenderedHit
from imdsproxy.cache.store import Slot
from imdsproxy.protocol.messages import Key, Request
from imdsproxy.protocol.tracing import without_tracing
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.records import RequestRecord
from imdsproxy.server.parse_errors import MOST_FIELDS

LONGEST_KNOWN = 4096
"""The maximum length in bytes of a known head."""

_MOST_PARTS = 16384  # in each table
# Parts of all bytes: fields may take two twelfths, marks of fields seen once and repeated heads one each, targets the
# rest.
_SHARE = 12
# Bits for each mark. Of the fields that are new, no more than one in so many finds its bit set by another.
_BITS_SEEN = 64
# The bytes of a target's place in the table, of the pair there, and of an empty slot that only this target refers to.
_TARGET = 320
# The bytes of the place of fields, of the pair there, and of the set of endpoints in it.
_FIELDS = 560
# The bytes of a repeated head's place in the table, and of the pair there.
_HEAD = 320
_GET = b"GET "
# A target in absolute form overrides Host (RFC 9112 section 3.2.2), so its fields do not decide for themselves.
_ORIGIN_FORM = _GET + b"/"

Value = TypeVar("Value")


class _SeenOnce:
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


class _Parts(Generic[Value]):
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


class _Repeated:
    """Whole heads whose parts were found before: one lookup takes a third of the time. A full table is emptied."""

    def __init__(self, max_bytes: int) -> None:
        self.heads: dict[bytes, tuple[Slot, bool]] = {}
        self._left = self._most = max_bytes

    def add(self, head: bytes, slot: Slot, *, last: bool) -> None:
        """Remember a head with the slot of its target, and whether the connection ends with its answer."""
        size = len(head) + _HEAD
        if size > self._most:
            return
        if size > self._left:
            self.clear()
        self._left -= size
        self.heads[head] = slot, last

    def clear(self) -> None:
        """Forget every head."""
        self.heads.clear()
        self._left = self._most


class KnownHeads:
    """The known heads of one proxy.

    Beside known fields is whether the connection ends with the answer, because they decide that, too.
    """

    def __init__(self, proxy: Proxy, max_bytes: int) -> None:
        self._proxy = proxy
        self._store = proxy.store
        share = max_bytes // _SHARE
        self._targets = _Parts[tuple[Slot, str]](max_bytes - 4 * share, _TARGET)
        # By whether they came by a Unix socket: a name that is accepted there is not thereby accepted over TCP.
        self._fields = {unix: _Parts[tuple[bool, frozenset[str]]](share, _FIELDS) for unix in (True, False)}
        self._repeated = {unix: _Repeated(share // 2) for unix in (True, False)}
        self._seen_once = _SeenOnce(share)

    def find(
        self,
        head: bytes,
        now: float,
        unix: bool,
        /,  # passed by position, because a name takes a fiftieth of a hit's time
    ) -> tuple[RenderedHit, bool] | None:
        """Return the fresh hit for a known head, and whether the connection ends with it, or None.

        Forget the target if its entry is no longer fresh.

        Args:
            head: The head.
            now: The current time, in monotonic seconds.
            unix: Whether it came by a Unix socket.
        """
        repeated = self._repeated[unix]
        whole = repeated.heads.get(head)
        if whole is None:
            head = _without_tracing(head)
            whole = repeated.heads.get(head)
        if whole is not None:
            slot, last = whole
            hit = slot.hit
            if hit is not None and now < hit.until:
                return hit, last
        end = head.find(b" ", 4)
        target = head[:end]
        known = self._targets.known.get(target)
        accepted = self._fields[unix].known.get(head[end:])
        if known is None or accepted is None:
            return None
        slot, endpoint = known
        last, endpoints = accepted
        if endpoint not in endpoints:
            return None
        hit = slot.hit
        if hit is None or now >= hit.until:
            # It must be rendered again, if there is an entry that is still fresh. The key of an empty slot has none.
            hit = self._proxy.hit(slot.key, endpoint, now)
            if hit is None:
                self._targets.forget(target)
                return None
        if whole is None or whole[0] is not slot:
            repeated.add(head, slot, last=last)
        return hit, last

    def key_of(self, head: bytes) -> Key | None:
        """Return the key of the entry that answers a head if it is known, or None if the target is not known."""
        known = self._targets.known.get(head[: head.find(b" ", 4)])
        return None if known is None else known[0].key

    def remember(self, head: bytes, key: Key, *, last: bool, unix: bool) -> None:
        """Remember a head that has just been answered from the entry of `key`.

        Its target is known from then on. Its fields are if they were seen before.

        Args:
            head: The head.
            key: The key of the entry that answered it.
            last: Whether the connection ends with the answer.
            unix: Whether it came by a Unix socket.
        """
        slot = self._store.peek(key)
        if len(head) > LONGEST_KNOWN or slot is None or slot.hit is None:
            return
        endpoint = slot.hit.served.endpoint
        head = _without_tracing(head)
        end = head.find(b" ", 4)
        if not self._remember(head[:end], slot, endpoint):
            return
        fields = head[end:]
        table = self._fields[unix]
        _, endpoints = table.known.get(fields, (last, frozenset[str]()))
        if endpoints or self._seen_once.add(fields):
            table.put(fields, (last, endpoints | {endpoint}))

    def note_answer(self, request: Request, answer: RequestRecord) -> None:
        """Remember the target of a request whose answer has been stored: the next request for it is a fresh hit."""
        target = request.target
        if answer.stored and request.method == "GET" and not target.bypass and len(target.raw) <= LONGEST_KNOWN:
            slot = self._store.peek(target.key)
            if slot is not None:
                self._remember(_GET + target.raw, slot, answer.endpoint)

    def _remember(self, target: bytes, slot: Slot, endpoint: str) -> bool:
        """Remember a target behind its method, and return whether it is one that can be known."""
        if not target.startswith(_ORIGIN_FORM):
            return False
        known = self._targets.known.get(target)
        if known is None or known[0] is not slot:
            self._targets.put(target, (slot, endpoint))
        return True

    def clear(self) -> None:
        """Forget every head."""
        self._targets.clear()
        for fields in self._fields.values():
            fields.clear()
        for repeated in self._repeated.values():
            repeated.clear()
        self._seen_once.clear()

    def __len__(self) -> int:
        return len(self._targets.known)


class HeadsOfClient:
    """The known heads that the access rules allow one client. Any client may have made them known."""

    def __init__(self, heads: KnownHeads, access: Guard, subject: Subject) -> None:
        self.remember = heads.remember
        self._heads = heads
        self._access = access
        self._subject = subject

    def find(self, head: bytes, now: float, unix: bool, /) -> tuple[RenderedHit, bool] | None:
        """Return the same as `KnownHeads.find`, if the rules have allowed this client what the head asks for."""
        key = self._heads.key_of(head)
        if key is None or not self._access.remembers(self._subject, key):
            return None
        return self._heads.find(head, now, unix)


def _without_tracing(head: bytes) -> bytes:
    """Return a head without tracing fields, or the same head if the number of its fields or bytes matters."""
    within = len(head) <= LONGEST_KNOWN and head.count(b"\r\n") <= MOST_FIELDS
    return without_tracing(head) if within else head
