"""The fast path: a fresh hit is answered in the same step in which its bytes arrive.

A hit needs no waiting, so it needs no task, no queue, and no watch for the client's disconnect. If a connection is idle
and a read is exactly one complete head, a hit is answered as soon as the head is parsed. A head that was answered like
this is known by its bytes, and is not parsed again. `first_request` does the same before there is a transport.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from imdsproxy.access.subject import UNKNOWN_SUBJECT, Subject, subject_of
from imdsproxy.cache.rendered_hit import RenderedHit
from imdsproxy.protocol.messages import Key
from imdsproxy.protocol.peer import Peer
from imdsproxy.server.connection import Connection
from imdsproxy.server.connection_limit import ConnectionLimit
from imdsproxy.server.connection_refusals import LONGEST_HEAD
from imdsproxy.server.first_request import FAST_VERSIONS, LONGEST_JOINED, is_last
from imdsproxy.server.head_rules import head_of
from imdsproxy.server.held_bytes import HeldBytes
from imdsproxy.server.known_heads import HeadsOfClient, KnownHeads
from imdsproxy.server.read_turns import ReadTurns

if TYPE_CHECKING:
    from imdsproxy.access.guard import Guard

_END = b"\r\n\r\n"
# Where a redirect can change ports, a client's port may soon be that of another user's socket (`arrivals`). Windows has
# no redirect, and its table of connections takes long to read, so the client is looked up when a request needs it.
_LOOKS_AT_ONCE = sys.platform != "win32"


class FastPathConnection(Connection):
    """A connection with the fast path. Every request that is not a fresh hit takes the full path."""

    __slots__ = (
        *("_admitted", "_answered", "_began", "_fresh_hit", "_from_start", "_hit", "_known_heads", "_last"),
        *("_now", "_observe", "_rest"),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fresh_hit: Callable[..., tuple[RenderedHit, Key] | None] = self.app.fresh_hit
        self._observe = self.app.observe
        self._now = self.app.clock.monotonic
        self._accepted_hosts = self.app.accepted_hosts(unix=self.unix)
        self._known_heads: KnownHeads | HeadsOfClient = self.app.known_heads
        if self.app.access is not None:
            self._admit(self.app.access, UNKNOWN_SUBJECT)
        self._admitted: Peer | None = None
        self._answered = False
        self._rest = b""  # the part of the first answer that was not sent before there was a transport
        self._last = False  # the connection ends with the current answer
        self._from_start = True  # the current read begins with the first byte of a request
        self._hit: tuple[RenderedHit, Key] | None = None
        self._began = 0.0

    @property
    def silent(self) -> bool:
        """Whether no request has arrived yet."""
        return super().silent and not self._answered

    def note_answer(self, rest: bytes, *, last: bool) -> None:
        """Note that the first request has been answered before there is a transport.

        Args:
            rest: The part of the answer that is not yet sent.
            last: Whether the connection ends with this answer.
        """
        self._answered = True
        self._rest = rest
        self._last = last

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the connection, with the rest of an answer that was begun before."""
        super().connection_made(transport)
        if self.app.access is not None and _LOOKS_AT_ONCE:
            self.peer()
        if self._answered:
            rest, self._rest = self._rest, b""
            self._write(rest, b"")

    def peer(self) -> Peer:
        """Return the client, and look it up the first time. From then on the fast path answers what it may have."""
        found = super().peer()
        if self.app.access is not None and found is not self._admitted:
            self._admitted = found
            self._admit(self.app.access, subject_of(found))
        return found

    def _admit(self, access: Guard, subject: Subject) -> None:
        """Answer from now on what the access rules allow this client, and nothing else."""
        self._known_heads = HeadsOfClient(self.app.known_heads, access, subject)
        self._fresh_hit = partial(self.app.fresh_hit, subject=subject)

    def _receive(self, data: bytes) -> None:
        """Answer a known head; parse everything else."""
        self._from_start = whole = self._whole
        cycle = self.cycle
        # As `_free`, without the call, which takes one part in forty of a known head's time.
        if whole and (cycle is None or cycle.response_complete) and not self.flow.write_paused:
            began = self._now()
            known = self._known_heads.find(data, began, self.unix)
            if known is not None:
                hit, self._last = known
                self._answer(hit, began, data)
                return
        super()._receive(data)

    def on_headers_complete(self) -> None:
        """Find the fresh hit for this head, if the fast path may answer it."""
        self._hit = None
        parser = self.parser
        if (
            not self._framed
            and parser.get_method() == b"GET"
            and (version := parser.get_http_version()) in FAST_VERSIONS
            and self._free()
            and self._from_start
            and len(self._latest) <= LONGEST_HEAD
            # Further bytes in the same read may concern this answer, too.
            and self._latest.find(_END) == len(self._latest) - len(_END)
        ):
            self._began = self._now()
            self._last = is_last(parser)
            self._hit = self._fresh_hit(self.url, self.headers, self._began, self._accepted_hosts, version)
        if self._hit is None:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Answer the request if it is a hit, and remember its head."""
        if self._hit is None:
            super().on_message_complete()
            return
        hit, key = self._hit
        self._hit = None  # otherwise each connection would keep the last body in memory
        self._weight = 0
        self._end_request()
        exact = self._latest.startswith(b"GET %b HTTP/" % self.url)
        self._answer(hit, self._began, self._latest if exact else head_of(b"GET " + self.url, self.headers))
        if exact:
            self._known_heads.remember(self._latest, key, last=self._last, unix=self.unix)  # exactly this head

    def _free(self) -> bool:
        """Return whether no earlier answer is due, and the client reads its answers."""
        return not self.flow.write_paused and (self.cycle is None or self.cycle.response_complete)

    def _answer(self, hit: RenderedHit, began: float, head: bytes) -> None:
        """Write the answer to a request, which begins with `head`, and notify the observers."""
        self._answered = True
        self._write(hit.last_head if self._last else hit.head, hit.body)
        self.server_state.total_requests += 1
        hit.uses.count += 1
        self._observe(hit.served, self._now() - began, self.client, head)

    def _write(self, head: bytes, body: bytes) -> None:
        """Write an answer, and close the connection if it is the last."""
        if len(body) > LONGEST_JOINED:
            self.transport.writelines((head, body))
        else:
            self.transport.write(head + body)
        self._idle_since = self.loop.time()
        if self._last:
            self.transport.close()
            if self.transport.get_write_buffer_size():
                self._start_write_timeout()


def connection_class(
    header_timeout: float,
    *,
    admin: bool = False,
    unix: bool = False,
    connection_limit: ConnectionLimit | None = None,
    held: HeldBytes | None = None,
) -> type[Connection]:
    """Return the protocol class for a listener.

    uvicorn must not wrap its application (`proxy_headers=False`), which has to be `HostedApplication`.

    Args:
        header_timeout: Seconds for a whole request.
        admin: Whether only the pages under `/-/` are served there. The fast path never answers those.
        unix: Whether the listener is a Unix socket.
        connection_limit: The limit of connections; None for no limit.
        held: The pool of memory that all listeners share; None for one of its own.
    """
    base = Connection if admin else FastPathConnection
    values = {"admin": admin, "unix": unix, "connection_limit": connection_limit, "held": held or HeldBytes()}
    own = {"header_timeout": header_timeout, "read_turns": ReadTurns()}
    return type(base.__name__, (base,), {**own, **values})
