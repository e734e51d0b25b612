"""The fast lane: a fresh hit is answered in the step in which its bytes come in.

A request whose answer need not be waited for needs nothing that is there for waiting, no task, no queue, no way to
tell that the client has gone. Where a connection is idle and a read brings one whole head, no less and no more, it is
answered as soon as it is parsed; and a head that has been answered so is known by its bytes, and not even parsed again.
"""

from __future__ import annotations

from typing import Any, cast

from imdsproxy.cache.rendered_hit import RenderedHit
from imdsproxy.protocol.messages import Key
from imdsproxy.server.application import Application, log_request
from imdsproxy.server.connection import Connection
from imdsproxy.server.crowd import Crowd
from imdsproxy.server.known_heads import UNIX_MARK
from imdsproxy.server.parse_errors import LONGEST_HEAD

_END = b"\r\n\r\n"


class FastPathConnection(Connection):
    """A connection with the lane, for `Application` alone; what it does not take goes the way of every request."""

    __slots__ = ("_access_log", "_answered", "_at_once", "_began", "_from_rest", "_hit", "_now", "_observe", "_repeats")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        application = cast("Application", self.app)
        self._at_once = application.at_once
        self._observe = application.metrics.observe
        self._now = application.clock.monotonic
        self._accepted_hosts = application.accepted_hosts(unix=self.unix)
        self._repeats = application.known_heads
        # A name that is accepted at a Unix socket is not thereby accepted over TCP.
        self._mark = UNIX_MARK if self.unix else b""
        self._access_log = application.access_log
        self._answered = False
        self._from_rest = True  # what is being read begins with the first byte of a request
        self._hit: tuple[RenderedHit, Key] | None = None
        self._began = 0.0

    @property
    def silent(self) -> bool:
        """Whether no request has come yet."""
        return super().silent and not self._answered

    def _receive(self, data: bytes) -> None:
        """Answer what is known by its bytes; parse everything else."""
        self._from_rest = self._whole
        if self._whole and self._free():
            began = self._now()
            hit = self._repeats.find(data + self._mark, began)
            if hit is not None:
                self._answer(hit, began, data)
                return
        super()._receive(data)

    def on_headers_complete(self) -> None:
        """Answer a fresh hit here and now."""
        self._hit = None
        parser = self.parser
        if (
            not self._framed
            and parser.get_method() == b"GET"
            and parser.should_keep_alive()
            and parser.get_http_version() == "1.1"
            and self._free()
            and self._from_rest
            and len(self._latest) <= LONGEST_HEAD
            # What comes behind it in the same read may concern this answer, too.
            and self._latest.find(_END) == len(self._latest) - len(_END)
        ):
            self._began = self._now()
            self._hit = self._at_once(self.url, self.headers, self._began, self._accepted_hosts)
        if self._hit is None:
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole."""
        if self._hit is None:
            super().on_message_complete()
            return
        hit, key = self._hit
        self._hit = None  # or each connection would hold the body that it was last sent
        self._rest_begins()
        self._answer(hit, self._began)
        if self._latest.startswith(b"GET %b HTTP/" % self.url):
            self._repeats.remember(self._latest + self._mark, key)  # this head, and nothing before it or behind

    def _free(self) -> bool:
        """Whether nothing is to be written before, and the client takes what it is sent."""
        return not self.flow.write_paused and (self.cycle is None or self.cycle.response_complete)

    def _answer(self, hit: RenderedHit, began: float, head: bytes | None = None) -> None:
        """Write the answer to the request that was just read, or to this head that was not."""
        self._answered = True
        self.transport.write(hit.head + hit.body)
        self._idle_since = self.loop.time()
        self.server_state.total_requests += 1
        seconds = self._now() - began
        self._observe(hit.served, seconds)
        if self._access_log:
            target = self.url if head is None else head.split(b" ", 2)[1]
            log_request(hit.served, seconds, self.client, "GET", target)


def connection_class(
    header_timeout: float, *, admin: bool = False, unix: bool = False, crowd: Crowd | None = None
) -> type[Connection]:
    """Give the protocol class for the user's time limit, and for a listener; a page is never answered by the lane.

    The server's application has to be `Application` itself, so uvicorn must not wrap it (`proxy_headers=False`).
    """
    way = Connection if admin else FastPathConnection
    return type(way.__name__, (way,), {"header_timeout": header_timeout, "admin": admin, "unix": unix, "crowd": crowd})
