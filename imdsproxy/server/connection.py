"""One client's connection, from its beginning to its end: admission, refusals, half-closed clients.

The limits of time are in `timed_connection`, those of size in `bounded_parser`.
"""

from __future__ import annotations

import asyncio
import re
import sys
from typing import Any, cast

from httptools import HttpParserInvalidMethodError
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
from uvicorn.protocols.utils import get_remote_addr

from imdsproxy.protocol.messages import Refusal
from imdsproxy.protocol.peer import Peer
from imdsproxy.records import KnownClient, description_of
from imdsproxy.server.caller import ENDED
from imdsproxy.server.connection_limit import Admission, ConnectionLimit
from imdsproxy.server.connection_refusals import NOT_A_CLIENT, TOO_MANY, UNKNOWN_METHOD
from imdsproxy.server.flow import Brake, hung_up, unread
from imdsproxy.server.held_bytes import SHARE
from imdsproxy.server.hosted_application import HostedApplication
from imdsproxy.server.presence import Presence
from imdsproxy.server.read_buffer import BUFFER, LONGEST_READ
from imdsproxy.server.read_turns import ReadTurns
from imdsproxy.server.timed_connection import TimedConnection

MOST_HALF_CLOSED = 256
"""Clients of a listener that may wait for an answer after they have ended their sending."""
# A name of its own, because a look into an enumeration takes as long as one into the cache.
_ANSWER = Admission.ANSWER
# Seconds between two checks whether a client that has ended its sending is still connected.
_CHECK = 1.0
# Seconds that a client has for its first bytes, where there are too many connections.
_CROWDED = 1.0
# A request line whose method the parser does not know.
_REQUEST_LINE = re.compile(rb"[A-Za-z]{1,20} [/h*][!-~]* HTTP/1\.[01]\r\n")


class Connection(TimedConnection):
    """A connection on the full path: each request goes to the application."""

    __slots__ = ("_latest", "_unwelcome", "_watch_for_end", "admission")

    app: HostedApplication
    connection_limit: ConnectionLimit | None = None
    """The limit of connections; None for no limit."""
    read_turns = ReadTurns()
    """The reads of all connections of this class."""
    half_closed = 0
    """Connections of this class that wait for an answer after their client has ended its sending."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._latest = b""  # the bytes of the current read
        self._watch_for_end: asyncio.TimerHandle | None = None  # the client has sent all that it will send
        self._unwelcome = TOO_MANY  # the refusal of a connection that does not stay
        self.admission: Admission | None = None  # None until the limit of connections has been asked

    @property
    def silent(self) -> bool:
        """Whether no request has arrived yet."""
        return self.cycle is None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Start the connection, or its refusal."""
        super().connection_made(transport)
        self.flow = Brake(transport, self.held)
        transport.set_write_buffer_limits(high=SHARE)
        if self.client is None:  # `Arrivals` knows it from accept(2)
            self.client = get_remote_addr(transport)
        if self.admission is None and self._is_outsider():  # `Arrivals` asks before there is a transport
            self.turn_away(NOT_A_CLIENT)
        if self.app.names_clients:
            self.client = KnownClient(self.peer(), self.client)
        if self.connection_limit is not None and self.admission is None:  # `Arrivals` asks before there is a transport
            self.admission = self.connection_limit.admit(self, self._made, admin=self.admin)
        if self.admission is Admission.CLOSE:
            self._refuse(self._unwelcome)
        elif self.admission is _ANSWER:
            self._deadline = self.loop.call_later(_CROWDED, self._refuse, self._unwelcome)

    def turn_away(self, refusal: Refusal) -> None:
        """Answer the first bytes with this refusal, instead of a request, and close."""
        self._unwelcome = refusal
        self.admission = _ANSWER

    def _is_outsider(self) -> bool:
        """Return whether the client may not ask at all. The pages under `/-/` are for every client."""
        if self.admin or self.unix or self.client is None:
            return False
        local = self.transport.get_extra_info("sockname")
        return self.app.outsiders.include(self.client[0], lambda: local[0])

    def peer(self) -> Peer:
        """Return the client, and look it up the first time."""
        if self._peer is None:
            connection = self.transport.get_extra_info("socket")
            self._peer = self.app.peers.find(connection) if connection is not None else ENDED
        return self._peer

    def connection_lost(self, exc: Exception | None) -> None:
        """End the connection, and every wait for an answer."""
        if self.connection_limit is not None:
            self.connection_limit.leave(self)
        self._let_go()
        if self._watch_for_end is not None:
            self._watch_for_end.cancel()
            type(self).half_closed -= 1
        for cycle in self._cycles:  # uvicorn ends the newest only, and others would write to a closed connection
            _disconnect(cycle)
        super().connection_lost(exc)

    def buffer_updated(self, nbytes: int) -> None:
        """Process what was read into the shared buffer. After a full read, or many reads, others come first."""
        if nbytes == LONGEST_READ or self.read_turns.take_long(self.loop):  # there is probably more
            self.flow.yield_turn(self.loop)
        if self.admission is _ANSWER:
            self._refuse(self._unwelcome)
        else:
            self._receive(BUFFER[:nbytes].tobytes())

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        """Process what was read, as bytes: an event loop may pass a bytearray, which can change later."""
        if self.admission is _ANSWER:
            self._refuse(self._unwelcome)
        else:
            self._receive(bytes(data))

    def _receive(self, data: bytes) -> None:
        """Parse what was read, up to the limits."""
        self._latest = data
        self._unparsed += data
        self._parse()
        self._latest = b""

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio's
        """Return whether the connection stays open for answers after the client has ended its sending.

        RFC 9112 section 9.6 allows that. Over TCP, a disconnected client looks the same, so their number is limited.
        """
        self._stop_deadline()
        newest = self.cycle
        if newest is not None and newest.more_body and not newest.response_complete:
            _disconnect(newest)  # its body will never be complete
        if self._watch_for_end is None:
            if not self._owes or type(self).half_closed >= MOST_HALF_CLOSED or hung_up(self.transport):
                return False
            type(self).half_closed += 1
            self._watch_for_end = self.loop.call_later(_CHECK, self._check_for_end)
        return True

    def _check_for_end(self) -> None:
        """Abort if the client has disconnected. The event loop no longer reads, so it does not notice."""
        if hung_up(self.transport):
            self.transport.abort()
        else:
            self._watch_for_end = self.loop.call_later(_CHECK, self._check_for_end)

    @property
    def _owes(self) -> bool:
        """Whether the client waits for an answer."""
        return bool(self._unparsed) or any(not (each.response_complete or each.disconnected) for each in self._cycles)

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that the parser could not read, with a message of the proxy's own instead of `msg`."""
        del msg
        unknown = isinstance(sys.exc_info()[1], HttpParserInvalidMethodError) and _REQUEST_LINE.match(self._latest)
        self._refuse(UNKNOWN_METHOD if unknown else self._refusal)

    def on_response_complete(self) -> None:
        """Parse the next request, and start the write timeout if the response has not been drained."""
        self._idle_since = self.loop.time()
        self._note_answered()
        super().on_response_complete()
        if not self.transport.is_closing():
            if self._unparsed or self.flow.held:
                self._parse()
            if self._watch_for_end is not None and not self._owes:
                self.transport.close()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._start_write_timeout()

    @property
    def idle_since(self) -> float | None:
        """The loop's time of the last answer; None during a request, or while an answer is not yet sent in full.

        A new connection is not idle during its first second, because its request may be under way. A connection that
        will be refused is not idle either, because it would be closed without its answer.
        """
        if self.timeout_keep_alive_task is None or self.admission is _ANSWER:
            return None  # without a transport it is a new one
        if not self._idle or self.transport.is_closing() or self.transport.get_write_buffer_size():
            return None
        if self._idle_since is not None:
            return self._idle_since
        return self._made if self.loop.time() >= self._made + _CROWDED else None

    def close_idle(self) -> bool:
        """Close the connection to make room for others, and return True, unless a request has arrived unread."""
        if unread(self.transport):
            return False
        self.transport.close()
        return True

    def _note_answered(self) -> None:
        """Drop the answered request, which an idle connection would otherwise keep until its next request."""
        self._earlier = 0
        newest = self.cycle
        if newest is not None and newest.response_complete and self._whole:
            if self._weight > SHARE:
                self.url, self.headers = b"", []
                newest.scope["headers"] = []
                newest.scope.pop("extensions", None)
                newest.body = bytearray()
            self._weight = 0
        self._settle()

    def _refuse(self, refusal: Refusal) -> None:
        """Answer and close. If earlier requests wait for their answers, close after those instead."""
        self._stop_deadline()
        self._unparsed = b""
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._in_head or self.pipeline or cycle.response_started:
                if not self._whole:  # the beginning of another request, which nothing follows
                    self.url, self.headers, self._weight = b"", [], 0
                cycle.keep_alive = False
                self.flow.stop()
                return
            cycle.disconnected = True  # it is this request, and the application's answer to it must not be sent
        self.transport.write(self.app.refuse(refusal, description_of(self.client)))
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._start_write_timeout()


def _disconnect(cycle: RequestResponseCycle) -> None:
    """Note that the client of a request has disconnected, and cancel the wait for its answer."""
    cycle.disconnected = True
    cast("Presence", cycle.message_event).leave()
