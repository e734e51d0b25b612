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

from typing import TYPE_CHECKING

from imdsproxy.access.subject import Subject
from imdsproxy.cache.rendered_hit import RenderedHit
from imdsproxy.cache.store import Slot
from imdsproxy.protocol.messages import Key, Request
from imdsproxy.protocol.tracing import without_tracing
from imdsproxy.proxy.proxy import Proxy
from imdsproxy.records import RequestRecord
from imdsproxy.server.connection_refusals import MOST_FIELDS
from imdsproxy.server.head_tables import Parts, RepeatedHeads, SeenOnce

if TYPE_CHECKING:
    from imdsproxy.access.guard import Guard

LONGEST_KNOWN = 4096
"""The maximum length in bytes of a known head."""

# Parts of all bytes: fields may take two twelfths, marks of fields seen once and repeated heads one each, targets the
# rest.
_SHARE = 12
# The bytes of a target's place in the table, of the pair there, and of an empty slot that only this target refers to.
_TARGET = 320
# The bytes of the place of fields, of the pair there, and of the set of endpoints in it.
_FIELDS = 560
_GET = b"GET "
# A target in absolute form overrides Host (RFC 9112 section 3.2.2), so its fields do not decide for themselves.
_ORIGIN_FORM = _GET + b"/"


class KnownHeads:
    """The known heads of one proxy.

    Beside known fields is whether the connection ends with the answer, because they decide that, too.
    """

    def __init__(self, proxy: Proxy, max_bytes: int) -> None:
        self._proxy = proxy
        self._store = proxy.store
        share = max_bytes // _SHARE
        self._targets = Parts[tuple[Slot, str]](max_bytes - 4 * share, _TARGET)
        # By whether they came by a Unix socket: a name that is accepted there is not thereby accepted over TCP.
        self._fields = {unix: Parts[tuple[bool, frozenset[str]]](share, _FIELDS) for unix in (True, False)}
        self._repeated = {unix: RepeatedHeads(share // 2) for unix in (True, False)}
        self._seen_once = SeenOnce(share)
        self._traced = False  # the last head that was not found as a whole had tracing fields

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
        whole = self._repeated[unix].heads.get(head)
        if whole is None:
            # The search for tracing fields takes longer than the rest, and a client sends either always or never any.
            if self._traced:
                return self._find_traced(head, now, unix) or self._find_parts(head, now, unix)
            return self._find_parts(head, now, unix) or self._find_traced(head, now, unix)
        slot, last = whole
        hit = slot.hit
        if hit is not None and now < hit.until:
            return hit, last
        return self._find_parts(head, now, unix)

    def _find_traced(self, head: bytes, now: float, unix: bool, /) -> tuple[RenderedHit, bool] | None:
        """Return the hit for a head with tracing fields, or None. Note whether it has any."""
        if len(head) > LONGEST_KNOWN or head.count(b"\r\n") > MOST_FIELDS:  # their number may matter
            return None
        stripped = without_tracing(head)
        self._traced = len(stripped) < len(head)
        if not self._traced:
            return None
        whole = self._repeated[unix].heads.get(stripped)
        if whole is not None:
            slot, last = whole
            hit = slot.hit
            if hit is not None and now < hit.until:
                return hit, last
        return self._find_parts(stripped, now, unix)

    def _find_parts(self, head: bytes, now: float, unix: bool, /) -> tuple[RenderedHit, bool] | None:
        """Return the hit for a head whose parts are known, as they are written, or None."""
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
            hit = self._proxy.render(slot.key, endpoint, now)
            if hit is None:
                self._targets.forget(target)
                return None
        self._repeated[unix].add(head, slot, last=last)
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
        if head.count(b"\r\n") <= MOST_FIELDS:
            head = without_tracing(head)
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
