"""uvicorn's parsing of requests, with bounds.

The request target is passed on as it was on the wire, because the application refuses absolute forms of other hosts,
fragments and CONNECT.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NoReturn, cast

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from imdsproxy.protocol.messages import Refusal
from imdsproxy.protocol.peer import Peer
from imdsproxy.records import description_of
from imdsproxy.server.connection_refusals import HEAD_TOO_LONG, LONGEST_HEAD, MALFORMED, MOST_FIELDS, NO_MEMORY
from imdsproxy.server.extensions import extensions
from imdsproxy.server.flow import Brake, Pipeline
from imdsproxy.server.head_rules import FRAMING, refusal_of
from imdsproxy.server.held_bytes import (
    SHARE,
    HeldBytes,
    weight_of_body,
    weight_of_field,
    weight_of_part,
    weight_of_target,
)
from imdsproxy.server.presence import Presence

_END = b"\r\n\r\n"
_SHORTEST = len(b"GET / HTTP/1.1")
# Within a body an empty line ends nothing. Pieces of this length take few steps and contain few further requests.
_BODY_PIECE = 512
# Bytes of chunk framing that are accepted for each byte of body.
_FRAME = 16


class _RefusedError(Exception):
    """Ends the parsing; httptools turns it into a parser error."""


class BoundedParser(HttpToolsProtocol):
    """Parses one request after another, as long as none has to wait."""

    # Slots, because uvicorn's attributes fill a dictionary: a few more would double it in each connection.
    __slots__ = (
        "_beside_body",
        "_cycles",
        "_earlier",
        "_framed",
        "_in_head",
        "_peer",
        "_refusal",
        "_taken",
        "_trailing",
        "_unparsed",
        "_unsent",
        "_weight",
        "_whole",
    )

    cycle: RequestResponseCycle | None  # type: ignore[assignment]  # there is none before the first
    flow: Brake
    admin = False
    """Whether only the pages under `/-/` are served."""
    unix = False
    """Whether the listener is a Unix socket."""
    held = HeldBytes()
    """What all connections of a server hold beyond their shares; a subclass made at start has the server's."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pipeline = Pipeline()  # type: ignore[assignment]  # it has the methods that uvicorn uses
        self._in_head = True
        self._whole = True  # the last byte parsed was the end of a request
        self._framed = False  # a field of this request is one of `FRAMING`
        self._beside_body = 0  # bytes since the last complete head or request that are not body
        self._trailing = 0  # bytes in the trailers of this request
        self._refusal = MALFORMED  # the answer if the parser stops
        self._peer: Peer | None = None  # the client, once it has been looked up
        self._unparsed = b""  # bytes that wait for the answers to earlier requests
        self._cycles: list[RequestResponseCycle] = []  # requests that wait for their answers, in order
        # Weights as in `held_bytes`: of the newest request until it is answered, of those before it, of answers that
        # the client does not take; and what this connection has from the pool.
        self._weight = 0
        self._earlier = 0
        self._unsent = 0
        self._taken = 0

    def _parse(self) -> None:
        """Parse one request after another, until one has to wait for the answer to an earlier one.

        The rest stays unparsed and nothing more is read, because a parsed request takes many times its bytes.
        """
        data, begin = self._unparsed, 0
        while begin < len(data) and not (self.pipeline or self.flow.stopped or self.transport.is_closing()):
            least = _BODY_PIECE if not self._in_head else _SHORTEST if self._whole else 0
            end = data.find(_END, begin + least)
            piece = data[begin:] if end < 0 else data[begin : end + len(_END)]
            begin += len(piece)
            self._feed(piece)
        self._unparsed = data[begin:]
        if self._unparsed or self.pipeline:
            self.flow.hold()
        else:
            self.flow.release()
        if not self._settle() and not self.transport.is_closing():
            self._refuse(NO_MEMORY)

    def _settle(self) -> bool:
        """Take the weight beyond the share from the pool, or return it. Return False if the pool is too small."""
        # The parser delivers a field only when it is complete.
        newest = self._weight if self._whole else max(self._weight, weight_of_part(self._beside_body))
        beyond = max(0, newest + self._earlier + self._unsent + len(self._unparsed) - SHARE)
        if beyond == self._taken:
            return True
        if not self.held.move(self._taken, beyond):
            return False
        self._taken = beyond
        return True

    def _let_go(self) -> None:
        """Return to the pool all that the connection held, because it has ended, perhaps in the middle of a head."""
        self._unparsed = b""
        self._weight = self._earlier = self._unsent = self._beside_body = 0
        self._settle()

    def _feed(self, piece: bytes) -> None:
        self._beside_body += len(piece)
        try:
            self.parser.feed_data(piece)
        except HttpParserUpgrade:
            pass  # an offer to change protocols is answered in HTTP/1.1
        except HttpParserError as error:
            # The parser's own words hold nothing of the client's.
            because = self._refusal.description if isinstance(error.__context__, _RefusedError) else str(error)
            fields = {"client": description_of(self.client), "because": because}
            self.logger.warning("request is not readable and refused", extra={"fields": fields})
            self.send_400_response("")
        if not self._whole and not self.transport.is_closing():
            self._start_deadline()
        if self._beside_body > LONGEST_HEAD and not self.transport.is_closing():
            self._refuse(HEAD_TOO_LONG)

    def on_message_begin(self) -> None:
        """Start a new head. uvicorn's objects for a request are made only when they are needed."""
        self.url = b""
        self.headers = []
        self.expect_100_continue = False
        self._earlier += self._weight
        self._weight = 0
        self._in_head = True
        self._whole = False
        self._framed = False
        self._trailing = 0

    def on_url(self, url: bytes) -> None:
        """Append a piece of the target."""
        self.url += url
        self._weight += len(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Append a field, or count a trailer: the request is decided by then (RFC 9110 section 6.5.1)."""
        if self._in_head:
            name = name.lower()
            if len(self.headers) >= MOST_FIELDS:  # checked here, because a field takes thirty times its bytes
                self._stop_parsing(HEAD_TOO_LONG)
            self.headers.append((name, value))
            self._weight += weight_of_field(name, value)
            if name in FRAMING:
                self._framed = True
                if name == b"expect" and value.lower() == b"100-continue":
                    self.expect_100_continue = True
        else:
            self._trailing += len(name) + len(value)
            if self._trailing > LONGEST_HEAD:
                self._stop_parsing(HEAD_TOO_LONG)

    def on_headers_complete(self) -> None:
        """Check the head, and pass the target on as it was on the wire. uvicorn does the rest."""
        upgrade = self.parser.should_upgrade()
        refusal = refusal_of(self.url, self.headers, self.parser.get_http_version(), upgrade=upgrade)
        if refusal is not None:
            self._stop_parsing(refusal)
        self._weight += weight_of_target(self.url)
        if not self._settle():
            self._stop_parsing(NO_MEMORY)
        self._in_head = False
        self._beside_body = 0
        target, headers, expects = self.url, self.headers, self.expect_100_continue
        super().on_message_begin()
        self.headers += headers
        self.expect_100_continue = expects
        presence = Presence()
        self.scope["extensions"] = extensions(  # type: ignore[typeddict-item]  # ASGI leaves the type open
            target, presence, self, admin=self.admin, unix=self.unix
        )
        # uvicorn would parse the target, and fail at the forms that are not a path.
        self.url = b"/"
        super().on_headers_complete()
        while self._cycles and self._cycles[0].response_complete:
            del self._cycles[0]
        cycle = cast("RequestResponseCycle", self.cycle)
        cycle.message_event = presence  # type: ignore[assignment]  # its task has not begun yet
        self._cycles.append(cycle)
        if upgrade:
            # The offer to change protocols is ignored (RFC 9110 section 7.8). The following bytes may not be HTTP/1.1.
            cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Count a piece of the body, and pass it to uvicorn."""
        self._beside_body = max(0, self._beside_body - _FRAME * len(body))
        if self.cycle is not None and not self.cycle.response_complete:
            self._weight += weight_of_body(len(body))
            if not self._settle():
                self._stop_parsing(NO_MEMORY)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the request."""
        self._end_request()
        super().on_message_complete()
        if self.cycle is not None and self.cycle.response_complete:
            self._weight = 0

    def _end_request(self) -> None:
        self._whole = True
        self._in_head = True
        self._beside_body = 0
        self._stop_deadline()

    def _stop_parsing(self, refusal: Refusal) -> NoReturn:
        self._refusal = refusal
        raise _RefusedError

    @abstractmethod
    def peer(self) -> Peer:
        """Return the client, and look it up the first time."""

    def note_peer(self, peer: Peer | None) -> None:
        """Remember a client that was looked up elsewhere."""
        self._peer = peer

    @abstractmethod
    def _refuse(self, refusal: Refusal) -> None:
        """Answer and close."""

    @abstractmethod
    def _start_deadline(self) -> None:
        """Bound the time for the rest of this request."""

    @abstractmethod
    def _stop_deadline(self) -> None:
        """Cancel the deadline, because the request is complete."""
