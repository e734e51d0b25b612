"""One client's connection: uvicorn's HTTP/1.1 protocol, kept from being held for ever or filled without end.

What uvicorn leaves open is closed here: a request that trickles, a head that never ends, a client that
connects and says nothing or never reads. The request target is handed on as it was on the wire, since its
absolute form, a fragment or a CONNECT must be seen to be refused.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import deque
from typing import Any, cast

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from imdsproxy.protocol.messages import Refusal
from imdsproxy.server.application import Application
from imdsproxy.server.asgi import ADMIN_EXTENSION, TARGET_EXTENSION, UNIX_EXTENSION
from imdsproxy.server.crowd import Admission, Crowd
from imdsproxy.server.flow import Brake, hung_up
from imdsproxy.server.listeners import peer
from imdsproxy.server.parse_errors import (
    HEAD_TOO_LONG,
    LONGEST_HEAD,
    MALFORMED,
    MOST_FIELDS,
    PIPELINED,
    TOO_MANY,
    TOO_SLOW,
    UNKNOWN_METHOD,
    UPGRADE_WITH_BODY,
    written,
)

KEEP_ALIVE = 75
"""Seconds after which an idle connection is closed."""

MOST_HALF_CLOSED = 256
"""Clients of a listener that may wait for an answer after they have ended their sending."""
MOST_PIPELINED = 131_072
"""Bytes of requests that may wait behind a request that is being answered."""

_END = b"\r\n\r\n"
# A line that is HTTP in all but a method which the parser has never heard of.
_REQUEST_LINE = re.compile(rb"[A-Za-z]{1,20} [/h*][!-~]* HTTP/1\.[01]\r\n")
# The fields that say more of a request than what is asked for: what follows its head, or on which terms.
_FRAMING = frozenset({b"content-length", b"transfer-encoding", b"expect", b"upgrade"})
# What a chunk's frame may take for each byte in it, before it counts as something else than a body.
_FRAME = 16


class _RefusedError(Exception):
    """Ends the parsing; httptools turns it into a parser error, which uvicorn answers by `send_400_response`."""


class Connection(HttpToolsProtocol):
    """A connection with limits of its own."""

    header_timeout = 10.0
    """Seconds for a whole request, from its first byte; a subclass made at start has the user's value."""

    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # there is none before the first
    admin = False
    """Only the pages under `/-/` are served."""
    unix = False
    """The listener is a Unix socket."""
    crowd: Crowd | None = None
    """The limit of connections; none under a server that is not ours."""
    half_closed = 0
    """Connections of this class that wait for an answer after their client has ended its sending."""
    flow: Brake

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._in_head = True
        self._whole = True  # what came in last was the end of a request
        self._framed = False  # a field of this request is one of `_FRAMING`
        self._beside_body = 0  # bytes that came in since the last whole head or request and are no body
        self._trailing = 0  # bytes in the trailers of this request
        self._refusal = MALFORMED  # what is answered if the parser stops
        self._latest = b""  # what is just being read
        self._unparsed = b""  # what was read and waits for the answers to earlier requests
        self._half_closed = False  # the client has sent all that it will send
        self._crowded = False  # there are too many connections for this one
        self._cycles: deque[RequestResponseCycle] = deque()  # requests that wait for their answers, in order
        self._idle_since = 0.0  # the loop's time of the last answer
        self._deadline: asyncio.TimerHandle | None = None
        self._deaf: asyncio.TimerHandle | None = None

    @property
    def silent(self) -> bool:
        """Whether no request has come yet."""
        return self.cycle is None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        """Begin; a client that says nothing is idle from the start."""
        super().connection_made(transport)
        self.flow = Brake(transport)
        self.client = self.client or peer(transport)
        self._idle_since = self.loop.time()
        self.timeout_keep_alive_task = self.loop.call_later(KEEP_ALIVE, self.timeout_keep_alive_handler)
        if self.crowd is not None:
            admission = self.crowd.admit(self, self.connections, admin=self.admin)
            self._crowded = admission is Admission.ANSWER
            if self._crowded:
                self._start_deadline()
            elif admission is Admission.CLOSE:
                transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """End; no timer outlives the connection."""
        self._unset_keepalive_if_required()
        self._stop_deadline()
        self.resume_writing()
        self._unparsed = b""
        if self._half_closed:
            type(self).half_closed -= 1
            self._half_closed = False
        for cycle in self._cycles:  # uvicorn tells the newest only, and the others would write to a closed connection
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes | bytearray | memoryview) -> None:
        """Take in what was read, as bytes.

        Windows' own event loop hands over a bytearray (CPython 3.11), which has no hash and can be changed later.
        """
        if self._crowded:
            self._refuse(TOO_MANY)
        else:
            self._receive(data if type(data) is bytes else bytes(data))

    def _receive(self, data: bytes) -> None:
        """Parse what was read, up to the limits."""
        self._latest = data
        self._unparsed += data
        self._parse()
        self._latest = b""

    def eof_received(self) -> bool:  # type: ignore[override]  # as asyncio's
        """Return whether the connection stays open for answers after the client has ended its sending.

        RFC 9112 section 9.6 allows that. A client that has gone looks the same over TCP, so there is a limit.
        """
        self._stop_deadline()
        newest = self.cycle
        if newest is not None and newest.more_body and not newest.response_complete:
            newest.disconnected = True  # its body will never be complete
            newest.message_event.set()
        if not self._half_closed:
            if not self._owes or type(self).half_closed >= MOST_HALF_CLOSED or hung_up(self.transport):
                return False
            type(self).half_closed += 1
            self._half_closed = True
        return True

    @property
    def _owes(self) -> bool:
        """Whether the client waits for an answer."""
        return bool(self._unparsed) or any(not (each.response_complete or each.disconnected) for each in self._cycles)

    def _parse(self) -> None:
        """Parse one head after another, until a request has to wait for the answer to an earlier one.

        The rest stays unparsed and nothing more is read, because a parsed request takes many times its bytes.
        """
        data, begin = self._unparsed, 0
        while begin < len(data) and not (self.pipeline or self.flow.stopped or self.transport.is_closing()):
            end = data.find(_END, begin)
            piece = data[begin:] if end < 0 else data[begin : end + len(_END)]
            begin += len(piece)
            self._feed(piece)
        self._unparsed = data[begin:]
        if len(self._unparsed) > MOST_PIPELINED:
            self._unparsed = b""
            self._refuse(PIPELINED)
        if self._unparsed or self.pipeline:
            self.flow.hold()
        else:
            self.flow.release()

    def _feed(self, piece: bytes) -> None:
        self._beside_body += len(piece)
        try:
            self.parser.feed_data(piece)
        except HttpParserUpgrade:
            pass  # a client that offers to change protocols gets HTTP/1.1
        except HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self.send_400_response("")
        if not self._whole and not self.transport.is_closing():
            self._start_deadline()
        if self._beside_body > LONGEST_HEAD and not self.transport.is_closing():
            self._refuse(HEAD_TOO_LONG)

    def on_message_begin(self) -> None:
        """Count a new head from here. What uvicorn keeps of a request is made once that is needed."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._in_head = True
        self._whole = False
        self._framed = False
        self._trailing = 0

    def on_url(self, url: bytes) -> None:
        """Take a piece of the target in."""
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one field in. A trailer is none: it comes after the request was judged (RFC 9110 section 6.5.1)."""
        if self._in_head:
            name = name.lower()
            if len(self.headers) >= MOST_FIELDS:  # at once: a field in memory takes thirty times its bytes
                self._refusal = HEAD_TOO_LONG
                raise _RefusedError
            self.headers.append((name, value))
            if name in _FRAMING:
                self._framed = True
                if name == b"expect" and value.lower() == b"100-continue":
                    self.expect_100_continue = True
        else:
            self._trailing += len(name) + len(value)
            if self._trailing > LONGEST_HEAD:
                self._refusal = HEAD_TOO_LONG
                raise _RefusedError

    def on_headers_complete(self) -> None:
        """Hand the target on as it was on the wire, and the rest to uvicorn."""
        self._check_length()
        if self.parser.get_http_version() not in {"1.0", "1.1"}:
            raise _RefusedError
        codings = [value.strip().lower() for name, value in self.headers if name == b"transfer-encoding"]
        if codings and codings != [b"chunked"]:
            raise _RefusedError  # RFC 9112 section 6.1: what else it says of the body's length is in doubt
        upgrade = self.parser.should_upgrade()
        if upgrade and (codings or any(name == b"content-length" and value != b"0" for name, value in self.headers)):
            self._refusal = UPGRADE_WITH_BODY  # the parser takes what follows for the other protocol
            raise _RefusedError
        self._in_head = False
        self._beside_body = 0
        target, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.headers += headers
        self.expect_100_continue = expects
        extensions = {TARGET_EXTENSION: target, ADMIN_EXTENSION: self.admin, UNIX_EXTENSION: self.unix}
        self.scope["extensions"] = extensions  # type: ignore[typeddict-item]  # ASGI leaves the type open
        # uvicorn would take the target apart, and stumble over the forms that are no path.
        self.url = b"/"
        super().on_headers_complete()
        while self._cycles and self._cycles[0].response_complete:
            self._cycles.popleft()
        cycle = cast("RequestResponseCycle", self.cycle)
        self._cycles.append(cycle)
        if upgrade:
            # The offer to change protocols is ignored (RFC 9110 section 7.8); what follows is not HTTP/1.1 for sure.
            cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body in."""
        self._beside_body = max(0, self._beside_body - _FRAME * len(body))
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        self._rest_begins()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Refuse what the parser could not read; `msg` is uvicorn's, and ours says more."""
        del msg
        unknown = isinstance(sys.exc_info()[1], HttpParserInvalidMethodError) and _REQUEST_LINE.match(self._latest)
        self._refuse(UNKNOWN_METHOD if unknown else self._refusal)

    def on_response_complete(self) -> None:
        """An answer is on its way; whoever does not take it is not waited for without end."""
        self._idle_since = self.loop.time()
        super().on_response_complete()
        if not self.transport.is_closing():
            if self._unparsed or self.flow.held:
                self._parse()
            if self._half_closed and not self._owes:
                self.transport.close()
        if self.transport.is_closing() and self.transport.get_write_buffer_size():
            self._watch()

    def pause_writing(self) -> None:
        """The client takes less than it is sent."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """The client takes what it is sent."""
        super().resume_writing()
        if self._deaf is not None:
            self._deaf.cancel()
            self._deaf = None

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, at once if its client does not even take what it was sent.

        Its timer is not moved by every request; it finds out how long the connection has been idle when it rings.
        """
        left = self._idle_since + KEEP_ALIVE - self.loop.time() if self._idle else KEEP_ALIVE
        if left > 0:
            self.timeout_keep_alive_task = self.loop.call_later(left, self.timeout_keep_alive_handler)
        elif self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            self.transport.close()

    @property
    def idle_since(self) -> float | None:
        """The loop's time of the last answer, or None while a request is here, in part or waiting."""
        return self._idle_since if self._idle else None

    def close_idle(self) -> None:
        """Close the connection before its time, to make room for others."""
        self.transport.close()

    @property
    def _idle(self) -> bool:
        """Whether no request is here, in part or waiting for its answer."""
        return self._whole and (self.cycle is None or self.cycle.response_complete)

    def _rest_begins(self) -> None:
        self._whole = True
        self._in_head = True
        self._beside_body = 0
        if self._deadline is not None:
            self._stop_deadline()

    def _check_length(self) -> None:
        """Refuse a head that is too long; `_beside_body` does not know of one that began in the midst of a read."""
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > LONGEST_HEAD:
            self._refusal = HEAD_TOO_LONG
            raise _RefusedError

    def _watch(self) -> None:
        if self._deaf is None:
            self._deaf = self.loop.call_later(KEEP_ALIVE, self.transport.abort)

    def _start_deadline(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.header_timeout, self._too_slow)

    def _stop_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self.flow.read_paused:  # it is the proxy that does not read on, as long as an earlier request is answered
            self._start_deadline()
        elif not self.transport.is_closing():
            self._refuse(TOO_SLOW)

    def _refuse(self, refusal: Refusal) -> None:
        """Answer and close; while earlier requests still wait for their answers, close after those instead."""
        self._stop_deadline()
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            if self._in_head or self.pipeline or cycle.response_started:
                cycle.keep_alive = False
                self.flow.stop()
                return
            cycle.disconnected = True  # this very request; the application's answer to it goes nowhere
        if isinstance(self.app, Application):
            self.app.note_refusal(refusal, self.client[0] if self.client else "-")
        self.transport.write(written(refusal))
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._watch()
