"""The first request of a connection, answered while only the socket of the connection exists.

Most callers of IMDS connect, send one request and disconnect. A transport and a connection take several times as long
to make as a hit takes to answer. So if the first request came with its connection and is a fresh hit, it is answered
first. If the connection ends with that answer, nothing else is made.
"""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser

from imdsproxy.access.subject import UNKNOWN_SUBJECT, Subject
from imdsproxy.cache.rendered_hit import RenderedHit
from imdsproxy.records import Client
from imdsproxy.server.connection_refusals import MOST_FIELDS
from imdsproxy.server.head_rules import FRAMING
from imdsproxy.server.hosted_application import HostedApplication
from imdsproxy.server.known_heads import LONGEST_KNOWN, HeadsOfClient, KnownHeads

LONGEST_FIRST = LONGEST_KNOWN
"""The maximum bytes of a head that is answered here."""
LONGEST_JOINED = 16_384
"""The maximum bytes of a body that is copied behind its head, because the copy stays for as long as the client does not
read it. A first request for a longer one waits for its transport."""
FAST_VERSIONS = frozenset({"1.0", "1.1"})
"""The versions of HTTP that the fast path answers."""

_END = b"\r\n\r\n"
_GET = b"GET "


class _Head:
    """What the parser finds in one head."""

    __slots__ = ("framed", "headers", "last", "parser", "url", "version", "whole")

    def __init__(self) -> None:
        self.parser = HttpRequestParser(self)
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.framed = False
        self.last = False
        self.version = ""
        self.whole = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        self.headers.append((name, value))
        self.framed = self.framed or name in FRAMING

    def on_headers_complete(self) -> None:
        # The parser forgets the version when the message is complete.
        self.version = self.parser.get_http_version()
        self.last = is_last(self.parser)

    def on_message_complete(self) -> None:
        self.whole = True


class FirstRequests:
    """Answers the first requests at one listener, byte for byte as `FastPathConnection` does."""

    def __init__(self, application: HostedApplication, *, unix: bool) -> None:
        self._application = application
        self._accepted_hosts = application.accepted_hosts(unix=unix)
        self._known_heads = application.known_heads
        self._unix = unix
        self._now = application.clock.monotonic

    def answer(
        self, data: bytes, client: Client | None, subject: Subject = UNKNOWN_SUBJECT
    ) -> tuple[bytes, bool] | None:
        """Return the answer if these bytes are exactly one complete head and a fresh hit, otherwise None.

        Beside it is whether the connection ends with it.

        Args:
            data: All bytes that the client has sent.
            client: The client, if it is known.
            subject: The same, where there are access rules.
        """
        began = self._now()
        heads: KnownHeads | HeadsOfClient = self._known_heads
        if self._application.access is not None:
            heads = HeadsOfClient(self._known_heads, self._application.access, subject)
        found = heads.find(data, began, self._unix) or self._parse(data, began, subject)
        if found is None or len(found[0].body) > LONGEST_JOINED:
            return None
        hit, last = found
        hit.uses.count += 1
        self._application.observe(hit.served, self._now() - began, client, data)
        return (hit.last_head if last else hit.head) + hit.body, last

    def _parse(self, data: bytes, now: float, subject: Subject) -> tuple[RenderedHit, bool] | None:
        """Return the hit for a head that is not known, and whether the connection ends with it."""
        if not data.startswith(_GET) or data.find(_END) != len(data) - len(_END):
            return None
        head = _Head()
        try:
            head.parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            return None
        finally:
            del head.parser  # it refers to `head`, and such a cycle would wait for the garbage collector
        if not head.whole or head.framed or len(head.headers) > MOST_FIELDS or head.version not in FAST_VERSIONS:
            return None
        if not data.startswith(b"GET %b HTTP/" % head.url):  # the observers, too, are to find the target in it
            return None
        found = self._application.fresh_hit(
            head.url, head.headers, now, self._accepted_hosts, head.version, subject=subject
        )
        if found is None:
            return None
        hit, key = found
        if len(hit.body) <= LONGEST_JOINED:
            self._known_heads.remember(data, key, last=head.last, unix=self._unix)
        return hit, head.last


def is_last(parser: HttpRequestParser) -> bool:
    """Return whether the connection ends with the answer to the parsed request. The rule is uvicorn's."""
    return parser.get_http_version() == "1.0" or not parser.should_keep_alive()
